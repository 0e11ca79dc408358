"""The same corpus in every format and order: the same ids, the same segments, the same owner's columns."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_corpus import WRITERS, Row, lhotse_recording, plain, write_jsonl

from serpipe.ids import content_version, recording_id
from serpipe.manifest import open_manifest, read_manifest

# A tab or a line break has no place in a TSV value; nothing else is kept from any format.
_VALUES = st.text(st.characters(exclude_characters="\t\r\n\0\ufeff", exclude_categories=["Cs"]), max_size=12)
_NAMES = st.text(st.sampled_from("ab é日-_.#?%&'"), min_size=1, max_size=6).map("clip {}.wav".format)
_MILLISECONDS = st.integers(0, 10_000_000)


@st.composite
def corpora(draw: st.DrawFn) -> list[Row]:
    rows = []
    for name in draw(st.lists(_NAMES, min_size=1, max_size=5, unique=True)):
        times = draw(st.lists(st.tuples(_MILLISECONDS, st.integers(1, 60_000)), max_size=3, unique=True))
        meta = st.fixed_dictionaries({}, optional={"speaker": _VALUES, "text": _VALUES, "Größe 1": _VALUES})
        if not times or draw(st.booleans()):
            rows.append(Row(name, meta=draw(meta)))
        rows += [Row(name, s / 1000, (s + d) / 1000, draw(meta)) for s, d in times]
    return rows


def expected(rows: Sequence[Row], folder: str) -> list[dict[str, object]]:
    """What the corpus is, worked out without any of the code under test but the ids themselves."""
    found: dict[str, dict[str, object]] = {}
    for row in sorted(rows, key=lambda r: (r.name, -1 if r.start is None else r.start, r.end or 0)):
        uri = f"{folder}/{row.name}"
        meta = {name: value for name, value in row.meta.items() if value}
        one = found.setdefault(uri, {"uri": uri, "meta": {}, "given": []})
        if row.start is None:
            one["meta"] = meta
        else:
            segment = {"start_s": row.start, "end_s": row.end, "channel": None, "meta": meta}
            one["given"] = [*one["given"], segment]  # type: ignore[misc]
    for uri, one in found.items():
        facts = os.stat(uri)
        one["recording_id"] = recording_id(uri, content_version(None, facts.st_size, facts.st_mtime_ns))
    return sorted(found.values(), key=lambda one: str(one["recording_id"].hex()))  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(corpora(), st.randoms(use_true_random=False))
def test_any_format_in_any_order_is_the_same_corpus(rows: list[Row], random) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            Path(folder, row.name).write_bytes(row.name.encode())
        wanted = expected(rows, folder)
        for name, write in WRITERS.items():
            random.shuffle(rows)
            write(Path(folder, name), rows)
            found = plain(read_manifest(str(Path(folder, name))))
            told = [{key: one[key] for key in wanted[0]} for one in found]
            assert told == wanted, name


def test_values_read_the_same_whatever_their_type(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {
        "path": "a.wav",
        "age": 3,
        "score": 3.0,
        "tenth": 0.1,
        "ok": True,
        "tags": ["x", {"b": 1, "a": None}],
        "none": None,
    }
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    pq.write_table(pa.Table.from_pylist([{**row, "tags": json.loads("[]")}]), tmp_path / "m.parquet")
    (tmp_path / "m.csv").write_text("path,age,score,tenth,ok,none\na.wav,3,3.0,0.1,true,\n")
    common = {"age": "3", "score": "3.0", "tenth": "0.1", "ok": "true"}
    assert plain(read_manifest(str(tmp_path / "m.jsonl")))[0]["meta"] == {**common, "tags": '["x",{"b":1}]'}
    assert plain(read_manifest(str(tmp_path / "m.parquet")))[0]["meta"] == {**common, "tags": "[]"}
    assert plain(read_manifest(str(tmp_path / "m.csv")))[0]["meta"] == common


def test_parquet_of_every_type(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "path": pa.array(["a.wav"]).dictionary_encode(),
            "narrow": pa.array([0.1], pa.float32()),
            "day": pa.array([datetime.date(2024, 2, 29)]),
            "price": pa.array([decimal.Decimal("1.50")]),
            "map": pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())),
            "struct": pa.array([{"b": None, "a": 1}]),
            "bytes": pa.array([b"RIFF"]),
            "audio": pa.array([{"bytes": b"RIFF", "path": "x"}]),
            "large": pa.array(["é"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    assert plain(read_manifest(str(tmp_path / "m.parquet")))[0]["meta"] == {
        "narrow": "0.1",
        "day": "2024-02-29",
        "price": "1.50",
        "map": '{"k":"v"}',
        "struct": '{"a":1}',
        "large": "é",
    }


@pytest.mark.parametrize(
    ("text", "meta"),
    [
        ("\ufeffpath;start;end;note\r\na.wav;0;1;x, y\r\n", {"note": "x, y"}),
        (' path , start , end , note\n"a.wav", 0, 1, "x\ny"\n', {"note": "x\ny"}),
        ('"path","start","end","note"\n\n"a.wav","0","1","say ""no"""\n', {"note": 'say "no"'}),
        ("path|start|end|note\na.wav|0|1|x", {"note": "x"}),
        (",Path,START,End,note\n0,a.wav,0,1,x\n", {"note": "x"}),
    ],
)
def test_csv_as_people_write_it(tmp_path: Path, text: str, meta: dict[str, str]) -> None:
    (tmp_path / "m.csv").write_bytes(text.encode())
    found = plain(read_manifest(str(tmp_path / "m.csv")))[0]
    assert found["uri"] == str(tmp_path / "a.wav")
    assert found["given"] == [{"start_s": 0.0, "end_s": 1.0, "channel": None, "meta": meta}]


def test_csv_from_excel_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path\tnote\nä.wav\tß\n", encoding="utf-16")
    assert plain(read_manifest(str(tmp_path / "m.csv")))[0]["meta"] == {"note": "ß"}


def test_quotes_in_tsv_are_text_unless_they_enclose(tmp_path: Path) -> None:
    lines = ["path\tsentence", 'a.wav\t"No," he said', 'b.wav\t"so ""it"" is"', 'c.wav\t"']
    (tmp_path / "m.tsv").write_text("\n".join(lines))
    found = {Path(one["uri"]).name: one["meta"]["sentence"] for one in plain(read_manifest(str(tmp_path / "m.tsv")))}
    assert found == {"a.wav": '"No," he said', "b.wav": 'so "it" is', "c.wav": '"'}


@pytest.mark.parametrize("name", ["uri", "path", "audio", "audio_filepath", "wav", "URL", "File_Name"])
@pytest.mark.parametrize(("start", "stop"), [("start", "end"), ("offset", "duration"), ("Start_Time", "end_time")])
def test_names_of_every_convention(tmp_path: Path, name: str, start: str, stop: str) -> None:
    row = {name: "a.wav", start: 1.5, stop: 4.0 if "end" in stop else 2.5}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    found = plain(read_manifest(str(tmp_path / "m.jsonl")))[0]
    assert [(one["start_s"], one["end_s"]) for one in found["given"]] == [(1.5, 4.0)]


def test_columns_named_by_hand(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("clip,path,channel\na.wav,of life,BBC\n")
    found = plain(read_manifest(str(tmp_path / "m.csv"), columns={"uri": "clip", "channel": ""}))[0]
    assert (Path(found["uri"]).name, found["meta"]) == ("a.wav", {"path": "of life", "channel": "BBC"})
    write_jsonl(tmp_path / "m.jsonl", [Row("x", meta={"clip": "b.wav"})])
    assert read_manifest(str(tmp_path / "m.jsonl"), columns={"uri": "clip"})["uri"].to_pylist() == [
        str(tmp_path / "b.wav")
    ]


def test_a_duration_alone_is_a_claim_and_a_start_alone_runs_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,start,duration\na.wav,,9.5\nb.wav,2,\n")
    first, second = sorted(plain(read_manifest(str(tmp_path / "m.csv"))), key=lambda one: one["uri"])
    assert (first["claimed_s"], first["given"]) == (9.5, [])
    assert [(one["start_s"], one["end_s"]) for one in second["given"]] == [(2.0, None)]


def test_an_end_is_not_blurred_by_the_sum(tmp_path: Path) -> None:
    assert 0.1 + 0.2 != 0.3
    (tmp_path / "m.csv").write_text("path,start,duration\na.wav,0.1,0.2\n")
    assert plain(read_manifest(str(tmp_path / "m.csv")))[0]["given"][0]["end_s"] == 0.3


def test_etags_in_the_manifest_are_the_version(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('path,etag\ns3://nowhere-at-all/a.wav,"""9b2c"""\n')
    assert read_manifest(str(tmp_path / "m.csv"))["recording_id"][0].as_py() == recording_id(
        "s3://nowhere-at-all/a.wav", "etag=9b2c"
    )


def test_whole_numbers_may_have_come_through_pandas(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "path,start,end,channel,size,mtime_ns\na.wav,0,1,1.0,12.0,1700000000123456789\nb.wav,0,1,,,\n"
    )
    found = {Path(one["uri"]).name: one for one in plain(read_manifest(str(tmp_path / "m.csv")))}
    assert found["a.wav"]["given"][0]["channel"] == 1
    assert (found["a.wav"]["size"], found["a.wav"]["mtime_ns"]) == (12, 1700000000123456789)


def test_signed_queries_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "url\nhttps://me:pw@h.org/a.wav?X-Amz-Signature=1\nhttps://h.org/b.wav?X-Amz-Signature=2\n"
    )
    found = {one["uri"]: one["query"] for one in plain(read_manifest(str(tmp_path / "m.csv")))}
    assert found == {"https://h.org/a.wav": "X-Amz-Signature=1", "https://h.org/b.wav": "X-Amz-Signature=2"}


def test_kaldi(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text("call1 clips/with space é.wav\ncall2\tb.wav\ncall3 /else/c.wav\n")
    (tmp_path / "utt2spk").write_text("call1 ann\nu1 ann\nu2 bob\n")
    found = {Path(one["uri"]).name: one["meta"] for one in plain(read_manifest(str(tmp_path)))}
    assert found == {
        "with space é.wav": {"utterance": "call1", "speaker": "ann"},
        "b.wav": {"utterance": "call2"},
        "c.wav": {"utterance": "call3"},
    }
    without = open_manifest(str(tmp_path)).fingerprint
    (tmp_path / "segments").write_text("u2 call2 1.50 -1\nu1 call1 0.00 2.25\n")
    found = {Path(one["uri"]).name: one["given"] for one in plain(read_manifest(str(tmp_path / "wav.scp")))}
    assert found == {
        "with space é.wav": [
            {
                "start_s": 0.0,
                "end_s": 2.25,
                "channel": None,
                "meta": {"utterance": "u1", "recording": "call1", "speaker": "ann"},
            }
        ],
        "b.wav": [
            {
                "start_s": 1.5,
                "end_s": None,
                "channel": None,
                "meta": {"utterance": "u2", "recording": "call2", "speaker": "bob"},
            }
        ],
    }
    assert open_manifest(str(tmp_path)).fingerprint != without


def test_kaldi_and_csv_agree(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"1")
    (tmp_path / "m.csv").write_text("path,start,end\na.wav,1,2.5\n")
    (tmp_path / "wav.scp").write_text("k a.wav\n")
    (tmp_path / "segments").write_text("u k 1 2.5\n")
    csv, kaldi = plain(read_manifest(str(tmp_path / "m.csv")))[0], plain(read_manifest(str(tmp_path)))[0]
    assert csv["recording_id"] == kaldi["recording_id"]
    assert [(s["start_s"], s["end_s"], s["channel"]) for s in csv["given"]] == [
        (s["start_s"], s["end_s"], s["channel"]) for s in kaldi["given"]
    ]


def test_lhotse(tmp_path: Path) -> None:
    (tmp_path / "recordings.jsonl").write_text(json.dumps(lhotse_recording("a.wav", 12.5)))
    found = plain(read_manifest(str(tmp_path / "recordings.jsonl")))[0]
    assert (found["claimed_s"], found["meta"], found["given"]) == (12.5, {"id": "a.wav"}, [])
    said = {"text": "hi", "speaker": "ann", "language": None, "custom": {"emotion": "sad", "list": [1]}}
    cuts = [
        {"id": "c1", "type": "MonoCut", "start": 0.1, "duration": 0.2, "channel": 0, "supervisions": [said],
         "recording": lhotse_recording("a.wav", 12.5)},
        {"id": "c2", "type": "MonoCut", "start": 1, "duration": 2, "channel": 1, "supervisions": [said, said],
         "recording": lhotse_recording("b.wav", 4, [0, 1])},
    ]  # fmt: skip
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, cuts)))
    assert open_manifest(str(tmp_path / "cuts.jsonl")).format == "lhotse"
    first, second = sorted(plain(read_manifest(str(tmp_path / "cuts.jsonl"))), key=lambda one: one["uri"])
    assert (first["claimed_s"], second["claimed_s"]) == (12.5, 4.0)
    assert first["given"] == [
        {"start_s": 0.1, "end_s": 0.3, "channel": None,
         "meta": {"id": "c1", "recording": "a.wav", "text": "hi", "speaker": "ann", "emotion": "sad"}}
    ]  # fmt: skip
    assert second["given"] == [{"start_s": 1.0, "end_s": 3.0, "channel": 1, "meta": {"id": "c2", "recording": "b.wav"}}]


def test_json_may_say_nan_and_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": "a.wav", "start": math.nan, "end": 1}))
    manifest = open_manifest(str(tmp_path / "m.jsonl"))
    row = next(manifest.read(manifest.parts[0])).to_pylist()[0]
    assert (row["error_code"], row["error"]) == ("MANIFEST_BAD_TIME", "start is nan, not a number of seconds")
