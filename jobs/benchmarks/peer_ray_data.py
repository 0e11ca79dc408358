"""What one would write without serpipe: Ray Data as its documentation shows it, one batch of clips at a time.

    python jobs/benchmarks/peer_ray_data.py CHECKPOINT FOLDER OUT

Reads audio with `read_audio`, resamples in `map_batches`, labels in a pool of model actors, one a GPU or else one a
core, and writes Parquet. It keeps no ledger, cuts nothing, and one file that does not decode ends it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import ray

CORE_BATCH, GPU_BATCH = 4, 32
"""Clips that the network is given at once; on a core more are no faster, and are padded to the longest of more."""


def resample(batch: dict[str, Any]) -> dict[str, Any]:
    """Every clip as mono at 16 kHz."""
    import soxr

    clips = np.empty(len(batch["amplitude"]), object)
    for place, (amplitude, rate) in enumerate(zip(batch["amplitude"], batch["sample_rate"], strict=True)):
        clips[place] = soxr.resample(np.asarray(amplitude).mean(axis=0), rate, 16_000)
    return {"path": batch["path"], "audio": clips}


class Classifier:
    """A Transformers checkpoint in float32."""

    def __init__(self, checkpoint: str) -> None:
        import torch
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        self._torch = torch
        torch.set_num_threads(1)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._extract = AutoFeatureExtractor.from_pretrained(checkpoint)
        self._model = AutoModelForAudioClassification.from_pretrained(checkpoint).eval().to(self._device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The best label of each clip, and all scores."""
        inputs = self._extract(
            list(batch["audio"]), sampling_rate=16_000, padding=True, return_attention_mask=True, return_tensors="pt"
        ).to(self._device)
        with self._torch.inference_mode():
            scores = self._model(**inputs).logits.softmax(-1).cpu().numpy()
        labels = [self._model.config.id2label[int(best)] for best in scores.argmax(-1)]
        return {"path": batch["path"], "label": np.array(labels), "scores": scores}


def main(checkpoint: str, folder: str, out: str) -> None:
    """Label a folder of audio."""
    ray.init()
    gpus = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    batch = GPU_BATCH if gpus else CORE_BATCH
    dataset = ray.data.read_audio(folder, include_paths=True)
    dataset = dataset.map_batches(resample, batch_size=batch)
    dataset = dataset.map_batches(
        Classifier,
        fn_constructor_args=(checkpoint,),
        batch_size=batch,
        # Half a core each, for Ray's reading and writing would else find none.
        num_cpus=0.5,
        num_gpus=1 if gpus else 0,
        compute=ray.data.ActorPoolStrategy(size=gpus or int(ray.cluster_resources()["CPU"])),
    )
    dataset.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
