"""What a whole model hears in training is what was labelled: the mix where a mix was labelled, each recording once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import serpipe
from serpipe import remote
from serpipe.audio.child import ChildDecoder
from serpipe.audio.decode import Channels
from serpipe.errors import AudioError, UsageError
from serpipe.pseudolabel.export.clips import sure_of
from serpipe.pseudolabel.heard import SEGMENT, cut, digest, located
from serpipe.store.storage import Storage
from serpipe.testing import write_speech
from tests.bench import Bench
from tests.pseudolabel.exporting import heard


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("heard")
    for seed in range(3):
        write_speech(folder / "archive" / f"{seed}.wav", seconds=8.0, seed=seed, channels=2)
    made = Bench(folder / "archive", ("mel-statistics",))
    made.run(Storage(str(folder / "store")))
    return made


@pytest.fixture(scope="module")
def store(bench: Bench) -> str:
    return str(Path(bench.recordings["uri"][0].as_py()).parents[1] / "store")


@pytest.fixture
def rows(store: str) -> pa.Table:
    """The segments in the order of their ids, as a generation's rows come."""
    segments = serpipe.open(store).segments().sort_by("segment_id").select(SEGMENT)
    soft = np.eye(2, dtype=np.float32)[np.arange(segments.num_rows) % 2]
    table = segments.append_column("soft", pa.array(soft.tolist(), pa.list_(pa.float32())))
    return table.append_column("weight", pa.array(np.arange(1, segments.num_rows + 1, dtype=np.float32)))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    decode = ChildDecoder.decode

    def watched(self: ChildDecoder, path: str, channels: Channels = "mix") -> Any:
        counted[path] += 1
        return decode(self, path, channels)

    monkeypatch.setattr(ChildDecoder, "decode", watched)
    return counted


def test_two_channels_that_were_labelled_as_a_mix_are_heard_as_one(bench: Bench, store: str, rows: pa.Table) -> None:
    ready = located(serpipe.open(store), rows)
    expected = heard(bench.recordings)
    assert ready.num_rows == len(expected) == 12
    for identifier, weight, found in zip(
        ready["segment_id"].to_pylist(), ready["weight"].to_pylist(), cut(ready, "mix").to_pylist(), strict=True
    ):
        assert found["weight"] == weight
        assert np.array_equal(np.array(found["waveform"], np.float32), expected[identifier.hex()])
    left = np.array(cut(ready.slice(0, 1), "split")["waveform"][0].as_py(), np.float32)
    assert not np.allclose(left, expected[ready["segment_id"][0].as_py().hex()], atol=1e-3)


def test_how_channels_were_treated_is_never_guessed() -> None:
    assert sure_of("split", pa.chunked_array([[1, 2]])) == "split"
    assert sure_of(None, pa.chunked_array([[1, 1]])) == "mix"
    with pytest.raises(UsageError, match="EXPORT_CHANNELS_UNKNOWN"):
        sure_of(None, pa.chunked_array([[1, 2]]))


def test_a_recording_is_decoded_once_a_part(store: str, rows: pa.Table, decoded: Counter[str]) -> None:
    """Rows come in the order of their ids, in which every part would want every recording."""
    ready = located(serpipe.open(store), rows)
    parts = [cut(ready.slice(start, 4), "mix") for start in (0, 4, 8)]
    assert [part.num_rows for part in parts] == [4, 4, 4]
    assert decoded.most_common(1)[0][1] == 1
    assert len(decoded) == 3


def test_a_recording_that_is_another_one_today_teaches_nothing(store: str, rows: pa.Table) -> None:
    ready = located(serpipe.open(store), rows)
    changed = Path(ready["uri"][0].as_py())
    whole = changed.read_bytes()
    changed.write_bytes(whole + b"more")
    try:
        assert cut(ready, "mix").num_rows == 8
    finally:
        changed.write_bytes(whole)


def test_an_outage_ends_training_instead_of_thinning_it(
    store: str, rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    ready = located(serpipe.open(store), rows)
    away = pa.array(["http://127.0.0.1:9/0.wav"] * 4 + ready["uri"].to_pylist()[4:])
    with pytest.raises(AudioError, match="RECORDING_UNREACHABLE"):
        cut(ready.set_column(ready.schema.get_field_index("uri"), "uri", away), "mix")


def test_other_labels_are_other_work(rows: pa.Table) -> None:
    """A corrected label of gold must not find that everything is done."""
    other = pa.array([row[::-1] for row in rows["soft"].to_pylist()], pa.list_(pa.float32()))
    corrected = rows.set_column(rows.schema.get_field_index("soft"), "soft", other)
    heavier = rows.set_column(rows.schema.get_field_index("weight"), "weight", pa.array(rows["weight"].to_numpy() * 2))
    assert digest([rows]) == digest([rows.combine_chunks()])
    assert len({digest([part]) for part in (rows, corrected, heavier, rows.slice(1))} | {digest([rows, rows])}) == 5
