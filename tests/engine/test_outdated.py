"""Labels of today's fingerprints that today's run would make otherwise are told of, and made again when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import serpipe
from serpipe import plan
from serpipe.engine import outdated
from serpipe.engine.planning import plan_ahead
from serpipe.engine.request import Cut
from serpipe.errors import UsageError
from serpipe.manifest.schemas import RECORDINGS
from serpipe.models.registry import resolve
from serpipe.store import commit, runs, schemas, version
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.tables import read

CUT = Cut("given", "mix")
MODEL = resolve("embedded")
OTHER = "mel-statistics"

Times = Sequence[tuple[float, float | None]]


def catalogue(*lists: Times) -> pa.Table:
    rows = [
        {
            "recording_id": number.to_bytes(16),
            "uri": f"s3://b/{number}.wav",
            "meta": [],
            "given": [{"start_s": start, "end_s": end, "meta": []} for start, end in times],
        }
        for number, times in enumerate(lists)
    ]
    return pa.Table.from_pylist(rows, schema=RECORDINGS)


class Nights:
    """A store, and runs on it that are not carried out but settle what they are told to.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(str(folder))
        version.check(self.storage)

    def night(self, run: str, recordings: pa.Table, settles: Sequence[int], **told: Any) -> None:
        models, status = told.get("models", {MODEL.name: MODEL.fp}), told.get("status", "labelled")
        wanted = {"audio": CUT.audio, "models": models}
        plan.make_plan(self.storage, run, [lambda: recordings], **wanted, by_length=True)
        asked = {"embeddings": told.get("embeddings", "utterance")}
        runs.finish(self.storage, runs.Run(run_id=run, asked=asked, **wanted))
        rows = [
            {"recording_id": number.to_bytes(16), "unit": 0, "final": True, "model": model, "fp": fp}
            | {"audio": CUT.audio, "status": status, "segments": 1, "rows": 1, "commit": f"{run}-0"}
            for number in settles
            for model, fp in models.items()
        ]
        commit.index(self.storage, f"{run}-0", [pa.Table.from_pylist(rows, schema=schemas.LEDGER)])

    def found(self, recordings: pa.Table, **wanted: Any) -> tuple[list[int], tuple[str, ...]]:
        """Recordings to be made again, and what is said."""
        asked = {"cut": CUT, "models": [MODEL], "embeddings": "utterance", "relabel": False} | wanted
        old = outdated.find(self.storage, runs.load(self.storage), [lambda: recordings], **asked)
        return sorted({int.from_bytes(name) for name in old.units["recording_id"].to_pylist()}), old.sentences


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def test_changed_given_segments_are_told_and_made_again_when_asked_for(nights: Nights) -> None:
    nights.night("R1", catalogue([(0, 2)], [(0, 2), (3, None)], [(1, 2)]), settles=[0, 1, 2])
    assert nights.found(catalogue([(0, 2)], [(0, 2), (3, None)], [(1, 2)])) == ([], ())
    today = catalogue([(0, 2), (4, 6)], [(0, 2), (3, 5)], [(1, 2)])
    told = "2 recordings keep labels of other given segments than today's; --relabel labels them again"
    assert nights.found(today) == ([], (told,))
    assert nights.found(today, relabel=True) == ([0, 1], ())
    _, (of_shard,) = nights.found(today, relabel=True, whole=False)
    assert of_shard.endswith("; --relabel without --shard labels them again")


def test_what_counts_is_the_run_that_settled_it(nights: Nights) -> None:
    """The first run planned it and was killed before it; the second had today's list."""
    nights.night("R1", catalogue([(0, 2)], [(0, 1)]), settles=[1])
    nights.night("R2", catalogue([(0, 2), (4, 6)], [(0, 1)]), settles=[0])
    assert nights.found(catalogue([(0, 2), (4, 6)], [(0, 1)])) == ([], ())


def test_what_failed_for_good_has_no_labels_to_keep(nights: Nights) -> None:
    nights.night("R1", catalogue([(0, 2)]), settles=[0], status="failed")
    assert nights.found(catalogue([(0, 3)])) == ([], ())


def test_segments_that_other_models_have_labelled_stay_until_these_are_named_too(nights: Nights) -> None:
    nights.night("R1", catalogue([(0, 2)]), settles=[0], models={MODEL.name: MODEL.fp, OTHER: resolve(OTHER).fp})
    today = catalogue([(0, 3)])
    told = (
        "1 recording keeps labels of other given segments than today's; --relabel with --model mel-statistics too "
        "labels it again"
    )
    assert nights.found(today, relabel=True) == ([], (told,))
    assert nights.found(today, relabel=True, models=[MODEL, resolve(OTHER)]) == ([0], ())


def test_labels_without_the_embeddings_asked_for_are_told(nights: Nights) -> None:
    recordings = catalogue([(0, 2)], [(0, 2)])
    nights.night("R1", recordings, settles=[0], embeddings="none")
    nights.night("R2", recordings, settles=[1])
    told = (
        "embedded: 1 recording keeps labels without utterance embeddings, which are asked for today; --relabel labels "
        "it again"
    )
    assert nights.found(recordings) == ([], (told,))
    assert nights.found(recordings, relabel=True) == ([0], ())
    assert nights.found(recordings, embeddings="none") == ([], ())


def test_a_forecast_counts_what_will_be_made_again(tmp_path: Path) -> None:
    write_speech(tmp_path / "a.wav", seconds=10.0)
    listed = tmp_path / "list.csv"
    listed.write_text("uri,start,end\na.wav,0,2\n")
    recordings = serpipe.read_manifest(str(listed))
    Nights(tmp_path / "store").night("R1", recordings, settles=[int.from_bytes(recordings["recording_id"][0].as_py())])
    listed.write_text("uri,start,end\na.wav,0,2\na.wav,4,6\n")

    def told(**options: bool) -> tuple[int, int]:
        found = plan_ahead(str(listed), str(tmp_path / "store"), rehearse_s=1.0, speech=False, **options)
        return found.work.recordings, round(found.segments.value)

    assert told() == (0, 0)
    assert told(relabel=True) == (1, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_list_that_grows_segments_and_embeddings(tmp_path: Path) -> None:
    write_speech(tmp_path / "a.wav", seconds=10.0)
    store, listed = str(tmp_path / "store"), tmp_path / "list.csv"

    def night(*times: str, **options: Any) -> serpipe.Result:
        listed.write_text("\n".join(["uri,start,end", *(f"a.wav,{time}" for time in times)]) + "\n")
        return serpipe.label(str(listed), store, speech=False, **options)

    assert night("0,2", embeddings="none").predictions == 1
    known = night("0,2", "4,6", embeddings="none")
    assert (known.run_id, known.done_before) == (None, 1)
    assert known.kept == ("1 recording keeps labels of other given segments than today's; --relabel labels it again",)
    again = night("0,2", "4,6", embeddings="none", relabel=True)
    assert (again.recordings, again.predictions, again.kept) == (1, 2, ())
    tables = serpipe.open(store)
    assert tables.predictions()["start_s"].to_pylist() == [0.0, 4.0]
    assert read(store, "segments").num_rows == read(store, "predictions").num_rows == 2
    for refused, code in (({"pools": ["typo"]}, "POOL_UNKNOWN"), ({"decoders": 99}, "CLUSTER_TOO_FEW_CPUS")):
        with pytest.raises(UsageError, match=code):
            night("0,2", "4,6", relabel=True, **refused)
        assert serpipe.open(store).predictions().num_rows == 2, "what cannot be done takes nothing away"
    assert "without utterance embeddings" in night("0,2", "4,6").kept[0]
    assert night("0,2", "4,6", relabel=True).predictions == 2
    assert serpipe.open(store).embeddings("embedded").num_rows == read(store, "predictions").num_rows == 2
    last = night("0,2", "4,6")
    assert (last.run_id, last.kept) == (None, ())
