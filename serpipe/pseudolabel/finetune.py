"""Fine-tuning a whole Transformers model on a generation, through Ray Train: gold in every batch, soft labels.

Ray Data cuts the segments out of their recordings and streams them; each worker takes one part gold and three parts
pseudo-labels in every step. A checkpoint is kept every few steps, a worker that dies is replaced, and a run that was
killed as a whole goes on from the last checkpoint when the same command is given again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serpipe import ids
from serpipe.errors import UsageError
from serpipe.labels import CANONICAL
from serpipe.models import generic, weights
from serpipe.models.checkpoint import content_sha256
from serpipe.models.contract import SAMPLE_RATE
from serpipe.pseudolabel import generation, sources, student
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.export.clips import channels_of, sure_of
from serpipe.pseudolabel.heard import SEGMENT, cut, digest, located
from serpipe.store.reading import open as open_store
from serpipe.store.storage import Storage

GOLD_SHARE = 0.25
"""Least part of every batch that is gold, as for the probe."""

BATCH = 16
"""Rows of a step, all workers together."""

BODY_RATE, HEAD_RATE = 1e-5, 1e-4
"""Peak learning rates of the pre-trained layers and of the new head, as is usual for wav2vec 2.0 and its relatives."""

SHUFFLED = 512
"""Rows among which a worker draws its batches: rows come recording by recording, so that each is decoded about once
an epoch; as audio they take some 150 MB."""

EVERY = 50
"""Steps between checkpoints."""

FAILURES = 3
"""Times that dead workers are replaced before the run ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuned:
    """A model that was fine-tuned.

    Attributes:
        name: what it is called.
        folder: where it lies, in the layout of Transformers; `label --model NAME=FOLDER` takes it.
        rows: it was trained on, gold and pseudo-labelled.
        steps: of the optimiser.
        loss: of the last step that was reported.
    """

    name: str
    folder: str
    rows: int
    steps: int
    loss: float


def finetune(
    store: str,
    number: int,
    gold: str,
    model: str,
    *,
    out: str | None = None,
    workers: int = 2,
    steps: int = 1000,
    every: int = EVERY,
    batch: int = BATCH,
    seed: int = 0,
    gpu: bool | None = None,
    address: str | None = None,
    audio: str | None = None,
) -> Finetuned:
    """Fine-tune a model on a generation's kept rows and gold.

    What it learnt stands in the store, below `students/finetuned-N/`, wherever the model goes.

    Args:
        store: directory or fsspec URL, which every worker can reach.
        number: of the generation; 0 trains on gold alone.
        gold: labels by people; its split `train` is in every batch.
        model: `NAME=DIRECTORY` or a directory with a Transformers audio classifier (wav2vec 2.0, HuBERT or WavLM).
        out: folder of the model; by default the one of the store.
        workers: of Ray Train.
        steps: of the optimiser.
        every: steps between checkpoints.
        batch: rows of a step.
        seed: of the head and the order.
        gpu: whether each worker takes a GPU; by default where the cluster has enough.
        address: of a Ray cluster.
        audio: as of `serpipe.pseudolabel.train.train`.

    Raises:
        UsageError: `FINETUNE_NO_MODEL`, `TRAIN_NO_GOLD`, `GENERATION_UNKNOWN`, `AUDIO_AMBIGUOUS`, or what is wrong
            with gold.
    """
    from serpipe.engine.cluster import joined

    opened = open_store(store)
    base, _, location = model.partition("=")
    location = location or base
    directory = weights.localised(location, generic.FILES)
    if not (Path(directory) / "config.json").exists():
        raise UsageError("FINETUNE_NO_MODEL", f"{directory} holds no Transformers model; fetch it with `hf download`")
    record = generation.load(opened.storage, number) if number else {}
    audio = sources.audio_to_train_on(opened, record, audio)
    read = golden.read(gold)
    matched = golden.match(opened, read, audio)
    mine = matched.filter(pc.equal(matched["split"], "train"))
    there = set(mine["label"].to_pylist())
    classes = list(record["classes"]) if record else [name for name in CANONICAL if name in there]
    mine = mine.filter(pc.is_in(mine["label"], value_set=pa.array(classes)))
    if not mine.num_rows:
        raise UsageError("TRAIN_NO_GOLD", f"{gold} has no clip of {', '.join(classes)} in its split train")
    rows = [_gold_rows(mine, classes)]
    if record:
        rows.append(_kept_rows(opened.storage, record, golden.barred(read, matched)))
    rows = [located(opened, part) for part in rows]
    channels = channels_of(opened, audio)
    for part in rows:
        channels = sure_of(channels, part["file_channels"])
    work = {
        "directory": directory,
        "classes": classes,
        "steps": steps,
        "every": every,
        "batch": batch,
        "seed": seed,
        "channels": channels,
        "gold_share": GOLD_SHARE if record else 1.0,
    }
    counts = [part.num_rows for part in rows]
    # The same work goes on where it stopped; other work begins anew.
    heard = content_sha256(directory, generic.FILES)
    facts = json.dumps([work | {"steps": 0}, [digest(rows), heard]], sort_keys=True)
    with joined(address) as cluster:
        run = f"finetune-{number}-{ids.fingerprint(facts)}"
        storage_path = f"{opened.storage.root}/students/runs"
        found = _fit(
            rows, work, run, storage_path, workers=workers, gpu=cluster.gpus >= workers if gpu is None else gpu
        )
    training = {
        "generation": number,
        "recipe_hash": record.get("recipe_hash"),
        "teachers": record.get("teachers", []),
        "gold": {
            "hash": read.hash,
            "train_hash": golden.train_hash(matched),
            "rows": counts[0],
            "counts": read.counts().get("train", {}),
        },
        "pseudo_rows": sum(counts[1:]),
        "settings": {
            "steps": found["steps"],
            "batch": batch,
            # Each takes its share of a batch, rounded.
            "workers": workers,
            "seed": seed,
            "rates": [BODY_RATE, HEAD_RATE],
        },
        "backbone": {"model": Path(base).name or base, "weights_sha256": heard},
        "classes": classes,
        "weights_sha256": found["weights_sha256"],
    }
    return Finetuned(
        name=student.name(number, "finetuned"),
        folder=keep(opened.storage, number, found["files"], training, out=out),
        rows=sum(counts),
        steps=found["steps"],
        loss=found["loss"],
    )


def keep(
    storage: Storage, number: int, files: Mapping[str, bytes], training: Mapping[str, Any], *, out: str | None = None
) -> str:
    """Put a fine-tuned model and what is told of it where it belongs, and let the store know it; gives its folder.

    Args:
        storage: the store.
        number: of the generation it learnt from.
        files: of the model, by name.
        training: what it learnt, and `weights_sha256` of its files.
        out: another folder for the model than the store's.
    """
    where = student.folder(number, "finetuned")
    target, prefix = (Storage(out), "") if out else (storage, where)
    folder = f"{target.root}/{prefix}".rstrip("/")
    training = {**training, "folder": folder}
    told = student.told(training, _card(student.name(number, "finetuned"), training))
    student.write(target, prefix, {**files, **told})
    if out:
        student.write(storage, where, told)
    student.register(storage, training["weights_sha256"], number, here=True, kind="finetuned")
    return folder


def _gold_rows(mine: pa.Table, classes: list[str]) -> pa.Table:
    place = pc.index_in(mine["label"], value_set=pa.array(classes)).to_numpy()
    soft = np.eye(len(classes), dtype=np.float32)[place]
    table = mine.select(SEGMENT)
    table = table.append_column("soft", pa.array(soft.tolist(), pa.list_(pa.float32())))
    return table.append_column("weight", pa.array(np.ones(len(soft), np.float32)))


def _kept_rows(storage: Storage, record: dict[str, Any], barred: golden.Barred) -> pa.Table:
    columns = [*SEGMENT, "soft_label", "weight"]
    rows = generation.to_train_on(storage, record, barred, columns)
    return rows.rename_columns([*SEGMENT, "soft", "weight"])


def _fit(
    rows: list[pa.Table], work: dict[str, Any], run: str, storage_path: str, *, workers: int, gpu: bool
) -> dict[str, Any]:
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    names = ["gold", "pseudo"][: len(rows)]
    datasets: dict[str, Any] = {
        name: ray.data.from_arrow(part)
        .repartition(max(workers, part.num_rows // 256))
        .map_batches(partial(cut, channels=work["channels"]), batch_format="pyarrow")
        for name, part in zip(names, rows, strict=True)
    }
    trainer = TorchTrainer(
        loop,
        train_loop_config=work,
        datasets=datasets,
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=ray.train.RunConfig(
            name=run,
            storage_path=storage_path,
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    result = trainer.fit()
    assert result.checkpoint is not None
    metrics = result.metrics or {}
    with result.checkpoint.as_directory() as folder:
        return {
            "files": {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != _STATE},
            "weights_sha256": content_sha256(folder, generic.FILES),
            # A run that had gone further than is asked for now is not undone.
            "steps": int(metrics["step"]),
            "loss": float(metrics["loss"]),
        }


def _card(name: str, training: Mapping[str, Any]) -> str:
    settings, backbone = training["settings"], training["backbone"]
    return student.card(
        name,
        f"A student of serpipe: the whole of `{backbone['model']}` (weights {backbone['weights_sha256'][:12]}), "
        "fine-tuned.",
        {
            **student.learnt(training),
            "Steps": f"{settings['steps']} of {settings['batch']} rows, {settings['workers']} workers",
            "Seed": settings["seed"],
            "Licence of the base": "see its own card",
        },
        "Nothing was held out while it learnt; what the gates said stands in the generation's "
        "`promotion-finetuned.json`.",
    )


_STATE = "state.pt"


def loop(work: dict[str, Any]) -> None:
    """What each worker does."""
    import ray.train
    import torch
    from ray.train.torch import get_device, prepare_model
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    torch.manual_seed(work["seed"])
    classes = work["classes"]
    plain = AutoModelForAudioClassification.from_pretrained(
        work["directory"],
        local_files_only=True,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: place for place, name in enumerate(classes)},
        ignore_mismatched_sizes=True,
        # A head that weighs all layers needs all of them in every step.
        layerdrop=0.0,
    )
    features = AutoFeatureExtractor.from_pretrained(  # type: ignore[no-untyped-call]
        work["directory"], local_files_only=True
    )
    head = [p for name, p in plain.named_parameters() if name.startswith(("classifier", "projector"))]
    marked = {id(parameter) for parameter in head}
    body = [parameter for parameter in plain.parameters() if id(parameter) not in marked]
    optimiser = torch.optim.AdamW([{"params": body, "lr": BODY_RATE}, {"params": head, "lr": HEAD_RATE}])
    step = 0
    before = ray.train.get_checkpoint()
    if before is not None:
        with before.as_directory() as folder:
            state = torch.load(Path(folder) / _STATE, map_location="cpu", weights_only=True)
        plain.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    model = prepare_model(plain, parallel_strategy_kwargs={"find_unused_parameters": True})
    device, context = get_device(), ray.train.get_context()
    mine = max(2, work["batch"] // context.get_world_size())
    golden_rows = max(1, round(work["gold_share"] * mine))
    streams = [_endless("gold", golden_rows, work["seed"])]
    if mine > golden_rows:
        streams.append(_endless("pseudo", mine - golden_rows, work["seed"]))
    model.train()
    loss_value = float("nan")
    while step < work["steps"]:
        drawn = [row for stream in streams for row in next(stream)]
        heard = features(
            [np.asarray(row["waveform"], np.float32) for row in drawn],
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_tensors="pt",
        ).to(device)
        soft = torch.tensor(np.stack([row["soft"] for row in drawn]), dtype=torch.float32, device=device)
        weight = torch.tensor([row["weight"] for row in drawn], dtype=torch.float32, device=device)
        logits = model(**heard).logits
        losses = -(soft * logits.log_softmax(dim=-1)).sum(dim=-1)
        loss = (losses * weight).sum() / weight.sum().clamp(min=1e-6)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
        step, loss_value = step + 1, float(loss.detach())
        if step % work["every"] == 0 or step == work["steps"]:
            _report(plain, features, optimiser, step, loss_value)
    if np.isnan(loss_value):
        # The run had ended before: its last checkpoint is the result.
        _report(plain, features, optimiser, step, loss_value)


def _report(plain: Any, features: Any, optimiser: Any, step: int, loss: float) -> None:
    import ray.train
    import torch

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            plain.save_pretrained(folder)
            features.save_pretrained(folder)
            state = {"model": plain.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
            torch.save(state, Path(folder) / _STATE)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step, "loss": loss}, checkpoint=checkpoint)


def _endless(name: str, count: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Batches of a worker's share of a dataset, over and over, each time in another order."""
    import ray.train

    shard = ray.train.get_dataset_shard(name)
    rows: list[dict[str, Any]] = []
    while True:
        empty = True
        drawn = {"local_shuffle_buffer_size": SHUFFLED, "local_shuffle_seed": seed}
        seed += 1
        for batch in shard.iter_batches(batch_size=count, batch_format="pyarrow", prefetch_batches=1, **drawn):
            empty = False
            rows += batch.to_pylist()
            while len(rows) >= count:
                yield rows[:count]
                rows = rows[count:]
        if empty:
            raise UsageError("TRAIN_NO_AUDIO", f"none of the {name} segments of a worker can be read from their audio")
