"""Training the default student: a head on stored embeddings, from a generation's kept rows and gold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from serpipe.errors import UsageError
from serpipe.evaluate import answers_of, evaluate
from serpipe.labels import CANONICAL
from serpipe.models.probe import ProbeConfig
from serpipe.models.registry import ModelRef, resolve
from serpipe.pseudolabel import generation, sources, student
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.arrays import seeded, words
from serpipe.pseudolabel.fit import Examples, Settings, cool, fit, left_out, temperature
from serpipe.store import layout
from serpipe.store import schemas as tables
from serpipe.store.reading import Store
from serpipe.store.reading import open as open_store

MOST = 500_000
"""Kept rows a head is fitted on, drawn by a hash of their ids; a head of some thousand weights needs no more."""

_INTERVALS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A student that was trained.

    Attributes:
        generation: whose kept rows it learnt from; 0 for gold alone.
        name: what it is called.
        folder: where it lies.
        training: what stands in `training.json`.
    """

    generation: int
    name: str
    folder: str
    training: dict[str, Any]


def train(
    store: str,
    number: int,
    gold: str,
    *,
    backbone: str | None = None,
    settings: Settings | None = None,
    audio: str | None = None,
) -> Trained:
    """Train a student and put it into the store, below `students/generation=N/`.

    Args:
        store: directory or fsspec URL.
        number: of the generation whose kept rows it learns from; 0 trains on gold alone.
        gold: labels by people; its split `train` is in every batch, and what it judges by in none, whatever the
            generation kept.
        backbone: the model whose stored embeddings are heard, `NAME` or `NAME=LOCATION`; by default the only one that
            has any and is no student.
        settings: how the head is fitted.
        audio: audio fingerprint of the segments that are heard, where recordings were cut in several ways; of
            a generation no other than its own.

    Raises:
        UsageError: `GENERATION_UNKNOWN`, `TRAIN_NO_GOLD`, `TRAIN_NO_BACKBONE`, `TRAIN_NO_EMBEDDINGS`,
            `AUDIO_AMBIGUOUS`, `AUDIO_OF_GENERATION`, or what is wrong with gold.
    """
    settings = settings or Settings()
    opened = open_store(store)
    record = generation.load(opened.storage, number) if number else {}
    audio = sources.audio_to_train_on(opened, record, audio)
    model = resolve(backbone or only_backbone(opened))
    read = golden.read(gold)
    matched = golden.match(opened, read, audio)
    mine = matched.filter(pc.equal(matched["split"], "train"))
    there = set(mine["label"].to_pylist())
    classes = tuple(record["classes"]) if record else tuple(name for name in CANONICAL if name in there)
    mine = mine.filter(pc.is_in(mine["label"], value_set=pa.array(classes)))
    if len(set(mine["label"].to_pylist())) < 2:
        raise UsageError(
            "TRAIN_NO_GOLD",
            f"{gold} has fewer than two of the classes {', '.join(classes)} in its split train that {store} holds; "
            "a student needs some of each",
        )
    vectors = Vectors(opened, model)
    gold_rows = vectors.examples(mine, _one_hot(mine["label"], classes), np.ones(mine.num_rows, np.float32))
    pseudo_rows = _kept(opened, record, golden.barred(read, matched), vectors, settings.seed) if record else None
    loose = left_out(gold_rows, pseudo_rows, settings)
    cooling = temperature(loose, gold_rows.soft)
    head = fit(gold_rows, pseudo_rows, settings)
    cool(head, cooling)
    honest = answers_of(mine["label"].to_pylist(), _softmax(loose / cooling), classes, mine["speaker"].to_pylist())
    figures = evaluate(honest, count=_INTERVALS)
    training = {
        "generation": number,
        "recipe_hash": record.get("recipe_hash"),
        "teachers": record.get("teachers", []),
        "gold": {
            "hash": read.hash,
            "train_hash": golden.train_hash(matched),
            "rows": gold_rows.soft.shape[0],
            "counts": read.counts().get("train", {}),
        },
        "pseudo_rows": 0 if pseudo_rows is None else len(pseudo_rows),
        "settings": asdict(settings),
        "temperature": cooling,
        "left_out": {name: asdict(figures[name]) for name in ("recall_macro_ua", "f1_macro", "ece", "nll")},
        "backbone": {"model": model.name, "fp": model.fp, "licence": model.spec.licence},
        "classes": list(classes),
    }
    config = ProbeConfig(
        labels=classes, hidden=settings.hidden, backbone=student.backbone_of(model, backbone or model.name)
    )
    name, where = student.name(number), student.folder(number)
    student.write(opened.storage, where, student.files_of(head, config, training, _card(name, training)))
    student.register(opened.storage, student.ref(opened.storage, number).weights_sha256, number, here=True)
    return Trained(generation=number, name=name, folder=f"{opened.storage.root}/{where}", training=training)


def only_backbone(store: Store) -> str:
    """The one model of a store that has embeddings and is no student.

    Raises:
        UsageError: `TRAIN_NO_BACKBONE`.
    """
    folders = {
        tuple(part.partition("=")[2] for part in name.split("/")[1:3]) for name in store.storage.list("embeddings/")
    }
    found = sorted({model for model, fp in folders if student.origin(store.storage, model, fp) is None})
    if len(found) != 1:
        raise UsageError(
            "TRAIN_NO_BACKBONE",
            f"{store.storage.root} has embeddings of {', '.join(found) or 'no model'}; name the one to hear "
            "with --backbone",
        )
    return found[0]


class Vectors:
    """A backbone's stored embeddings, read for chosen segments.

    Args:
        store: the store.
        model: the backbone; its fingerprint must be the store's.
    """

    def __init__(self, store: Store, model: ModelRef) -> None:
        entries = store.entries
        mine = entries.filter(pc.and_(pc.equal(entries["model"], model.name), pc.equal(entries["fp"], model.fp)))
        there = set(store.storage.list(f"embeddings/model={model.name}/fp={model.fp}/"))
        names = [layout.embeddings(model.name, model.fp, commit) for commit in mine["commit"].unique().to_pylist()]
        self._files = [store.storage.path(name) for name in sorted(names) if name in there]
        self._store, self._model = store, model
        if not self._files:
            raise UsageError(
                "TRAIN_NO_EMBEDDINGS",
                f"{store.storage.root} keeps no embeddings of {model.name} with fingerprint {model.fp}; label with "
                "that model first, or give the weights it was labelled with as NAME=LOCATION",
            )

    def of(self, segments: pa.ChunkedArray) -> NDArray[np.float16]:
        """Embeddings, float16 (n, width), of segments.

        Raises:
            UsageError: `TRAIN_NO_EMBEDDINGS`, some have none.
        """
        width = self._model.spec.embedding_width
        result = np.zeros((len(segments), width), np.float16)
        found = np.zeros(len(segments), bool)
        dataset = ds.dataset(
            self._files, schema=tables.embeddings(width), format="parquet", filesystem=self._store.storage.fs
        )
        wanted = segments.cast(pa.binary()).combine_chunks()
        # Files are read batch by batch, so that memory holds the rows asked for and no more.
        for batch in dataset.to_batches(columns=["segment_id", "embedding"]):
            place = pc.index_in(batch["segment_id"].cast(pa.binary()), value_set=wanted)
            here = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
            rows = place.drop_null().to_numpy()
            values = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
            result[rows], found[rows] = values[here], True
        if not found.all():
            raise UsageError(
                "TRAIN_NO_EMBEDDINGS",
                f"{int((~found).sum())} of {len(found)} segments have no embedding of {self._model.name} in "
                f"{self._store.storage.root}; label the whole archive with it",
            )
        return result

    def examples(self, rows: pa.Table, soft: NDArray[np.float32], weights: NDArray[np.float32]) -> Examples:
        """Rows with `segment_id`, `recording_id` and `speaker` as examples."""
        speakers = np.array(rows["speaker"].to_pylist(), np.str_)
        recordings = np.array([recording.hex() for recording in rows["recording_id"].to_pylist()], np.str_)
        return Examples(self.of(rows["segment_id"]), soft, weights, speakers, recordings)


def _kept(store: Store, record: Mapping[str, Any], barred: golden.Barred, vectors: Vectors, seed: int) -> Examples:
    """A generation's kept rows to train on, in the order of their ids."""
    columns = ["segment_id", "recording_id", "soft_label", "weight", "speaker", "uri"]
    rows = generation.to_train_on(store.storage, record, barred, columns)
    if rows.num_rows > MOST:
        order = seeded(words(rows["segment_id"])[1], seed)
        rows = rows.take(pa.array(np.sort(np.argsort(order, kind="stable")[:MOST])))
    voice = pc.coalesce(rows["speaker"], rows["uri"], pa.scalar(""))
    rows = rows.set_column(rows.schema.get_field_index("speaker"), "speaker", voice)
    soft = rows["soft_label"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    soft = soft.reshape(rows.num_rows, len(record["classes"])).astype(np.float32)
    return vectors.examples(rows, soft, rows["weight"].to_numpy().astype(np.float32))


def _one_hot(labels: pa.ChunkedArray, classes: tuple[str, ...]) -> NDArray[np.float32]:
    place = pc.index_in(labels, value_set=pa.array(classes)).to_numpy()
    return np.asarray(np.eye(len(classes), dtype=np.float32)[place])


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _card(name: str, training: Mapping[str, Any]) -> str:
    figure, backbone = training["left_out"]["recall_macro_ua"], training["backbone"]
    hidden = training["settings"]["hidden"]
    return student.card(
        name,
        f"A student of serpipe: a head ({'linear' if not hidden else f'{hidden} hidden units'}) on the utterance "
        f"embeddings of `{backbone['model']}` (fingerprint {backbone['fp']}).",
        {
            **student.learnt(training),
            "UA on gold voices it did not hear": f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]",
            "Temperature in its weights": f"{training['temperature']:.3f}",
            "Licence of the backbone": backbone["licence"],
        },
        "The UA is of heads fitted without the voice they are judged on, not of this one. What the gates said stands "
        "in the generation's `promotion.json`.",
    )
