"""Gold: read in every format, refused in one sentence, matched to what it covers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serpipe
from serpipe.errors import UsageError
from serpipe.ids import recording_id
from serpipe.pack import ID
from serpipe.pseudolabel import gold
from serpipe.testing.labelled import AUDIO, MadeUp, MadeUpModel, write_labelled_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MadeUp]:
    root = str(tmp_path_factory.mktemp("gold"))
    return root, write_labelled_store(root, [MadeUpModel(name="a")], recordings=4, segments=5)


def written(folder: Path, text: str, name: str = "gold.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_same_gold_in_every_format_has_the_same_hash(tmp_path: Path) -> None:
    rows = [
        {"uri": "a.wav", "start": 0.0, "end": 4.0, "label": "Angry", "speaker": "ann", "split": "cal"},
        {"uri": "b.wav", "start": 4.0, "end": 8.0, "label": "sadness", "speaker": "bob", "split": "test"},
    ]
    lines = ["\t".join(map(str, row.values())) for row in rows]
    places = [
        written(tmp_path, "uri,start,end,label,speaker,split\n" + "\n".join(x.replace("\t", ",") for x in lines)),
        written(tmp_path, "uri\tstart\tend\tlabel\tspeaker\tsplit\n" + "\n".join(lines), "gold.tsv"),
        written(tmp_path, "\n".join(json.dumps(row) for row in reversed(rows)), "gold.jsonl"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gold.parquet")
    read = [gold.read(place) for place in (*places, str(tmp_path / "gold.parquet"))]
    assert len({one.hash for one in read}) == 1
    assert read[0].rows["label"].to_pylist() == ["anger", "sadness"]
    assert read[0].rows["uri"].to_pylist() == [f"{tmp_path}/a.wav", f"{tmp_path}/b.wav"]
    changed = written(tmp_path, "uri,label,speaker,split\na.wav,anger,ann,cal\n", "other.csv")
    assert gold.read(changed).hash != read[0].hash


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("uri,label\na.wav,bored", "GOLD_UNKNOWN_LABEL", "row 2: 'bored' is no emotion known here"),
        ("uri,label\na.wav,", "GOLD_NO_LABEL", "gold needs a column label or emotion"),
        ("uri,speaker\na.wav,ann", "GOLD_NO_LABEL", "row 2"),
        ("uri,label,split\na.wav,anger,holdout", "GOLD_UNKNOWN_SPLIT", "'holdout'"),
        ("uri,label,split\na.wav,anger,cal\nb.wav,anger,", "GOLD_UNKNOWN_SPLIT", "some rows name a split"),
        (
            "uri,label,speaker,split\na.wav,anger,ann,train\nb.wav,anger,ann,test\nc.wav,anger,bob,cal",
            "GOLD_SPEAKER_LEAK",
            "speaker 'ann' is in test and train",
        ),
        ("uri,label,split\na.wav,anger,train\na.wav,anger,test", "GOLD_SPEAKER_LEAK", "a.wav' is in test and train"),
        ("uri,label,start,end\na.wav,anger,2,1", "GOLD_BAD_ROW", "row 2"),
        ("segment_id,label\n00ff,anger", "GOLD_BAD_ROW", "32 hexadecimal digits"),
        ("label\nanger", "MANIFEST_", "column"),
    ],
)
def test_bad_gold_is_one_sentence(tmp_path: Path, text: str, code: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        gold.read(written(tmp_path, text))
    assert error.value.code.startswith(code)
    assert said in error.value.message
    assert "\n" not in error.value.message


def test_without_splits_whole_speakers_are_dealt_by_their_names_alone(tmp_path: Path) -> None:
    lines = [f"{speaker}-{clip}.wav,anger,speaker {speaker}" for speaker in range(20) for clip in range(3)]
    place = written(tmp_path, "uri,label,speaker\n" + "\n".join(lines))
    other = written(tmp_path, "uri,label,speaker\n" + "\n".join(reversed(lines)), "reversed.csv")
    first = gold.read(place)
    assert first.hash == gold.read(other).hash
    assert not first.splits_named
    counts = {split: sum(labels.values()) for split, labels in first.counts().items()}
    assert counts == {"train": 24, "cal": 12, "dev": 12, "test": 12}


def test_whole_recordings_spans_and_ids_match(store: tuple[str, MadeUp], tmp_path: Path) -> None:
    root, made = store
    opened = serpipe.open(root)
    whole = gold.read(written(tmp_path, f"uri,label\n{made.uris[0]},anger\n"))
    matched = gold.match(opened, whole, AUDIO)
    assert matched.schema.equals(gold.MATCHED)
    assert set(matched["segment_id"].to_pylist()) == set(made.segment_ids[:5])
    assert matched["segment_id"].to_pylist() == sorted(made.segment_ids[:5])
    # Covers the second segment wholly, three quarters of the third, and of the first nothing.
    span = gold.read(written(tmp_path, f"uri,label,start,end,speaker\n{made.uris[0]},sad,4.0,11.0,ann\n"))
    assert gold.match(opened, span, AUDIO).to_pylist()[0]["segment_id"] == made.segment_ids[1]
    assert gold.match(opened, span, AUDIO).num_rows == 1
    named = gold.read(written(tmp_path, f"segment_id,label,speaker\n{made.segment_ids[7].hex()},happy,bob\n"))
    (row,) = gold.match(opened, named, AUDIO).to_pylist()
    assert (row["segment_id"], row["uri"], row["label"]) == (made.segment_ids[7], made.uris[7], "happiness")


def test_gold_that_matches_nothing_or_contradicts_itself_is_refused(store: tuple[str, MadeUp], tmp_path: Path) -> None:
    root, made = store
    opened = serpipe.open(root)
    with pytest.raises(UsageError, match="GOLD_NO_MATCH: none of the 1 rows"):
        gold.match(opened, gold.read(written(tmp_path, "uri,label\n/nowhere.wav,anger\n")), AUDIO)
    twice = f"uri,label,start,end\n{made.uris[0]},anger,0,4\n{made.uris[0]},sad,0,4.1\n"
    with pytest.raises(UsageError, match=r"GOLD_CONFLICT: .* is anger .* and sadness"):
        gold.match(opened, gold.read(written(tmp_path, twice)), AUDIO)


def test_gold_by_segment_without_speakers_stands_for_its_recording(store: tuple[str, MadeUp], tmp_path: Path) -> None:
    root, made = store
    opened = serpipe.open(root)
    first, second = (made.segment_ids[place].hex() for place in (0, 1))
    named = gold.read(written(tmp_path, f"segment_id,label,split\n{first},anger,test\n{second},anger,test\n"))
    matched = gold.match(opened, named, AUDIO)
    assert set(matched["speaker"].to_pylist()) == {made.uris[0]}
    assert made.uris[0] in gold.barred(named, matched).speakers
    torn = gold.read(written(tmp_path, f"segment_id,label,split\n{first},anger,test\n{second},anger,train\n"))
    with pytest.raises(UsageError, match=r"GOLD_SPEAKER_LEAK: .*00000000.wav' is in test and train"):
        gold.match(opened, torn, AUDIO)


def test_what_gold_judges_by_is_barred_before_it_is_in_the_store(store: tuple[str, MadeUp], tmp_path: Path) -> None:
    """Of the first recording no segment fits, of another one there is nothing yet."""
    root, made = store
    lines = [
        f"{made.uris[0]},0.5,1,anger,ann,test",
        f"{made.uris[5]},0,4,sad,bob,train",
        "/archive/tomorrow.wav,0,4,sad,cy,gate",
    ]
    read = gold.read(written(tmp_path, "\n".join(["uri,start,end,label,speaker,split", *lines])))
    barred = gold.barred(read, gold.match(serpipe.open(root), read, AUDIO))
    owners = [recording_id(uri, "") for uri in made.uris]
    rows = pa.table(
        {"segment_id": pa.array(made.segment_ids, ID), "recording_id": pa.array(owners, ID), "uri": made.uris}
    )
    speakers = pa.array([None] * 10 + ["dee"] * 5 + ["cy"] * 5, pa.string())
    out = barred.of(rows, speakers, np.zeros(20, np.uint64))
    # The whole of the recording in which nobody is named, gold's own segment, and the voice that judges elsewhere.
    assert np.flatnonzero(out).tolist() == [0, 1, 2, 3, 4, 5, 15, 16, 17, 18, 19]


def test_a_row_with_a_channel_labels_that_channel_alone(store: tuple[str, MadeUp], tmp_path: Path) -> None:
    root = str(tmp_path / "calls")
    made = write_labelled_store(root, [MadeUpModel(name="a")], recordings=2, segments=4)
    (file,) = Path(root, f"segments/audio={AUDIO}").iterdir()
    table = pq.read_table(file)
    place = table.schema.get_field_index("channel")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array([0, 1] * 4, pa.int32())), file)
    call = gold.read(
        written(tmp_path, f"uri,channel,label,speaker\n{made.uris[0]},0,anger,ann\n{made.uris[0]},1,sad,bob\n")
    )
    matched = gold.match(serpipe.open(root), call, AUDIO)
    assert matched.num_rows == 4
    said = {(row["channel"], row["label"], row["speaker"]) for row in matched.to_pylist()}
    assert said == {(0, "anger", "ann"), (1, "sadness", "bob")}
    # What was made one of several channels is channel 0, with times and without.
    mixed, opened = store[1].uris[0], serpipe.open(store[0])
    for span in ("", "0,20"):
        header = f"uri,channel,label{',start,end' if span else ''}\n"
        rows = [f"{mixed},{channel},anger{',' if span else ''}{span}\n" for channel in (0, 1)]
        assert gold.match(opened, gold.read(written(tmp_path, header + rows[0])), AUDIO).num_rows == 5
        with pytest.raises(UsageError, match="GOLD_NO_MATCH"):
            gold.match(opened, gold.read(written(tmp_path, header + rows[1])), AUDIO)


def test_a_segment_has_one_speaker(store: tuple[str, MadeUp], tmp_path: Path) -> None:
    root, made = store
    opened, uri, head = serpipe.open(root), made.uris[0], "uri,label,speaker,split\n"
    both = gold.read(written(tmp_path, f"{head}{uri},anger,ann,test\n{uri},anger,bob,test\n"))
    with pytest.raises(UsageError, match=r"GOLD_CONFLICT: .* is anger of ann \(test\) and anger of bob \(test\)"):
        gold.match(opened, both, AUDIO)
    # A row that names nobody says nothing against one that does.
    lines = [f"{uri},anger,,test\n", f"{uri},anger,ann,test\n"]
    for order in (lines, lines[::-1]):
        matched = gold.match(opened, gold.read(written(tmp_path, head + "".join(order))), AUDIO)
        assert set(matched["speaker"].to_pylist()) == {"ann"}
