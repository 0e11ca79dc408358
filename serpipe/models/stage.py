"""The model stage: packs in, the same packs with each model's results appended out. Knows nothing of Ray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serpipe.allocator import keep_freed_memory
from serpipe.errors import ModelError
from serpipe.models import batching, budget, lanes
from serpipe.models.contract import SAMPLE_RATE, Adapter, ModelSpec, Outputs
from serpipe.models.exact import without_tf32
from serpipe.models.registry import ModelRef, resolve
from serpipe.models.results import results
from serpipe.pack import rows_of, samples_of

ALONE = 0.0
"""Seconds of a micro-batch that holds one segment or window."""

Refusal = tuple[str, str]
"""Code and message of a segment that a model could not label."""

MODEL_FAILURE = pa.struct(
    [
        pa.field("segment", pa.int32()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
    ]
)


class Predict:
    """Labels the segments of packs with one model or several, and appends a column for each.

    On a CPU it sets PyTorch's threads, and has the process keep the memory that it frees. Calls may overlap, each with
    a pack of its own: on a GPU that keeps the device busy between two packs.

    Args:
        models: names, or resolved references.
        embeddings: `utterance`, `frame` (both kinds) or `none`.
        keep_audio: whether another model stage follows; the last one drops the audio.
        device: `cpu` or `cuda`; what there is by default.
        threads: CPU threads of the network; every core by default.

    Examples:
        >>> import pathlib, serpipe
        >>> from serpipe.testing import write_speech
        >>> folder = pathlib.Path(write_speech(seconds=8.0)).parent
        >>> decode, predict = serpipe.Decode(segmentation="window:4/4"), serpipe.Predict(["embedded"])
        >>> rows = [serpipe.flatten(predict(pack)) for pack in decode(serpipe.read_manifest(str(folder)))]
        >>> rows[0].select(["start_s", "model"]).to_pylist()
        [{'start_s': 0.0, 'model': 'embedded'}, {'start_s': 4.0, 'model': 'embedded'}]
    """

    def __init__(
        self,
        models: Sequence[str | ModelRef],
        *,
        embeddings: str = "utterance",
        keep_audio: bool = False,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        import torch

        self._embeddings = embeddings
        self.keeps_audio = keep_audio
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        without_tf32()
        if self._device == "cpu":
            torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        references = [resolve(model) if isinstance(model, str) else model for model in models]
        self._adapters: dict[str, Adapter] = {ref.name: ref.load(self._device) for ref in references}
        self._budgets = {
            name: budget.for_model(adapter.spec.parameters, self._device) for name, adapter in self._adapters.items()
        }
        self._lanes = lanes.for_device(self._device)
        if self._device == "cpu":
            # Only now: what loading needs beside the weights would stay as well.
            keep_freed_memory()

    def __call__(self, pack: pa.Table) -> pa.Table:
        """Label one pack of one row.

        Raises:
            ModelError: `MODEL_NEEDS_PACKS`, the table holds more or fewer rows than one.
        """
        if pack.num_rows != 1:
            raise ModelError(
                "MODEL_NEEDS_PACKS",
                f"a batch of {pack.num_rows} packs; use batch_size=1, a row is a pack already",
            )
        audio = samples_of(pack)
        segments = rows_of(pack, "segments")
        units = rows_of(pack, "units")
        for name, adapter in self._adapters.items():
            rows, failures = self._label(name, adapter, audio, segments, units)
            pack = pack.append_column(f"results:{name}", _one_row(rows))
            pack = pack.append_column(f"failures:{name}", _one_row(failures))
        return pack if self.keeps_audio else pack.drop_columns(["audio"])

    def _label(
        self, name: str, adapter: Adapter, audio: NDArray[Any], segments: pa.Table, units: pa.Table
    ) -> tuple[pa.StructArray, pa.StructArray]:
        spec = adapter.spec
        wanted = [not todo or name in todo for todo in units["todo"].to_pylist()]
        offsets, lengths = segments["offset"].to_numpy(), segments["length"].to_numpy()
        unit, peak = segments["unit"].to_numpy(), segments["peak"].to_numpy()
        shortest = round(spec.min_seconds * SAMPLE_RATE)
        chosen, failures = [], []
        for i in range(segments.num_rows):
            if not wanted[unit[i]] or peak[i] == 0.0:
                continue
            if lengths[i] < shortest:
                what = f"{lengths[i] / SAMPLE_RATE:.3f} s is shorter than the model's least, {spec.min_seconds} s"
                failures.append({"segment": i, "code": "SEGMENT_TOO_SHORT", "message": what})
            else:
                chosen.append(i)
        waveforms = [audio[offsets[i] : offsets[i] + lengths[i]] for i in chosen]
        frames = self._embeddings == "frame" and spec.frame_rate is not None
        names = segments["segment_id"].take(pa.array(chosen, pa.int32())).to_pylist()
        outputs, refused = self._forward(adapter, names, waveforms, frames=frames)
        failures += [{"segment": chosen[i], "code": code, "message": what} for i, (code, what) in refused.items()]
        sound = _finite(outputs.scores) & _finite(outputs.embeddings)
        answered = [place for i, place in enumerate(chosen) if i not in refused]
        for i, fine in zip(answered, sound, strict=True):
            if not fine:
                what = "the model gave numbers that are not finite"
                failures.append({"segment": i, "code": "MODEL_NOT_FINITE", "message": what})
        kept = [i for i, fine in zip(answered, sound, strict=True) if fine]
        rows = results(spec, kept, _those(outputs, sound), embeddings=self._embeddings != "none")
        return rows, pa.array(failures, MODEL_FAILURE)

    def _forward(
        self,
        adapter: Adapter,
        names: Sequence[bytes],  # noqa: ARG002 - for those who tell what they are at
        waveforms: Sequence[NDArray[np.float32]],
        *,
        frames: bool,
    ) -> tuple[Outputs, dict[int, Refusal]]:
        """Label segments; one on which the network fails is told by its place, and costs its neighbours nothing."""
        sizes, meter = self._budgets[adapter.spec.name], lanes.Meter()
        size = sizes.seconds
        try:
            outputs = batching.run(adapter, waveforms, budget_s=size, frames=frames, lanes=self._lanes, meter=meter)
        except Exception as error:
            # A traceback holds what the network had in memory, which its next try may need.
            failure = error.with_traceback(None)
        else:
            sizes.record(size, audio_s=sum(map(len, waveforms)) / SAMPLE_RATE, busy_s=meter.busy_s)
            return outputs, {}
        with self._lanes.alone():
            alone, refused = _one_by_one(adapter, waveforms, frames=frames)
        # Where none works the fault is not the segments'.
        if not alone:
            raise failure
        return batching.join(alone), refused


def _one_by_one(
    adapter: Adapter, waveforms: Sequence[NDArray[np.float32]], *, frames: bool
) -> tuple[list[Outputs], dict[int, Refusal]]:
    """Alone, each segment shows whether it is the one that fails."""
    alone: list[Outputs] = []
    labelled: list[int] = []
    refused: dict[int, Refusal] = {}
    for place, waveform in enumerate(waveforms):
        try:
            alone.append(batching.run(adapter, [waveform], budget_s=ALONE, frames=frames))
            labelled.append(place)
        except Exception as error:
            refused[place] = failed(f"{type(error).__name__}: {error}")
    if labelled:
        # One that worked must still do: an error can break a device for all that comes after it.
        batching.run(adapter, [waveforms[labelled[0]]], budget_s=ALONE, frames=frames)
    return alone, refused


def failed(how: str) -> Refusal:
    """What is said of a segment on which the network raises."""
    return "MODEL_FAILED", f"the network fails on it ({how})"


def unlabelled(pack: pa.Table, models: Iterable[ModelSpec]) -> pa.Table:
    """A pack without segments, as if each model had seen it; no network is loaded."""
    for spec in models:
        scores = np.zeros((0, len(spec.labels)), np.float32)
        nothing = Outputs(scores, scores, np.zeros((0, spec.embedding_width), np.float32), None)
        rows = results(spec, [], nothing, embeddings=True)
        pack = pack.append_column(f"results:{spec.name}", _one_row(rows))
        pack = pack.append_column(f"failures:{spec.name}", _one_row(pa.array([], MODEL_FAILURE)))
    return pack.drop_columns(["audio"])


def _those(outputs: Outputs, kept: NDArray[np.bool_]) -> Outputs:
    frames = None
    if outputs.frames is not None:
        frames = [rows for rows, keep in zip(outputs.frames, kept, strict=True) if keep]
    return Outputs(outputs.logits[kept], outputs.scores[kept], outputs.embeddings[kept], frames)


def _finite(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=1))
    return rows


def _one_row(values: pa.StructArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
