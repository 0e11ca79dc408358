"""Every planted damage is found, says what it is, and is mended by the run that follows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from serpipe.cli import main
from serpipe.engine import catalogue
from serpipe.errors import StoreError
from serpipe.manifest import open_manifest
from serpipe.pseudolabel import schemas as generations
from serpipe.store import commit, damage, layout, ledger, mend, parquet, rewrite, runs, schemas, summary
from serpipe.store.gc import gc
from serpipe.store.lease import Lease
from serpipe.store.reading import Store
from serpipe.store.retry import retry
from serpipe.store.storage import Storage
from serpipe.store.verify import Verified, verify
from tests.bench import Bench
from tests.faults.contents import failing
from tests.faults.world import World
from tests.store.worlds import bytes_of, contents, memory, small, two_runs
from tests.tables import assert_same


def mended(storage: Storage, world: World) -> mend.Mended | None:
    """What `label` does first, and then the labelling."""
    with Lease(storage, "R"):
        done = mend.mend(storage)
    world.label(storage)
    return done


def first(storage: Storage, prefix: str) -> str:
    return storage.list(prefix)[0]


def codes(found: Verified) -> set[str]:
    return {finding.code for finding in found.findings}


def test_a_whole_store_is_clean() -> None:
    _, storage = two_runs()
    before = bytes_of(storage)
    found = verify(storage)
    assert found.findings == ()
    tables = ("recordings", "segments", "predictions", "embeddings", "frames", "quarantine")
    names = [name for table in tables for name in before if name.startswith(f"{table}/")]
    names += [name for name in before if name.startswith("runs/") and name.endswith(".parquet")]
    assert found.files == len(names)
    assert found.size == sum(len(before[name]) for name in names)
    assert found.predictions == len(contents(storage)[0]["predictions"])
    assert found.entries == ledger.load(storage).num_rows
    assert bytes_of(storage) == before


def cut(storage: Storage, name: str) -> None:
    storage.put(name, storage.get(name)[:-3])


def flipped(storage: Storage, name: str) -> None:
    data = bytearray(storage.get(name))
    data[len(data) // 3] ^= 4
    storage.put(name, bytes(data))


def emptied(storage: Storage, name: str) -> None:
    storage.put(name, b"")


def swapped(storage: Storage, name: str) -> None:
    other = next(there for there in storage.list(name.rsplit("/", 1)[0] + "/") if there != name)
    storage.put(name, storage.get(other))


def lost(storage: Storage, name: str) -> None:
    storage.delete(name)


HARMS: dict[str, Callable[[Storage, str], None]] = {
    harm.__name__: harm for harm in (cut, flipped, emptied, swapped, lost)
}
FOLDERS = (
    "recordings/",
    "segments/audio=a1/",
    "predictions/model=m1/",
    "predictions/model=m2/",
    "embeddings/model=m1/",
    "frames/model=m2/",
    "quarantine/",
    "ledger/",
)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_found_and_mended_by_the_next_run(folder: str, harm: str) -> None:
    world, storage = two_runs()
    calm = contents(storage)
    name = max(storage.list(folder), key=lambda name: len(storage.get(name)))
    HARMS[harm](storage, name)
    found = verify(storage)
    assert found.findings
    if harm == "lost":
        wanted = {
            "recordings/": "RECORDINGS_DIFFER",
            "segments/audio=a1/": "SEGMENTS_DIFFER",
            "quarantine/": "FAILURES_UNTOLD",
            "ledger/": "LEDGER_LACKS",
        }
        assert wanted.get(folder, "FILE_MISSING") in codes(found)
    elif folder == "ledger/":
        assert "LEDGER_DAMAGED" in codes(found)
    else:
        assert {finding.code for finding in found.findings if finding.file == name} == {
            "FILE_SWAPPED" if harm == "swapped" else "FILE_DAMAGED"
        }
    done = mended(storage, world)
    assert done is not None
    assert done.findings
    assert contents(storage) == calm
    assert verify(storage).findings == ()
    assert not storage.exists(damage.MARKS)


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_one_bit_anywhere_is_found(place: int) -> None:
    """In pages, page headers, statistics, facts and the footer's own length."""
    _, storage = two_runs()
    name = first(storage, "predictions/model=m1/")
    data = bytearray(storage.get(name))
    at = len(data) * place // 100
    data[at] ^= 1 << place % 8
    storage.put(name, bytes(data))
    assert [finding.file for finding in verify(storage).findings if finding.code == "FILE_DAMAGED"] == [name], at


def rewritten(storage: Storage, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """A file that serpipe wrote, whole, with other rows."""
    rows, facts = rewrite._read(storage, name)
    parquet.write(storage, name, change(rows), rows.schema, facts)


def test_rows_that_are_missing_or_twice_in_whole_files() -> None:
    for folder, code in (
        ("predictions/model=m2/", "ROWS_DIFFER"),
        ("embeddings/model=m2/", "ROWS_DIFFER"),
        ("segments/", "SEGMENTS_DIFFER"),
        ("recordings/", "RECORDINGS_DIFFER"),
    ):
        world, storage = two_runs()
        calm = contents(storage)
        name = first(storage, folder)
        rewritten(storage, name, lambda rows: rows.slice(1))
        assert code in codes(verify(storage)), folder
        assert mended(storage, world)
        assert contents(storage)[:2] == calm[:2], folder
        rewritten(storage, first(storage, folder), lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))
        assert "ROWS_TWICE" in codes(verify(storage)), folder
        assert mended(storage, world)
        assert contents(storage)[:2] == calm[:2], folder
        assert verify(storage).findings == ()


def test_embeddings_of_other_segments_are_found() -> None:
    _, storage = two_runs()
    name = first(storage, "embeddings/model=m1/")

    def others(rows: pa.Table) -> pa.Table:
        ids = [bytes(reversed(name)) for name in rows["segment_id"].to_pylist()]
        return rows.set_column(0, rows.schema.field(0), pa.array(ids, schemas.ID))

    rewritten(storage, name, others)
    assert [(finding.code, finding.file) for finding in verify(storage).findings] == [("ROWS_DIFFER", name)]


def test_another_schema_is_found() -> None:
    world, storage = two_runs()
    calm = contents(storage)
    name = first(storage, "recordings/")
    rows, facts = rewrite._read(storage, name)
    rows = rows.drop_columns(["uri"])
    parquet.write(storage, name, rows, rows.schema, facts)
    assert "FILE_SCHEMA" in codes(verify(storage))
    mended(storage, world)
    assert contents(storage)[:2] == calm[:2]


def test_files_that_no_entry_vouches_for_go() -> None:
    """What a worker wrote that outlived its run, after another had closed it."""
    world, storage = two_runs()
    calm = contents(storage)
    before = set(storage.list(""))
    facts = next(iter(runs.load(storage)))
    stray = f"{facts.run_id}-00112233aabbccdd"
    for name, schema in (
        (layout.segments("a1", stray), schemas.SEGMENTS),
        (layout.recordings(stray), schemas.RECORDINGS),
        (layout.embeddings("m1", "f1", stray), schemas.embeddings(4)),
    ):
        folder = name.rsplit("/", 1)[0]
        rows, said = rewrite._read(storage, first(storage, f"{folder}/"))
        parquet.write(storage, name, rows, schema, said)
    name = first(storage, "predictions/model=m1/")
    rows, said = rewrite._read(storage, name)
    settled = parquet.unpack_table(said["settled"])
    settled = settled.set_column(settled.column_names.index("commit"), "commit", pa.array([stray] * len(settled)))
    said |= {"settled": parquet.pack_table(settled)}
    parquet.write(storage, layout.predictions("m1", "f1", stray), rows, schemas.PREDICTIONS, said)
    found = verify(storage)
    assert {finding.file for finding in found.findings} == {
        layout.segments("a1", stray), layout.recordings(stray), layout.embeddings("m1", "f1", stray),
        layout.predictions("m1", "f1", stray),
    }  # fmt: skip
    assert codes(found) == {"FILE_ORPHAN"}
    done = mended(storage, world)
    assert done is not None
    assert (done.files, done.units) == (4, 0)
    assert {name for name in storage.list("") if "lease" not in name} == {
        name for name in before if "lease" not in name
    }
    assert contents(storage) == calm


def test_what_an_open_run_has_written_is_not_judged() -> None:
    _, storage = two_runs()
    record = runs.Run(run_id=runs.new_run_id(), started=runs.now(), audio="a1", models={"m1": "f1"})
    runs.save(storage, record)
    name = layout.segments("a1", f"{record.run_id}-00112233aabbccdd")
    rows, facts = rewrite._read(storage, first(storage, "segments/"))
    parquet.write(storage, name, rows, schemas.SEGMENTS, facts)
    assert verify(storage).findings == ()
    runs.finish(storage, record)
    assert [finding.file for finding in verify(storage).findings] == [name]


def test_units_that_two_commits_settle_are_labelled_again() -> None:
    """A worker that outlived its run, and whose commit was adopted."""
    world, storage = two_runs()
    calm = contents(storage)
    rows = pa.concat_tables(world_rows(world))
    from serpipe.store.rows import RunFacts

    run = runs.new_run_id()
    runs.save(storage, runs.Run(run_id=run, started=runs.now(), audio="a1", models={"m1": "f1"}))
    zombie = next(world.commits(RunFacts(run_id=run, audio="a1", models={"m1": "f1"}), rows))
    commit.write(storage, zombie)
    runs.finish(storage, runs.load(storage)[-1])
    found = verify(storage)
    assert "ROWS_TWICE" in codes(found)
    assert mended(storage, world)
    assert contents(storage)[:2] == calm[:2]
    assert verify(storage).findings == ()


def world_rows(world: World) -> list[pa.Table]:
    """A plan in which nothing is settled."""
    from serpipe import plan
    from serpipe.store import plans, version

    fresh = memory()
    version.check(fresh)
    plan.make_plan(
        fresh, "R", [world.catalogue], audio="a1", models={"m1": "f1"}, by_length=False
    )  # fmt: skip
    return list(plans.groups(fresh, "R"))


def test_a_ledger_that_differs_from_the_footers_follows_them() -> None:
    world, storage = two_runs()
    calm = contents(storage)
    name = max(storage.list("ledger/"), key=lambda name: len(storage.get(name)))
    rows, facts = rewrite._read(storage, name)
    wrong = rows.set_column(
        rows.column_names.index("rows"), rows.schema.field("rows"), pc.add(rows["rows"], pa.scalar(1, pa.int32()))
    )
    parquet.write(storage, name, pa.concat_tables([wrong.slice(1), wrong.slice(1, 0)]), schemas.LEDGER, facts)
    found = verify(storage)
    assert codes(found) == {"LEDGER_DIFFERS"}
    done = mended(storage, world)
    assert done is not None
    assert done.units == 0
    assert contents(storage) == calm


def test_a_compacted_ledger_is_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MANY_PARTS", 0)
    world, storage = two_runs()
    ledger.compact(storage)
    calm = contents(storage)
    (name,) = storage.list("ledger/")
    flipped(storage, name)
    assert codes(verify(storage)) == {"LEDGER_DAMAGED"}
    done = mended(storage, world)
    assert done is not None
    assert done.units == 0
    assert contents(storage) == calm
    ledger.compact(storage)
    assert contents(storage) == calm


@pytest.mark.parametrize("harm", [cut, flipped, emptied, swapped])
def test_a_catalogue_that_is_damaged_is_made_again(harm: Callable[[Storage, str], None], tmp_path: Path) -> None:
    """All of it, for half a catalogue would be recordings that no run ever meets."""
    world, storage = two_runs()
    (tmp_path / "m.csv").write_text("uri\n/feed/long.wav\n")
    manifest = open_manifest(str(tmp_path / "m.csv"))
    run = runs.load(storage)[0]
    runs.save(storage, replace(run, asked={"manifest_fingerprint": manifest.fingerprint}))
    for bucket in range(2):
        name = f"runs/{run.run_id}/catalogue/{bucket:05d}.parquet"
        rows = world.catalogue().slice(bucket * 2, 2)
        parquet.write(storage, name, rows, catalogue.STORED, {"signed": "no"})
    assert verify(storage).findings == ()
    stored = catalogue.unchanged(storage, manifest)
    assert stored is not None
    assert sum(part().num_rows for part in stored.parts) == 4
    harm(storage, name)
    found = verify(storage)
    assert codes(found) == {"RUN_DAMAGED"}
    assert {finding.file for finding in found.findings} == set(storage.list(f"runs/{run.run_id}/catalogue/"))
    if harm is cut:
        with pytest.raises(StoreError, match=rf"STORE_DAMAGED: .*{name} cannot be read.*`serpipe verify"):
            catalogue.unchanged(storage, manifest)
    assert mended(storage, world) == mend.Mended(2, 0, 2)
    assert catalogue.unchanged(storage, manifest) is None
    assert verify(storage).findings == ()


def test_a_plan_that_is_damaged_is_told_and_goes() -> None:
    world, storage = two_runs()
    for name in storage.list("runs/"):
        if name.endswith("plan.parquet"):
            cut(storage, name)
    with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*plan\.parquet cannot be read.*`serpipe verify"):
        summary.status(Store(storage))
    assert codes(verify(storage)) == {"RUN_DAMAGED"}
    mended(storage, world)
    assert summary.status(Store(storage)).recordings == 3
    assert verify(storage).findings == ()


def test_pseudo_labels_that_are_damaged_are_told() -> None:
    _, storage = two_runs()
    rows = generations.PSEUDO_LABELS.empty_table()
    for place in range(2):
        parquet.write(storage, generations.part(1, place), rows, generations.PSEUDO_LABELS, {})
    cut(storage, generations.part(1, 1))
    assert verify(storage).findings == (), "it was not made to its end"
    storage.put(generations.record(1), b"{}")
    (finding,) = verify(storage).findings
    assert (finding.code, finding.file) == ("GENERATION_DAMAGED", generations.part(1, 1))
    assert "`serpipe pseudolabel`" in finding.message
    storage.put(generations.record(1), b"{")
    assert len(verify(storage).findings) == 2
    assert not storage.exists(damage.MARKS)


def test_a_passport_that_is_gone_is_told() -> None:
    _, storage = two_runs()
    name = first(storage, "predictions/model=m1/")
    rows, facts = rewrite._read(storage, name)
    parquet.write(storage, name, rows, schemas.PREDICTIONS, facts | {"passport": "00ff"})
    (finding,) = verify(storage).findings
    assert finding.code == "PASSPORT_MISSING"
    assert "model m1, fp f1" in finding.message
    assert not storage.exists(damage.MARKS)


def test_why_something_failed_is_not_lost() -> None:
    """Whichever file of quarantine is damaged or gone: what failed is tried again and says why, or it is no failure."""
    world, storage = two_runs()
    calm, before = contents(storage), bytes_of(storage)
    assert len(calm[2]) > 3
    for name in storage.list("quarantine/"):
        for harm in (flipped, lost):
            harm(storage, name)
            found = verify(storage)
            assert codes(found) >= {"FAILURES_UNTOLD"}
            assert {finding.file for finding in found.findings} <= {name, ""}
            assert mended(storage, world)
            assert contents(storage) == calm
            assert verify(storage).findings == ()
            restored(storage, before)


def restored(storage: Storage, before: dict[str, bytes]) -> None:
    for name in storage.list(""):
        storage.delete(name)
    for name, data in before.items():
        storage.put(name, data)


def test_why_segments_failed_before_any_model_is_not_lost(
    bench: Bench, calm: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Silent and short ones, told once for all models, or once for each."""
    whole = Storage(calm[0])
    told = failing(Store(whole))
    assert {row[6] for row in told} == {"AUDIO_UNDECODABLE", "SEGMENT_SILENT", "SEGMENT_TOO_SHORT"}
    assert verify(whole).findings == ()
    for place, name in enumerate(whole.list("quarantine/")):
        storage = Storage(str(tmp_path / str(place)))
        shutil.copytree(calm[0], storage.root)
        storage.delete(name)
        assert codes(verify(storage)) == {"FAILURES_UNTOLD"}
        mend.mend(storage)
        assert bench.run(storage)
        assert failing(Store(storage)) == told
        assert verify(storage).findings == ()
    assert place > 2


def test_retry_finds_what_failed_behind_a_damaged_log() -> None:
    world, storage = small(), memory()
    world.label(storage)
    before = retry(Store(storage)).codes
    world.label(storage)
    for name in storage.list("quarantine/"):
        cut(storage, name)
    verify(storage)
    mended(storage, world)
    assert retry(Store(storage)).codes == before


def test_marks_are_those_of_the_last_verification() -> None:
    _, storage = two_runs()
    name = first(storage, "predictions/model=m1/")
    whole = storage.get(name)
    cut(storage, name)
    assert len(verify(storage).findings) == len(verify(storage).findings) == len(damage.marks(storage)) == 1
    storage.put(name, whole)
    assert verify(storage).findings == ()
    assert not storage.exists(damage.MARKS)


def test_what_was_made_good_since_is_not_touched() -> None:
    """Somebody put the right file back after the verification."""
    world, storage = two_runs()
    name = first(storage, "predictions/model=m1/")
    whole = storage.get(name)
    cut(storage, name)
    verify(storage)
    storage.put(name, whole)
    before = bytes_of(storage, "predictions/")
    done = mended(storage, world)
    assert done == mend.Mended(0, 0, 0)
    assert bytes_of(storage, "predictions/") == before
    assert not storage.exists(damage.MARKS)


def test_marks_hold_whatever_path_leads_to_the_store(tmp_path: Path) -> None:
    """Verified on a host, labelled in a container that has the same folder elsewhere."""
    world, storage = small(), Storage(str(tmp_path / "data"))
    world.label(storage)
    calm = contents(storage)
    cut(storage, first(storage, "predictions/"))
    assert verify(storage).findings
    (tmp_path / "mounted").symlink_to(tmp_path / "data")
    elsewhere = Storage(str(tmp_path / "mounted"))
    done = mended(elsewhere, world)
    assert done is not None
    assert done.findings
    assert contents(elsewhere) == calm
    assert verify(storage).findings == ()


def test_nothing_marked_is_nothing_to_mend() -> None:
    _, storage = two_runs()
    assert mend.mend(storage) is None


def test_a_rewrite_that_was_interrupted_is_finished_first() -> None:
    _, storage = two_runs()
    storage.put(f"{rewrite.FOLDER}x.json", b"{}")
    with pytest.raises(StoreError, match=r"STORE_REWRITING: .*`serpipe label`"):
        verify(storage)


def test_a_damaged_store_says_so_to_readers() -> None:
    _, storage = two_runs()
    cut(storage, first(storage, "predictions/model=m1/"))
    with pytest.raises(StoreError, match=r"STORE_DAMAGED: .*serpipe verify"):
        Store(storage).predictions()


def test_the_command_tells_and_the_next_run_mends(bench: Bench, calm: tuple[str, list[str]], tmp_path: Path) -> None:
    """On disk, with real decoding and models."""
    storage = Storage(str(tmp_path / "store"))
    bench.run(storage)
    clean = CliRunner().invoke(main, ["verify", storage.root])
    assert clean.exit_code == 0, clean.output
    assert clean.output.endswith(" 0 findings\n")
    name = max(storage.list("frames/"), key=lambda name: len(storage.get(name)))
    cut(storage, name)
    told = CliRunner().invoke(main, ["verify", storage.root])
    assert told.exit_code == 1
    assert told.output.startswith(f"FILE_DAMAGED {name}: it is cut off")
    assert "the next `serpipe label`" in told.output
    assert len(damage.marks(storage)) == 1
    with Lease(storage, "R"):
        mend.mend(storage)
    assert bench.run(storage)
    assert_same(calm[0], storage.root, but_for=("quarantine",))
    assert CliRunner().invoke(main, ["verify", storage.root]).exit_code == 0


def test_over_s3(bucket: str) -> None:
    world, storage = small(), Storage(f"{bucket}/verified")
    del world.recordings["/other/broken.wav"]
    world.label(storage)
    calm = contents(storage)
    assert verify(storage).findings == ()
    for folder in ("predictions/", "segments/"):
        cut(storage, first(storage, folder))
    assert len(verify(storage).findings) == 3  # the segments' file, and that its rows are missing
    done = mended(storage, world)
    assert done is not None
    assert done.units
    assert contents(storage)[:2] == calm[:2]
    assert verify(storage).findings == ()
    world.models = {"m1": "f2"}
    world.label(storage, relabel=True)
    assert gc(Store(storage)).partitions
    assert storage.list("predictions/model=m1/fp=f1/") == []
    assert verify(storage).findings == ()
