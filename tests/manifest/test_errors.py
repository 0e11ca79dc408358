"""What is wrong with a manifest is said before any work starts, and names the row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_corpus import lhotse_recording, plain

from serpipe.errors import UsageError
from serpipe.manifest import open_manifest, read_manifest, read_manifest_with_errors


def refusal(path: Path | str, **options: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read_manifest(str(path), **options)  # type: ignore[arg-type]
    return caught.value


def bad_row(path: Path) -> tuple[int, str, str]:
    """The one bad row of a manifest: its number, code and sentence."""
    _, bad = read_manifest_with_errors(str(path))
    assert bad.num_rows == 1, bad.to_pylist()
    row = bad.to_pylist()[0]
    assert f"{row['source']}, row {row['row']}: {row['error']}" in str(refusal(path))
    assert "--skip-bad-rows" in str(refusal(path))
    return row["row"], row["error_code"], row["error"]


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        (",0,1", "MANIFEST_MISSING_URI", "the row does not say where its audio is"),
        ("b.wav,nan,1", "MANIFEST_BAD_TIME", "start is nan, not a number of seconds"),
        ("b.wav,0,inf", "MANIFEST_BAD_TIME", "end is inf, not a number of seconds"),
        (
            'b.wav,"0,5",1',
            "MANIFEST_BAD_TIME",
            "start is '0,5', not a number of seconds; `--column start=` if",
        ),
        ("b.wav,00:01,1", "MANIFEST_BAD_TIME", "start is '00:01', not a number of seconds"),
        ("b.wav,-1,1", "MANIFEST_BAD_TIME", "start is -1.0, before the recording begins"),
        ("b.wav,5,3", "MANIFEST_BAD_TIME", "the segment ends at 3.0, not after its start at 5.0"),
        ("b.wav,5,5", "MANIFEST_BAD_TIME", "the segment ends at 5.0, not after its start at 5.0"),
        ("b.wav,,3", "MANIFEST_BAD_TIME", "there is an end (3.0) but no start"),
        ("b.wav,0", "MANIFEST_BAD_ROW", "the row has 2 values, the header 3"),
        ("b.wav,0,1,2", "MANIFEST_BAD_ROW", "the row has 4 values, the header 3"),
        ('"b"x,0,1', "MANIFEST_BAD_ROW", "the row is not CSV: ',' expected after '\"'"),
        (
            "foo://b.wav,0,1",
            "MANIFEST_BAD_URI",
            "'foo://b.wav' cannot be opened: no file system is known for foo://",
        ),
        ("b\0.wav,0,1", "MANIFEST_BAD_URI", "cannot be opened"),
        ("a.wav,0,1", "MANIFEST_DUPLICATE_SEGMENT", "the segment from 0.0 s to 1.0 s of"),
        ("b\udcff.wav,0,1", "MANIFEST_BAD_ENCODING", r"'b\\udcff.wav' is not valid UTF-8"),
    ],
)
def test_a_bad_line_of_csv_is_named_and_the_rest_is_kept(tmp_path: Path, line: str, code: str, sentence: str) -> None:
    filler = "".join(f"c{i}.wav,0,1\n" for i in range(9000)) if "\0" in line else ""
    text = f"uri,start,end\na.wav,0,1\n{filler}{line}\nz.wav,0,1\n"
    (tmp_path / "m.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    number, found, said = bad_row(tmp_path / "m.csv")
    assert (number, found) == (3 + filler.count("\n"), code)
    assert sentence in said
    good, _ = read_manifest_with_errors(str(tmp_path / "m.csv"))
    assert {"a.wav", "z.wav"} <= {Path(uri).name for uri in good["uri"].to_pylist()}


def test_rows_after_a_quoted_line_break_are_counted_by_lines(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('uri,start,end,text\na.wav,0,1,"x\ny\nz"\nb.wav,nan,1,x\n')
    assert bad_row(tmp_path / "m.csv")[0] == 5


@pytest.mark.parametrize("channel", ["-1", "left", "1.5", "99999999999", "99999999999999999999"])
def test_a_bad_channel(tmp_path: Path, channel: str) -> None:
    (tmp_path / "m.csv").write_text(f"uri,channel\na.wav,0\nb.wav,{channel}\n")
    number, code, said = bad_row(tmp_path / "m.csv")
    assert (number, code) == (3, "MANIFEST_BAD_CHANNEL")
    assert repr(channel) in said
    assert "`--column channel=`" in said


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    table = pa.table({"path": ["a.wav", "b.wav"], "start": [0.0, float("nan")], "end": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "m.parquet")
    assert bad_row(tmp_path / "m.parquet")[:2] == (2, "MANIFEST_BAD_TIME")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "MANIFEST_BAD_JSON"),
        ("[1]", "MANIFEST_BAD_JSON"),
        ("nonsense", "MANIFEST_BAD_JSON"),
        ("[" * 100_000, "MANIFEST_BAD_JSON"),
        ('{"path": "\\ud800.wav"}', "MANIFEST_BAD_ENCODING"),
        ('{"path": ["a", "b"]}', "MANIFEST_UNSUPPORTED"),
        ('{"file": null}', "MANIFEST_MISSING_URI"),
        ('{"id": 1}', "MANIFEST_MISSING_URI"),
        ('{"audio_filepath": "a.wav", "duration": 1, "shard_id": 3}', "MANIFEST_UNSUPPORTED"),
        ('{"path": "b.wav", "duration": -1}', "MANIFEST_BAD_TIME"),
        ('{"path": "b.wav", "start": true}', "MANIFEST_BAD_TIME"),
    ],
)
def test_a_bad_line_of_json(tmp_path: Path, line: str, code: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav"}\n\n' + line + "\n")
    assert bad_row(tmp_path / "m.jsonl")[:2] == (3, code)


def _cut(**changed: object) -> dict[str, object]:
    cut = {"id": "c", "type": "MonoCut", "start": 0, "duration": 1, "channel": 0}
    return {**cut, "recording": lhotse_recording("a.wav"), **changed}


def _with_source(**source: object) -> dict[str, object]:
    recording = lhotse_recording("b.wav")
    recording["sources"][0].update(source)
    return recording


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (_with_source(type="command", source="touch {}"), "MANIFEST_PIPED_COMMAND"),
        (_with_source(type="memory", source="UklGRg=="), "MANIFEST_UNSUPPORTED"),
        ({**lhotse_recording("b.wav"), "transforms": [{"name": "Speed"}]}, "MANIFEST_UNSUPPORTED"),
        ({**lhotse_recording("b.wav"), "sources": []}, "MANIFEST_UNSUPPORTED"),
        ({"id": "m", "type": "MixedCut", "tracks": []}, "MANIFEST_UNSUPPORTED"),
        (_cut(type="PaddingCut"), "MANIFEST_UNSUPPORTED"),
        (_cut(recording=None), "MANIFEST_UNSUPPORTED"),
        (_cut(channel=[0, 1], recording=lhotse_recording("b.wav", 5, [0, 1])), "MANIFEST_UNSUPPORTED"),
    ],
)
def test_what_lhotse_can_say_and_serpipe_cannot_do(tmp_path: Path, row: dict[str, object], code: str) -> None:
    trace = tmp_path / "trace"
    text = json.dumps(row).replace("{}", str(trace)) if "touch" in json.dumps(row) else json.dumps(row)
    (tmp_path / "m.jsonl").write_text(json.dumps(lhotse_recording("a.wav")) + "\n" + text)
    assert bad_row(tmp_path / "m.jsonl")[:2] == (2, code)
    assert not trace.exists()


@pytest.mark.parametrize("segments", [False, True])
def test_commands_of_kaldi_are_never_run(tmp_path: Path, segments: bool) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "wav.scp").write_text(f"a a.wav\nb touch {trace}; cat {trace} |\n")
    if segments:
        (tmp_path / "segments").write_text("ua a 0 1\nub b 0 1\n")
    number, code, said = bad_row(tmp_path)
    assert (number, code) == (2, "MANIFEST_PIPED_COMMAND")
    assert "never run" in said
    assert not trace.exists()


@pytest.mark.parametrize(
    ("scp", "segments", "code"),
    [
        ("a a.wav\nb data.ark:512\n", None, "MANIFEST_UNSUPPORTED"),
        ("a a.wav\nb -\n", None, "MANIFEST_UNSUPPORTED"),
        ("a a.wav\nb\n", None, "MANIFEST_MISSING_URI"),
        ("a a.wav\na b.wav\n", None, "MANIFEST_DUPLICATE_KEY"),
        ("a a.wav\nb b.wav\nb c.wav\n", "ua a 0 1\nub b 0 1\n", "MANIFEST_DUPLICATE_KEY"),
        ("a a.wav\n", "ua a 0 1\nub b 0 1\n", "MANIFEST_MISSING_URI"),
        ("a a.wav\n", "ua a 0 1\nub a 0\n", "MANIFEST_BAD_ROW"),
        ("a a.wav\n", "ua a 0 1\nub a 2 x\n", "MANIFEST_BAD_TIME"),
    ],
)
def test_bad_lines_of_kaldi(tmp_path: Path, scp: str, segments: str | None, code: str) -> None:
    (tmp_path / "wav.scp").write_text(scp)
    if segments is not None:
        (tmp_path / "segments").write_text(segments)
    assert bad_row(tmp_path)[:2] == (2, code)


cells_ = st.sampled_from(["", "x", "two words", '"quoted"', '"a, b"', '"two\nlines"', '"doubled "" inside"'])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    cells=st.lists(cells_, min_size=2, max_size=9),
    broken=st.sampled_from(['"', '"x', '"x" y', 'a"b"', '"two\nlines']),
    data=st.data(),
)
def test_a_stray_quote_costs_its_own_row_alone(
    cells: list[str], broken: str, data: st.DataObject, tmp_path: Path
) -> None:
    """What a quote that nobody closes runs into are rows of their own."""
    place = data.draw(st.integers(0, len(cells) - 1))
    rows = [f"{number}.wav,{cell}" for number, cell in enumerate(cells)]
    rows[place] = f"{place}.wav,{broken}"
    (tmp_path / "m.csv").write_text("\n".join(["path,text", *rows, ""]))
    good, bad = read_manifest_with_errors(str(tmp_path / "m.csv"))
    found = {Path(uri).name for uri in good["uri"].to_pylist()}
    assert bad.num_rows or f"{place}.wav" in found
    # A quote behind it may close it, and then it is a row by itself that takes those between with it.
    later = any(cell.startswith('"') for cell in cells[place + 1 :])
    if not later:
        assert found >= {f"{number}.wav" for number in range(len(cells)) if number != place}


def test_rows_behind_a_stray_quote_are_not_lost(tmp_path: Path) -> None:
    for last in ("c.wav,y", 'c.wav,"bye"'):
        (tmp_path / "m.csv").write_text(f'path,text\na.wav,"hello\nb.wav,x\n{last}\nd.wav,z\n')
        good, bad = read_manifest_with_errors(str(tmp_path / "m.csv"))
        assert sorted(Path(uri).name for uri in good["uri"].to_pylist()) == ["b.wav", "c.wav", "d.wav"]
        assert bad["row"].to_pylist() == [2]


def test_a_column_of_jsonl_is_found_whatever_its_case(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "Begin_t": 1, "dur": 2}\n')
    found = plain(read_manifest(str(tmp_path / "m.jsonl"), columns={"start": "begin_t", "duration": "dur"}))
    assert [(one["start_s"], one["end_s"]) for one in found[0]["given"]] == [(1.0, 3.0)]


def test_two_rows_of_one_recording_name_each_other(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,text\na.wav,y\nb.wav,\n./a.wav,x\n")
    number, code, said = bad_row(tmp_path / "m.csv")
    # The owner's columns decide which row stays, so that the order of the manifest cannot.
    assert (number, code) == (2, "MANIFEST_DUPLICATE_URI")
    assert said == f"the recording {tmp_path}/a.wav stands in {tmp_path}/m.csv, row 4 already"
    good, _ = read_manifest_with_errors(str(tmp_path / "m.csv"))
    assert {Path(one["uri"]).name: one["meta"] for one in plain(good)} == {
        "a.wav": {"text": "x"},
        "b.wav": {},
    }


def test_three_twins_leave_one(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,start,end\n" + "a.wav,0,1\n" * 3 + "a.wav,0,2\n" * 2)
    good, bad = read_manifest_with_errors(str(tmp_path / "m.csv"))
    assert bad["row"].to_pylist() == [3, 4, 6]
    assert [one["end_s"] for one in plain(good)[0]["given"]] == [1.0, 2.0]


def test_queries_do_not_tell_recordings_apart_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("url\nhttps://h.org/get?id=1\nhttps://h.org/get?id=2\n")
    assert "what follows `?` does not tell recordings apart" in bad_row(tmp_path / "m.csv")[2]


def test_two_versions_of_one_recording_are_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,start,end,etag\na.wav,0,1,x\na.wav,1,2,y\nb.wav,0,1,x\n")
    good, bad = read_manifest_with_errors(str(tmp_path / "m.csv"))
    assert bad["error_code"].to_pylist() == ["MANIFEST_CONFLICT"] * 2
    assert good.num_rows == 1


def test_only_the_first_five_bad_rows_are_shown(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,start,end\n" + "".join(f"{i}.wav,nan,1\n" for i in range(8)))
    said = str(refusal(tmp_path / "m.csv"))
    assert said.startswith("MANIFEST_BAD_TIME: 8 rows cannot be used")
    assert said.count("start is nan") == 5
    assert said.endswith("and 3 more")


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        (
            "m.csv",
            b"id,text\n1,x\n",
            "MANIFEST_NO_URI_COLUMN",
            "'id', 'text'; name the right one with `--column uri=",
        ),
        ("m.jsonl", b'{"id": 1}\n', "MANIFEST_NO_URI_COLUMN", "'id'"),
        ("m.csv", b"", "MANIFEST_EMPTY", "is empty"),
        ("m.csv", b"path,start\n", "MANIFEST_EMPTY", "holds no rows"),
        ("m.jsonl", b"\n\n", "MANIFEST_EMPTY", "holds no rows"),
        ("m.json", b'[\n{"path": "a"}]', "MANIFEST_UNKNOWN_FORMAT", "jq -c '.[]' m.json"),
        ("m.json", b'{\n "path": "a"\n}', "MANIFEST_UNKNOWN_FORMAT", "one object a line"),
        ("m.xlsx", b"PK", "MANIFEST_UNKNOWN_FORMAT", "give `--format`"),
        ("m.csv", b"PAR1\0\0\1", "MANIFEST_UNREADABLE", "is not text"),
        ("m.parquet", b"path\na.wav\n", "MANIFEST_UNREADABLE", "cannot be read as parquet"),
        ("m.csv.gz", b"path\na.wav\n", "MANIFEST_UNREADABLE", "cannot be read as csv"),
        ("m.jsonl.gz", b'{"path": "a.wav"}', "MANIFEST_UNREADABLE", "from its beginning"),
        ("m.csv", b"path,x,x\na.wav,1,2\n", "MANIFEST_SAME_COLUMN", "two columns called 'x'"),
    ],
)
def test_what_is_wrong_with_all_of_it(tmp_path: Path, name: str, content: bytes, code: str, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert error.code == code
    assert words in str(error)
    assert name in str(error)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"columns": {"uri": "nosuch"}}, "MANIFEST_NO_SUCH_COLUMN"),
        ({"columns": {"emotion": "x"}}, "MANIFEST_NO_SUCH_ROLE"),
        ({"columns": {"uri": ""}}, "MANIFEST_NO_URI_COLUMN"),
        ({"format": "excel"}, "MANIFEST_UNKNOWN_FORMAT"),
        ({"format": "folder"}, "MANIFEST_UNKNOWN_FORMAT"),
        ({"format": "kaldi", "columns": {"uri": "path"}}, "MANIFEST_NO_SUCH_COLUMN"),
    ],
)
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_options_that_cannot_be_followed(tmp_path: Path, name: str, options: dict[str, object], code: str) -> None:
    (tmp_path / "m.csv").write_text("path\na.wav\n")
    (tmp_path / "m.jsonl").write_text('{"path": "a.wav"}')
    assert refusal(tmp_path / name, **options).code == code


def test_audio_inside_parquet_is_refused(tmp_path: Path) -> None:
    table = pa.table({"audio": pa.array([{"bytes": b"RIFF", "path": "x"}])})
    pq.write_table(table, tmp_path / "m.parquet")
    assert refusal(tmp_path / "m.parquet").code == "MANIFEST_NO_URI_COLUMN"
    assert refusal(tmp_path / "m.parquet", columns={"uri": "audio"}).code == "MANIFEST_UNSUPPORTED"


def test_a_manifest_that_breaks_off_says_where(tmp_path: Path) -> None:
    lines = "".join(f"{i * 7919 % 100_003}.wav,{i * 104_729 % 1_000_003}\n" for i in range(70_000))
    packed = gzip.compress(("path,text\n" + lines).encode())
    (tmp_path / "m.csv.gz").write_bytes(packed[:-2000])
    assert open_manifest(str(tmp_path / "m.csv.gz")).format == "csv"
    error = refusal(tmp_path / "m.csv.gz")
    assert error.code == "MANIFEST_UNREADABLE"
    assert "behind row 65537" in str(error)


@pytest.mark.parametrize("place", ["/no/such/place.csv", "memory://no/such.csv", "nothing-*.csv", ""])
def test_nothing_there(place: str) -> None:
    assert refusal(place).code == "MANIFEST_NOT_FOUND"


def test_a_file_system_that_nobody_knows() -> None:
    error = refusal("foo://bucket/list.csv")
    assert error.code == "MANIFEST_NO_FILESYSTEM"
    assert "foo://bucket/list.csv" in str(error)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "start", "duration", "sources", "recording", "type", "channel", "id"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_SOUP = st.text(st.sampled_from("ab,\t\"'\n\r;|{}[]: 01.-\x1c\u2028\ufeffé\udcff"), max_size=60)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["m.csv", "m.tsv", "m.jsonl", "m.scp"]),
    start=st.sampled_from(["", "path,start\n", "path\tstart\n", '{"path": "a.wav"}\n']),
    soup=_SOUP | st.lists(_JSON, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows))),
)
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path: Path, name: str, start: str, soup: str) -> None:
    (tmp_path / name).write_bytes((start + soup).encode("utf-8", "surrogateescape"))
    refused: UsageError | None = None
    try:
        recordings, bad = read_manifest_with_errors(str(tmp_path / name))
    except UsageError as error:
        refused = error
    if refused is not None:
        assert refused.code.startswith("MANIFEST_")
        assert str(tmp_path) in str(refused)
        return
    recordings.validate(full=True)
    assert recordings.num_rows or bad.num_rows
    assert all(row["error"] and row["error_code"] for row in bad.to_pylist())
