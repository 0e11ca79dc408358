"""The night's exit code where a job is tried again: that of all its tries together, and of no other night."""

from __future__ import annotations

import runpy
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from serpipe import plan
from serpipe.cli import main
from serpipe.engine import careful, tries
from serpipe.store import closing, commit, plans, runs, version
from serpipe.store.rows import RunFacts
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests import faults
from tests.conftest import ROOT
from tests.faults.world import Recording, World

NIGHTLY = runpy.run_path(str(ROOT / "jobs" / "nightly.py"))

MANIFEST = "s3://bucket/night.csv"


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty store, and models that refuse no segment."""
    monkeypatch.setattr(faults.world, "refuses", lambda *_: False)
    storage = Storage(str(tmp_path / "store"))
    version.check(storage)
    return storage


def attempt(storage: Storage, world: World, *, settles: int | None = None, **facts: object) -> str:
    """A run on `MANIFEST`; one that settles only so many recordings is killed behind them."""
    closing.close_interrupted(storage)
    run_id = runs.new_run_id()
    wanted = {"audio": world.audio, "models": world.models}
    todo = plan.make_plan(storage, run_id, [world.catalogue], **wanted, by_length=False)  # type: ignore[arg-type]
    told: dict[str, object] = {"manifest": MANIFEST, "started": runs.now(), **wanted, **facts}
    record = runs.Run(run_id=run_id, **told)  # type: ignore[arg-type]
    runs.save(storage, record)
    if todo.left:
        rows = pa.concat_tables(plans.groups(storage, run_id)).slice(0, settles)
        for ready in world.commits(RunFacts(run_id=run_id, **wanted), rows):  # type: ignore[arg-type]
            commit.write(storage, ready)
    if settles is None:
        runs.finish(storage, record)
    return run_id


def archive(*, good: int, broken: int) -> World:
    return World().add(
        *(Recording(uri=f"/a/{n:03}.wav", units=(), ends="failed") for n in range(broken)),
        *(Recording(uri=f"/b/{n:03}.wav", units=(1,)) for n in range(good)),
    )


def before(storage: Storage, *, shard: str = "", night: str | None = None) -> list[str]:
    return tries.before(runs.load(storage), manifest=MANIFEST, shard=shard, night=night)


def test_what_a_killed_try_settled_counts(storage: Storage) -> None:
    """Sixty of a hundred are settled, forty of them failed, before the first try dies; the second is all good."""
    world = archive(good=60, broken=40)
    killed = attempt(storage, world, settles=60)
    assert before(storage) == [killed]
    last = attempt(storage, world)
    assert tries.together(storage, [last]) == tries.Together(40, 0)
    assert tries.together(storage, [killed, last]) == tries.Together(100, 40)


def test_a_try_that_found_nothing_left_counts_what_was_settled_before(storage: Storage) -> None:
    world = archive(good=3, broken=2)
    killed = attempt(storage, world, settles=5)
    assert tries.together(storage, [*before(storage), "without-a-plan"]) == tries.Together(5, 2)
    assert before(storage) == [killed]
    attempt(storage, world)
    assert before(storage) == [], "the run that found nothing left has answered for it"


def test_a_night_that_went_well_in_the_end_is_not_held_against_its_tries(storage: Storage) -> None:
    """What failed for now in the first try, and was labelled by the second."""
    world = World().add(*(Recording(uri=f"/a/{n}.wav", units=(), ends="open") for n in range(4)))
    first = attempt(storage, world, settles=4)
    assert tries.together(storage, [first]) == tries.Together(4, 4)
    world.add(*(Recording(uri=f"/a/{n}.wav", units=(1,)) for n in range(4)))
    assert tries.together(storage, [first, attempt(storage, world)]) == tries.Together(4, 0)


def test_a_night_is_answered_for_by_itself_alone(storage: Storage) -> None:
    """One bad night of a manifest without a date in its name; the empty ones that follow are good."""
    world = archive(good=1, broken=3)
    bad = attempt(storage, world, asked={"night": "2026-11-20"})
    assert before(storage, night="2026-11-20") == [bad], "tried again, it keeps its exit code"
    assert before(storage, night="2026-11-21") == []
    assert before(storage) == []


def test_tries_are_of_one_manifest_and_one_shard(storage: Storage) -> None:
    world = archive(good=1, broken=1)
    killed = attempt(storage, world, settles=1, shard="0/2")
    other = attempt(storage, world, settles=0, manifest="s3://bucket/other.csv")
    assert before(storage, shard="0/2") == [killed]
    assert before(storage, shard="1/2") == before(storage) == []
    assert tries.before(runs.load(storage), manifest="s3://bucket/other.csv", shard="", night=None) == [other]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_nights_and_their_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, store = tmp_path / "archive", str(tmp_path / "store")
    for number in range(2):
        write_speech(folder / f"{number}.wav", seconds=2.0, seed=number)
        (folder / f"{number}.mp3").write_text("<html>404</html>")

    def night(date: str) -> int:
        words = [str(folder), store, "--date", date, "--segment=whole", "--no-speech-share", "--max-failed=0.3"]
        return int(CliRunner().invoke(NIGHTLY["nightly"], words).exit_code)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(careful, "finish", die)
        assert night("2026-11-20") == 1
    assert [run.state for run in runs.load(Storage(store))] == ["stopped"]
    assert night("2026-11-20") == 3, "nothing was left, and half is in quarantine"
    assert night("2026-11-20") == 3
    assert night("2026-11-21") == 0
    write_speech(folder / "new.wav", seconds=2.0, seed=9)
    assert night("2026-11-22") == 0, "one recording, and it is good"


def test_a_submitted_job_labels_the_night_that_it_is_for(tmp_path: Path) -> None:
    """Which is not the day that it runs on, where it was submitted for another one or has crossed midnight."""
    words = [str(tmp_path / "{date}.csv"), str(tmp_path / "store")]
    told = CliRunner().invoke(NIGHTLY["nightly"], words, env={"SERPIPE_NIGHT": "2026-11-19"})
    assert "2026-11-19.csv" in told.output
    told = CliRunner().invoke(NIGHTLY["nightly"], [*words, "--date", "2026-11-18"], env={"SERPIPE_NIGHT": "2026-11-19"})
    assert "2026-11-18.csv" in told.output


def test_a_shard_that_is_none_is_refused_by_label(tmp_path: Path) -> None:
    night = [str(tmp_path / "archive"), str(tmp_path / "store"), "--shard=2/2"]
    assert CliRunner().invoke(NIGHTLY["nightly"], night).exit_code == 2


def test_skipped_rows_are_told_where_nothing_else_is_to_do(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,start,end\n" + "a.wav,5,2\n" * 1000)
    done = CliRunner().invoke(main, ["label", str(tmp_path / "list.csv"), str(tmp_path / "store"), "--skip-bad-rows"])
    assert done.exit_code == 0, done.output
    assert "1,000 manifest rows are in quarantine: `serpipe failures " in done.stdout
