"""What failed for now is tried again by the next run, whatever its manifest names; a dated one names tonight alone."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import serpipe
from serpipe import plan
from serpipe.audio.stage import audio_facts, audio_fingerprint
from serpipe.engine import again, catalogue
from serpipe.engine.request import Cut
from serpipe.manifest import open_manifest
from serpipe.shard import Shard
from serpipe.store import commit, layout, parquet, runs, schemas, version
from serpipe.store.reading import Store
from serpipe.store.rows import RunFacts, quarantine_rows
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.audio.web import served

CUT = Cut("whole", "mix")
AUDIO = audio_fingerprint("whole", "mix")
FACTS = audio_facts("whole", "mix")


class Archive:
    """Files, a list of some of them each night, and a store whose runs failed on all they were asked for.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = Storage(str(folder / "store"))
        version.check(self.storage)

    def listed(self, *names: str) -> catalogue.Catalogue:
        for name in names:
            path = self.folder / name
            if "://" not in name and not path.exists():
                path.write_bytes(name.encode())
        (self.folder / "list.csv").write_text("\n".join(["path", *names]) + "\n")
        return catalogue.read_here(open_manifest(str(self.folder / "list.csv")))

    def night(self, run: str, *names: str, transient: bool = True, **told: Any) -> None:
        asked = {"asked": FACTS, "models": {"m": "f"}, "audio": AUDIO} | told
        read = self.listed(*names)
        plan.make_plan(self.storage, run, read.parts, audio=asked["audio"], models=asked["models"], by_length=False)
        runs.finish(self.storage, runs.Run(run_id=run, **asked))
        recordings = pa.concat_tables([part() for part in read.parts])
        count = recordings.num_rows
        rows = pa.table(
            {
                "recording_id": recordings["recording_id"],
                "uri": recordings["uri"],
                "stage": ["read"] * count,
                "code": ["RECORDING_UNREACHABLE"] * count,
                "message": ["the connection broke"] * count,
                "transient": [transient] * count,
                "attempt": pa.array([1] * count, pa.int32()),
            }
        )
        logged = quarantine_rows(rows, RunFacts(run_id=run, audio=asked["audio"], models=asked["models"]))
        parquet.write(self.storage, layout.quarantine(f"{run}-0"), logged, schemas.QUARANTINE, {})

    def labelled(self, run: str, uri: str) -> None:
        (recording,) = (row["recording_id"] for row in self.failing() if row["uri"] == uri)
        entry = {"recording_id": recording, "unit": 0, "final": True, "model": "m", "fp": "f", "audio": AUDIO}
        entry |= {"status": "labelled", "segments": 1, "rows": 1, "commit": f"{run}-0"}
        commit.index(self.storage, f"{run}-0", [pa.Table.from_pylist([entry], schema=schemas.LEDGER)])

    def failing(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = Store(self.storage).failing().to_pylist()
        return rows

    def parts(self, read: catalogue.Catalogue, **wanted: Any) -> list[again.Read]:
        asked = {"records": runs.load(self.storage), "cut": CUT, "models": ("m",), "roots": ()} | wanted
        return again.parts(self.storage, read.parts, **asked)

    def asked(self, *names: str, models: tuple[str, ...] = ("m",), **wanted: Any) -> list[list[str]]:
        """What each part of a run's catalogue holds."""
        read = self.listed(*names)
        found = self.parts(read, **({"models": models} | wanted))
        return [[uri.rsplit("/", 1)[1] for uri in part()["uri"].to_pylist()] for part in found]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def test_what_failed_for_now_comes_again_without_being_named(archive: Archive) -> None:
    archive.night("R1", "mon-1.wav", "mon-2.wav")
    assert archive.asked("tue.wav") == [["tue.wav"], ["mon-1.wav", "mon-2.wav"]]
    archive.labelled("R2", str(archive.folder / "mon-1.wav"))
    assert archive.asked("tue.wav") == [["tue.wav"], ["mon-2.wav"]]
    assert archive.asked("mon-2.wav") == [["mon-2.wav"], []], "nothing is planned twice"


def test_runs_that_left_nothing_are_not_looked_at(archive: Archive) -> None:
    archive.night("R1", "mon.wav")
    runs.finish(archive.storage, replace(runs.load(archive.storage)[0], result={"recordings": 1, "unsettled": 0}))
    assert archive.asked("tue.wav") == [["tue.wav"]]


def test_what_failed_for_good_waits_to_be_asked_for(archive: Archive) -> None:
    archive.night("R1", "mon.wav", transient=False)
    assert archive.asked("tue.wav") == [["tue.wav"]]


def test_the_rows_are_those_of_the_plan(archive: Archive) -> None:
    archive.night("R1", "mon.wav")
    before = archive.listed("mon.wav").parts[0]().to_pylist()
    named, rest = archive.parts(archive.listed("tue.wav"))
    assert named().num_rows == 1
    assert rest().to_pylist() == before


@pytest.mark.parametrize(
    "told",
    [{"asked": audio_facts("vad", "mix")}, {"asked": audio_facts("whole", "split")}, {"models": {"other": "f"}}],
    ids=["segmentation", "channels", "model"],
)
def test_work_of_another_kind_is_left_to_its_own_runs(archive: Archive, told: dict[str, Any]) -> None:
    archive.night("R1", "mon.wav", **told)
    assert archive.asked("tue.wav") == [["tue.wav"]]
    assert archive.asked("tue.wav", models=("m", "other")) == (
        [["tue.wav"], ["mon.wav"]] if "models" in told else [["tue.wav"]]
    )


def test_what_only_a_signature_opens_is_not_tried_without_it(archive: Archive) -> None:
    archive.night("R1", "https://host/a.flac?X-Amz-Signature=SECRET", "https://host/b.flac")
    assert archive.asked("tue.wav") == [["tue.wav"], ["b.flac"]]


def test_allowed_roots_hold_for_what_comes_again(archive: Archive, tmp_path: Path) -> None:
    archive.night("R1", "mon.wav")
    assert archive.asked("tue.wav", roots=(str(tmp_path / "elsewhere"),)) == [["tue.wav"]]
    assert archive.asked("tue.wav", roots=(str(tmp_path),)) == [["tue.wav"], ["mon.wav"]]


def test_a_shard_tries_its_own_again(archive: Archive) -> None:
    names = [f"{number}.wav" for number in range(20)]
    archive.night("R1", *names)
    shards = [archive.asked("tue.wav", shard=Shard(index, 2)) for index in (0, 1)]
    assert sorted(name for shard in shards for name in shard[1]) == sorted(names)
    assert all(shard[1] for shard in shards)


def test_a_file_that_was_replaced_comes_in_its_new_content(archive: Archive) -> None:
    archive.night("R1", "mon.wav")
    (archive.folder / "mon.wav").write_bytes(b"other content")
    os.utime(archive.folder / "mon.wav", (1, 1))
    new = archive.listed("mon.wav").parts[0]()
    *_, rest = archive.parts(archive.listed("tue.wav"))
    assert rest().to_pylist() == new.to_pylist()


def test_a_store_that_does_not_answer_keeps_nothing_from_being_labelled(archive: Archive) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        name = f"ftp://127.0.0.1:{free.getsockname()[1]}/mon.wav"
    rows = archive.listed("mon.wav").parts[0]()
    place = rows.schema.get_field_index("uri")
    lost = rows.set_column(place, rows.schema.field(place), pa.array([name]))
    assert again._in_todays_content(lost)["uri"].to_pylist() == [name]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_dated_manifest_forgets_no_recording(tmp_path: Path) -> None:
    """Monday's server is down; Tuesday's list does not name what it holds, and Tuesday's run labels it."""
    monday, store = tmp_path / "monday", str(tmp_path / "store")
    write_speech(monday / "a.wav", seconds=2.0)
    write_speech(tmp_path / "b.wav", seconds=2.0, seed=1)
    (tmp_path / "tue.csv").write_text("path\nb.wav\n")

    def night(name: str) -> serpipe.Result:
        return serpipe.label(str(tmp_path / name), store, segmentation="whole", speech=False)

    with served(monday) as site, pytest.MonkeyPatch.context() as patch:
        url = f"{site.url}/a.wav"
        (tmp_path / "mon.csv").write_text(f"path,etag\n{url},1\n")
        patch.setattr(site, "answer", lambda to: to.send_error(503))
        first = night("mon.csv")
        assert (first.recordings, first.codes) == (1, {"RECORDING_UNREACHABLE": 1})
        patch.undo()
        second = night("tue.csv")
    assert (second.recordings, second.failed, second.predictions) == (2, 0, 2)
    tables = serpipe.open(store)
    assert tables.failing().num_rows == 0
    assert url in tables.recordings()["uri"].to_pylist()
    assert night("tue.csv").run_id is None
