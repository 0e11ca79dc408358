"""How fast a student relabels stored embeddings, on synthetic rows.

python jobs/benchmark_relabel.py --segments 1000000 --width 768
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import replace

import click
import numpy as np
import pyarrow as pa
import torch

from serpipe.models.contract import Outputs
from serpipe.models.probe import Backbone, ProbeConfig
from serpipe.models.probe_head import Head
from serpipe.models.registry import resolve
from serpipe.models.results import results, vectors
from serpipe.pack import ID
from serpipe.pseudolabel import student
from serpipe.pseudolabel.relabel import relabel
from serpipe.store import commit, layout, schemas, version
from serpipe.store.storage import Storage

AUDIO, BACKBONE, FP, RUN = "a" * 16, "synthetic", "b" * 16, "20300101T000000000000Z-1a2b3c4d"
PER_RECORDING = 100
COMMIT = 50_000
"""Segments of one commit: about 75 MB of embeddings of width 768."""
CLASSES = ("anger", "happiness", "sadness", "neutral")


def write_commit(storage: Storage, number: int, count: int, width: int) -> None:
    """One commit of the backbone: its predictions and embeddings."""
    random = np.random.default_rng(number)
    raw = np.frombuffer(random.bytes(16 * count), "S16")
    segments = pa.FixedSizeBinaryArray.from_buffers(ID, count, [None, pa.py_buffer(raw.tobytes())])
    owners = np.arange(count) // PER_RECORDING
    names = pa.array([f"{number:08d}{owner:08d}".encode() for owner in range(int(owners.max()) + 1)], ID)
    recordings = names.take(pa.array(owners))
    spec = replace(resolve("embedded").spec, embedding_width=width)
    scores = random.dirichlet(np.ones(4), count).astype(np.float32)
    place = (np.arange(count) % PER_RECORDING).astype(np.float64) * 3
    answers = results(
        spec, range(count), Outputs(scores, scores, np.zeros((count, 1), np.float32), None), embeddings=False
    )
    columns = {
        "segment_id": segments,
        "recording_id": recordings,
        "unit": pa.array(np.zeros(count, np.int32)),
        "channel": pa.array(np.full(count, -1, np.int32)),
        "start_s": pa.array(place),
        "end_s": pa.array(place + 3),
        "run_id": pa.repeat(RUN, count),
    }
    columns |= {
        field.name: answers.field(field.name) for field in answers.type if field.name in schemas.PREDICTIONS.names
    }
    embeddings = pa.table(
        {
            "segment_id": segments,
            "recording_id": recordings,
            "embedding": vectors(random.standard_normal((count, width), np.float32)),
            "run_id": columns["run_id"],
        }
    )
    name = layout.commit_name(RUN, [str(number)])
    units = len(names)
    settled = pa.table(
        {
            "recording_id": names,
            "unit": pa.array(np.zeros(units, np.int32)),
            "final": pa.array(np.ones(units, bool)),
            "model": pa.repeat(BACKBONE, units),
            "fp": pa.repeat(FP, units),
            "audio": pa.repeat(AUDIO, units),
            "status": pa.repeat("labelled", units),
            "segments": pa.array(np.bincount(owners).astype(np.int32)),
            "rows": pa.array(np.bincount(owners).astype(np.int32)),
            "commit": pa.repeat(name, units),
        }
    ).cast(schemas.LEDGER)
    part = commit.ModelRows(
        model=BACKBONE,
        fp=FP,
        predictions=pa.table(columns),
        embeddings=embeddings,
        frames=None,
        width=width,
        passport="",
        quarantine=schemas.QUARANTINE.empty_table(),
        settled=settled,
    )
    empty = {
        "recordings": schemas.RECORDINGS.empty_table(),
        "segments": schemas.SEGMENTS.empty_table(),
        "quarantine": schemas.QUARANTINE.empty_table(),
    }
    commit.write(storage, commit.Commit(name=name, audio=AUDIO, models=[part], **empty))


@click.command(help=__doc__)
@click.option("--segments", default=1_000_000, show_default=True, type=click.IntRange(min=PER_RECORDING))
@click.option("--width", default=768, show_default=True, type=click.IntRange(min=1), help="Of an embedding.")
def main(segments: int, width: int) -> None:
    """Make a store, relabel it, print the speed."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"{folder}/store")
        version.check(storage)
        for number, start in enumerate(range(0, segments, COMMIT)):
            write_commit(storage, number, min(COMMIT, segments - start), width)
        torch.manual_seed(0)
        backbone = Backbone(
            model=BACKBONE,
            location=None,
            fp=FP,
            dtype="float32",
            licence="none",
            parameters=0,
            min_seconds=0.1,
            max_seconds=30.0,
            embedding_width=width,
        )
        config = ProbeConfig(labels=CLASSES, hidden=0, backbone=backbone)
        files = student.files_of(Head(width, len(CLASSES)), config, {}, "benchmark")
        student.write(storage, student.folder(1), files)
        began, before = time.monotonic(), time.process_time()
        done = relabel(storage.root, f"{storage.root}/{student.folder(1)}", name="probe-1")
        wall, cpu = time.monotonic() - began, time.process_time() - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        click.echo(
            f"{done.segments} segments of width {width} in {wall:.1f} s ({cpu:.1f} s of CPU): "
            f"{done.segments / wall * 60 / 1e6:.2f} million a minute, peak {peak:.2f} GiB with the making of the store"
        )


if __name__ == "__main__":
    main()
