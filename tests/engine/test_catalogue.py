"""The catalogue of a manifest: the same recordings whether Ray reads it or not, and no manifest read twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import serpipe
from serpipe.engine import catalogue, label
from serpipe.engine.pipeline import TASK_RETRIES
from serpipe.errors import SerpipeError, UsageError
from serpipe.manifest import Manifest, open_manifest
from serpipe.manifest.schemas import RECORDINGS
from serpipe.store import failing, runs
from serpipe.store.rows import RunFacts, quarantine_rows
from serpipe.store.storage import Storage
from serpipe.testing import write_speech

ROWS = 3000


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three lists: segments of one recording in several of them, rows twice, rows that cannot be used."""
    folder = tmp_path_factory.mktemp("lists")
    lines: list[list[str]] = [[], [], []]
    for row in range(ROWS):
        lines[row % 3].append(f"s3://b/{row // 5:04}.flac,{row % 5 * 2},{row % 5 * 2 + 1},tag-{row // 5},who-{row}")
    lines[0] += lines[1][:7]  # twice, in two lists
    lines[1] += lines[1][40:45]  # twice, in one
    lines[2] += ["s3://b/0001.flac,5,2,tag-1,backwards", ",0,1,t,nowhere", "s3://b/0002.flac,0.5,nan,tag-2,never"]
    lines[2] += ["s3://b/0003.flac,70,71,another,conflict"]
    for number, rows in enumerate(lines):
        (folder / f"list-{number}.csv").write_text("\n".join(["path,start,end,etag,speaker", *rows]) + "\n")
    return open_manifest(f"{folder}/list-*.csv")


def _recordings(read: catalogue.Catalogue) -> list[dict[str, object]]:
    rows = [row for part in read.parts for row in part().to_pylist()]
    return sorted(rows, key=lambda row: row["recording_id"])


def _bad(read: catalogue.Catalogue) -> list[tuple[str, int, str]]:
    return sorted((row["source"], row["row"], row["error_code"]) for row in read.bad.to_pylist())


def test_what_a_reader_says_is_a_sentence_and_no_traceback(tmp_path: Path, ray_session: None) -> None:
    """Ray's text of an error is the traceback of its task, signed addresses in the errors of clients included."""
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"/a/{number}.wav\n" for number in range(100)))
    manifest = open_manifest(str(tmp_path / "list.csv"))
    (tmp_path / "list.csv").unlink()
    with pytest.raises(UsageError, match=r"^MANIFEST_NOT_FOUND: .*list.csv has gone since it was found$") as caught:
        catalogue.read_with_ray(manifest, Storage(str(tmp_path / "store")), "R1")
    assert caught.value.code == "MANIFEST_NOT_FOUND"


def test_in_process(manifest: Manifest) -> None:
    assert len(manifest.parts) == 3
    assert catalogue.is_small(manifest)
    read = catalogue.read_here(manifest)
    rows = _recordings(read)
    # 0003's rows name two etags, so none of them can be used.
    assert len(rows) == ROWS // 5 - 1
    assert sum(len(row["given"]) for row in rows) == ROWS - 5
    codes = [code for *_, code in _bad(read)]
    # Of the twelve rows that stand twice two are among those of 0003.
    assert codes.count("MANIFEST_DUPLICATE_SEGMENT") == 10
    assert codes.count("MANIFEST_CONFLICT") == 8
    assert len(codes) == 10 + 8 + 3
    assert read.parts[0]().schema.equals(RECORDINGS)


def test_a_parquet_file_counts_as_the_text_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed, rows that take gigabytes of memory look small."""
    rows = pa.table({"uri": [f"s3://archive/{number:06d}.mp3" for number in range(2000)]})
    pq.write_table(rows, tmp_path / "list.parquet")
    pa.csv.write_csv(rows, tmp_path / "list.csv")
    text = (tmp_path / "list.csv").stat().st_size
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", text - 1)
    assert (tmp_path / "list.parquet").stat().st_size < text
    for name in ("list.parquet", "list.csv"):
        assert not catalogue.is_small(open_manifest(str(tmp_path / name)))


@pytest.mark.usefixtures("ray_session")
def test_ray_reads_the_same(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", 0)
    monkeypatch.setattr(catalogue, "PART_BYTES", 20_000)
    assert not catalogue.is_small(manifest)
    storage = Storage(str(tmp_path))
    assert catalogue.unchanged(storage, manifest) is None
    here, there = catalogue.read_here(manifest), catalogue.read_with_ray(manifest, storage, "R1")
    assert len(there.parts) > 3
    assert sum(part().num_rows for part in there.parts) == ROWS // 5 - 1
    assert all(part().schema.names == RECORDINGS.names for part in there.parts)
    assert _recordings(there) == _recordings(here)
    assert _bad(there) == _bad(here)
    # A run that died before it knew its catalogue to be whole is not trusted.
    assert catalogue.unchanged(storage, manifest) is None
    record = runs.Run(run_id="R1", asked={"manifest_fingerprint": manifest.fingerprint})
    runs.save(storage, record)
    kept = catalogue.unchanged(storage, manifest)
    assert kept is not None
    assert _recordings(kept) == _recordings(here)
    assert _bad(kept) == _bad(here)
    runs.save(storage, runs.Run(run_id="R1", asked={"manifest_fingerprint": "another"}))
    assert catalogue.unchanged(storage, manifest) is None


@pytest.mark.usefixtures("ray_session")
def test_signed_queries_are_never_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", 0)
    lines = [f"https://host/{row}.flac?X-Amz-Signature=SECRET{row},e{row}" for row in range(40)]
    lines += ["https://host/open.flac,e", "https://host/3.flac?X-Amz-Signature=SECRETtwice,e3"]
    (tmp_path / "list.csv").write_text("\n".join(["path,etag", *lines]))
    manifest, storage = open_manifest(str(tmp_path / "list.csv")), Storage(str(tmp_path / "store"))
    read = catalogue.read_with_ray(manifest, storage, "R1")
    here = catalogue.read_here(manifest)
    assert _recordings(read) == _recordings(here)
    assert sum(row["query"] is not None for row in _recordings(read)) >= 39
    for path in (tmp_path / "store").rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path
    # Nothing to open them with was kept, so the next run has to read the manifest again.
    runs.save(storage, runs.Run(run_id="R1", asked={"manifest_fingerprint": manifest.fingerprint}))
    assert catalogue.unchanged(storage, manifest) is None


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_part_that_kills_its_worker_is_not_tried_for_ever(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", 0)
    log = str(tmp_path / "log")

    def deadly(rows: pa.Table, *_: str) -> pa.Table:
        with open(log, "a") as file:
            file.write(f"{rows['bucket'][0]}\n")
        os._exit(1)

    monkeypatch.setattr(catalogue, "_fold", deadly)
    with pytest.raises(SerpipeError, match=r"RUN_BROKEN: .* reading of .*list-\*\.csv"):
        catalogue.read_with_ray(manifest, Storage(str(tmp_path / "store")), "R1")
    tries = Counter(Path(log).read_text().split())
    assert max(tries.values()) == 1 + TASK_RETRIES


def test_bad_rows_are_refused_or_skipped(manifest: Manifest) -> None:
    read = catalogue.read_here(manifest)
    with pytest.raises(UsageError, match=r"21 rows cannot be used; .*--skip-bad-rows"):
        catalogue.check(read, skip_bad_rows=False)
    catalogue.check(read, skip_bad_rows=True)
    catalogue.check(catalogue.Catalogue(read.parts, pa.table(read.bad.slice(0, 0))), skip_bad_rows=False)


def test_bad_rows_are_logged_when_they_are_others_than_before(manifest: Manifest, tmp_path: Path) -> None:
    """By the run that meets them, before its work starts; not again by every later one."""
    storage, bad = Storage(str(tmp_path)), catalogue.read_here(manifest).bad
    twice = bad.filter(pc.equal(bad["error_code"], "MANIFEST_DUPLICATE_SEGMENT"))
    for run, rows in (("R1", twice), ("R2", bad), ("R3", bad)):
        facts = RunFacts(run_id=run, audio="a", models={})
        failing.log_manifest(storage, run, manifest.location, quarantine_rows(label._bad(rows), facts))
    logged = [row for name in storage.list("quarantine/") for row in pq.read_table(storage.path(name)).to_pylist()]
    assert [row["run_id"] for row in logged] == ["R1"] * 10 + ["R2"] * bad.num_rows
    assert sorted(row["code"] for row in logged[10:]) == sorted(bad["error_code"].to_pylist())
    assert {row["stage"] for row in logged} == {"manifest"}


def test_folders_are_read_here_however_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_speech(tmp_path / "a.wav", seconds=1.0)
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", 0)
    assert catalogue.is_small(open_manifest(str(tmp_path)))


AGAIN = """
import sys, serpipe
from serpipe.engine import catalogue
catalogue.IN_PROCESS_BYTES = 0
result = serpipe.label(sys.argv[1], sys.argv[2], segmentation="whole", speech=False)
assert (result.run_id, result.done_before) == (None, 1), result
assert "ray" not in sys.modules and "torch" not in sys.modules
"""


def _again(manifest: Path, store: str) -> None:
    subprocess.run([sys.executable, "-c", AGAIN, str(manifest), store], check=True, timeout=100)


@pytest.mark.usefixtures("ray_session")
def test_a_large_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it brought no work: the archive is the one that another list labelled before."""
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", 0)
    write_speech(tmp_path / "a.wav", seconds=2.0)
    (tmp_path / "list.csv").write_text("path\na.wav\n")
    (tmp_path / "other.csv").write_text("path,speaker\na.wav,ann\n")
    store = str(tmp_path / "store")
    first = serpipe.label(str(tmp_path / "list.csv"), store, segmentation="whole", speech=False)
    assert (first.recordings, first.done_before) == (1, 0)
    _again(tmp_path / "list.csv", store)
    second = serpipe.label(str(tmp_path / "other.csv"), store, segmentation="whole", speech=False)
    assert (second.run_id, second.recordings, second.done_before) == (None, 0, 1)
    _again(tmp_path / "other.csv", store)
    found = serpipe.open(store).runs()
    states = [(run.state, run.result["recordings"], run.manifest.rsplit("/", 1)[1]) for run in found]
    assert states == [("finished", 1, "list.csv"), ("finished", 0, "other.csv")]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_replaced_file_of_a_large_unchanged_manifest_is_seen_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "IN_PROCESS_BYTES", 0)
    write_speech(tmp_path / "a.wav", seconds=2.0)
    (tmp_path / "list.csv").write_text("path\na.wav\n")

    def night(**options: bool) -> serpipe.Result:
        return serpipe.label(
            str(tmp_path / "list.csv"), str(tmp_path / "store"), segmentation="whole", speech=False, **options
        )

    assert night().recordings == 1
    write_speech(tmp_path / "a.wav", seconds=3.0, seed=1)
    assert night().run_id is None
    assert night(recheck=True).recordings == 1
    assert serpipe.open(str(tmp_path / "store")).recordings()["duration_s"].to_pylist() == [3.0]
    assert night().run_id is None, "the newest catalogue of the list is the one that was asked for"
