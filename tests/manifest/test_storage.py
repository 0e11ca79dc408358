"""Manifests and recordings wherever they lie: folders, patterns, memory, and a server that speaks S3."""

from __future__ import annotations

import errno
import glob
import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_corpus import plain
from moto.server import ThreadedMotoServer

from serpipe.errors import SerpipeError, UsageError
from serpipe.ids import recording_id
from serpipe.manifest import Listings, open_manifest, read_manifest, read_rows, storage


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in settings.items():
            environment.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="calls")
        yield "calls"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def put(bucket: str, key: str, body: bytes) -> str:
    """Store an object behind the back of fsspec; its etag comes back."""
    return str(boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=body)["ETag"]).strip('"')


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name in (
        "a.wav",
        "b",
        "deep/er/c d.MP3",
        "deep/é.xyz",
        "deep/notes.TXT",
        "list.csv",
        ".DS_Store",
        ".git/x.wav",
        "deep/.x/y.wav",
    ):
        path = tmp_path / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "archive" / "gone.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "archive" / "deep" / "loop").symlink_to(tmp_path / "archive" / "deep")
    os.mkfifo(tmp_path / "archive" / "pipe.wav")
    return tmp_path / "archive"


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, number: int, ending: str) -> None:
    """Let a call of the system fail on paths that end so; others as before."""
    asked = getattr(os, call)

    def refusing(path: object, *more: object, **named: object) -> object:
        if str(path).endswith(ending):
            # By its number Python makes the class of the error.
            raise OSError(number, os.strerror(number), path)
        return asked(path, *more, **named)

    monkeypatch.setattr(os, call, refusing)


def test_a_folder_is_every_file_that_may_be_audio(archive: Path) -> None:
    manifest = open_manifest(str(archive) + "/")
    assert manifest.format == "folder"
    assert dict(manifest.left_out) == {".txt": 1, ".csv": 1, "hidden": 3}
    found = read_manifest(str(archive))["uri"].to_pylist()
    assert sorted(found) == [f"{archive}/{n}" for n in ("a.wav", "b", "deep/er/c d.MP3", "deep/é.xyz", "gone.wav")]


def test_a_folder_has_the_ids_of_a_list_of_its_files(archive: Path, tmp_path: Path) -> None:
    folder = read_manifest(str(archive))
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{uri}\n" for uri in reversed(folder["uri"].to_pylist())))
    assert read_manifest(str(tmp_path / "list.csv")).equals(folder)


def test_a_pattern(archive: Path) -> None:
    assert [Path(uri).name for uri in read_manifest(f"{archive}/**/*.MP3")["uri"].to_pylist()] == ["c d.MP3"]
    manifest = open_manifest(f"{archive}/*")
    assert manifest.format == "glob"
    assert dict(manifest.left_out) == {".csv": 1}


def test_a_pattern_takes_links_as_a_folder_does(archive: Path) -> None:
    folder, pattern = (set(read_manifest(f"{archive}{end}")["uri"].to_pylist()) for end in ("", "/**"))
    assert pattern == folder
    assert f"{archive}/gone.wav" in pattern


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    names=st.sets(st.from_regex(r"(\.?[ab]{1,2}/){0,3}\.?[cd]\[?\.(wav|mp3)", fullmatch=True), max_size=8),
    pattern=st.lists(
        st.sampled_from(["**", "*", "a", "a?", "[ab]*", ".*", ".a", "*.wav", "[c]*", "c.wav", "c[[].wav", "?.mp3"]),
        min_size=1,
        max_size=4,
    ).map("/".join),
)
def test_a_pattern_matches_what_pythons_glob_does(names: set[str], pattern: str, tmp_path: Path) -> None:
    root = tmp_path / uuid4().hex
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    expected = {name for name in glob.iglob(f"{root}/{pattern}", recursive=True) if os.path.isfile(name)}
    assert {entry.uri for entry in storage.expand(f"{root}/{pattern}")} == expected


@pytest.mark.parametrize("pattern", ["", "/*/*", "/**/*.wav", "/**"])
def test_a_folder_that_cannot_be_listed_is_told(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By everything that leads into it: what lies there would be left out without a word."""
    for name in ("a/1.wav", "b/2.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    refuse(monkeypatch, "scandir", errno.EIO, "/b")
    with pytest.raises(SerpipeError, match=r"MANIFEST_OUT_OF_REACH.*Input/output error.*/b"):
        read_manifest(f"{tmp_path}{pattern}")
    assert read_manifest(f"{tmp_path}/a/*").num_rows == 1
    assert read_manifest(f"{tmp_path}/*/1.wav").num_rows == 1


@pytest.mark.parametrize("pattern", ["", "/*", "/**", "/**/*.wav", "/*/*/*.wav"])
def test_a_link_to_itself_stands_in_nobodys_way(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in ("a.wav", "deep/er/b.wav"):
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to("loop")
    found = {Path(uri).name for uri in read_manifest(f"{tmp_path}{pattern}")["uri"].to_pylist()}
    # One that leads nowhere is told by whoever decodes it.
    assert (
        found - {"loop"}
        == {
            "": {"a.wav", "b.wav"},
            "/*": {"a.wav"},
            "/**": {"a.wav", "b.wav"},
            "/**/*.wav": {"a.wav", "b.wav"},
            "/*/*/*.wav": {"b.wav"},
        }[pattern]
    )


def test_a_folder_in_the_middle_that_cannot_be_asked_about_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/audio/1.wav", "b/audio/2.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    refuse(monkeypatch, "stat", errno.ESTALE, "b/audio")
    with pytest.raises(SerpipeError, match="MANIFEST_OUT_OF_REACH"):
        read_manifest(f"{tmp_path}/*/audio/*.wav")


def test_one_file_that_may_not_be_asked_about_is_its_own_failure_and_all_are_the_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what is known of a file its recording would be another one."""
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("path\na.wav\nb.wav\n")
    refuse(monkeypatch, "stat", errno.EACCES, "b.wav")
    found = {Path(row["uri"]).name: row["size"] for row in read_manifest(str(tmp_path / "list.csv")).to_pylist()}
    assert found == {"a.wav": 0, "b.wav": None}
    refuse(monkeypatch, "stat", errno.EACCES, "a.wav")
    with pytest.raises(SerpipeError, match=r"MANIFEST_OUT_OF_REACH: .*check the credentials and their rights"):
        read_manifest(str(tmp_path / "list.csv"))


def test_what_is_no_name_is_one_recording_that_fails(tmp_path: Path) -> None:
    """As where a transcript stands in the column of the paths; the others are labelled."""
    (tmp_path / "a.wav").touch()
    (tmp_path / "list.csv").write_text(f"path\na.wav\n{'long ' * 80}\n")
    assert read_manifest(str(tmp_path / "list.csv")).num_rows == 2


def test_a_file_that_cannot_be_asked_about_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.wav").touch()
    refuse(monkeypatch, "stat", errno.EIO, "a.wav")
    for place in (tmp_path, tmp_path / "*", tmp_path / "a.wav"):
        with pytest.raises(SerpipeError, match="MANIFEST_OUT_OF_REACH"):
            read_manifest(str(place))


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "may [1]").mkdir()
    (tmp_path / "may [1]" / "a.wav").touch()
    assert open_manifest(str(tmp_path / "may [1]")).format == "folder"


@pytest.mark.parametrize("name", ["may [1].wav", "may?.wav", "*.wav", "may 1.wav"])
def test_one_recording_is_itself_however_much_it_looks_like_a_pattern(tmp_path: Path, name: str) -> None:
    for other in ("may 1.wav", "may1.wav", name):
        (tmp_path / other).write_bytes(b"RIFF\0" + other.encode())
    manifest = open_manifest(str(tmp_path / name))
    (found,) = read_rows(manifest).to_pylist()
    assert (found["uri"], found["size"]) == (str(tmp_path / name), 5 + len(name))
    assert manifest.fingerprint is not None


def test_one_recording_that_has_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    manifest = open_manifest(str(tmp_path / "a.wav"))
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UsageError, match=r"MANIFEST_NOT_FOUND: .*a\.wav has gone"):
        read_rows(manifest)


def test_fingerprints_change_with_what_they_stand_for(archive: Path) -> None:
    first = open_manifest(str(archive)).fingerprint
    assert open_manifest(str(archive)).fingerprint == first
    (archive / "deep" / "notes.TXT").write_bytes(b"other")
    assert open_manifest(str(archive)).fingerprint == first
    (archive / "deep" / "é.xyz").write_bytes(b"longer than before")
    assert open_manifest(str(archive)).fingerprint != first


def test_options_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,url\na.wav,b.wav\n")
    prints = {
        open_manifest(str(tmp_path / "m.csv")).fingerprint,
        open_manifest(str(tmp_path / "m.csv"), base="/else").fingerprint,
        open_manifest(str(tmp_path / "m.csv"), columns={"uri": "url"}).fingerprint,
    }
    assert len(prints) == 3
    assert None not in prints


def test_a_file_that_is_not_utf_8_by_name_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")).touch()
    bad = [row for row in read_rows(open_manifest(str(tmp_path))).to_pylist() if row["error"]]
    assert [row["error_code"] for row in bad] == ["MANIFEST_BAD_ENCODING"]


def test_folders_without_audio_say_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n")
    with pytest.raises(UsageError, match=r"MANIFEST_EMPTY: no audio .* \(1 \.csv\); if \.csv holds the manifest"):
        open_manifest(str(tmp_path))


@pytest.mark.parametrize("place", ["{}", "{}/*.parquet", "{}/part-*"])
def test_parts_of_parquet(tmp_path: Path, place: str) -> None:
    for k in range(3):
        pq.write_table(pa.table({"path": [f"{k}.wav"]}), tmp_path / f"part-{k}.parquet")
    if place == "{}/part-*":
        with pytest.raises(UsageError, match="MANIFEST_EMPTY"):
            open_manifest(place.format(tmp_path))
        manifest = open_manifest(place.format(tmp_path), format="parquet")
    else:
        manifest = open_manifest(place.format(tmp_path))
    assert (manifest.format, len(manifest.parts)) == ("parquet", 3)
    again = pickle.loads(pickle.dumps(manifest))
    rows = pa.concat_tables(t for part in reversed(again.parts) for t in again.read(part))
    assert rows["uri"].to_pylist() == [f"{tmp_path}/{k}.wav" for k in (2, 1, 0)]


def test_the_base_of_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path\nmay/1.wav\n/abs.wav\n")
    assert sorted(read_manifest(str(tmp_path / "m.csv"), base="https://host/calls/")["uri"].to_pylist()) == [
        "/abs.wav",
        "https://host/calls/may/1.wav",
    ]


def test_a_relative_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.csv").write_text("path\n1.wav\n")
    monkeypatch.chdir(tmp_path)
    assert read_manifest("m.csv")["uri"].to_pylist() == [f"{tmp_path}/1.wav"]
    assert open_manifest("m.csv").fingerprint == open_manifest((tmp_path / "m.csv").as_uri()).fingerprint


def test_memory() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/box/a b.wav": b"1", "/box/sub/é.wav": b"22", "/box/m.csv": "path\nsub/é.wav\na b.wav\n".encode()})
    folder, table = read_manifest("memory://box"), read_manifest("memory://box/m.csv")
    assert sorted(folder["uri"].to_pylist()) == ["memory://box/a b.wav", "memory://box/sub/é.wav"]
    assert table.equals(folder)
    assert read_manifest("memory://box/**/*.wav").equals(folder)


def test_s3_folder_pattern_and_table_agree(bucket: str) -> None:
    etags = {
        f"one/{name}": put(bucket, f"one/{name}", name.encode()) for name in ("a b.wav", "x/é#?.mp3", "x/c%20d.flac")
    }
    put(bucket, "one/.hidden/a.wav", b"")
    put(bucket, "one/list.csv", ("url\n" + "".join(f"s3a://{bucket}/{key}\n" for key in etags)).encode())
    put(
        bucket,
        "one/rel.jsonl",
        b'{"path": "a b.wav"}\n{"path": "./x/c%20d.flac"}\n{"path": "x/\xc3\xa9#?.mp3"}\n',
    )
    wanted = {
        f"s3://{bucket}/{key}": recording_id(f"s3://{bucket}/{key}", f"etag={etag}") for key, etag in etags.items()
    }
    folder = read_manifest(f"s3://{bucket}/one")
    assert dict(zip(folder["uri"].to_pylist(), folder["recording_id"].to_pylist(), strict=True)) == wanted
    for place in ("one/list.csv", "one/rel.jsonl", "one/"):
        assert read_manifest(f"s3://{bucket}/{place}").equals(folder), place
    assert set(read_manifest(f"s3a://{bucket}/one/x/*")["uri"].to_pylist()) == {u for u in wanted if "/x/" in u}
    assert dict(open_manifest(f"s3://{bucket}/one").left_out) == {".csv": 1, ".jsonl": 1, "hidden": 1}


def test_s3_fingerprints_follow_the_content_and_listings_are_fresh(bucket: str) -> None:
    put(bucket, "two/m.csv", b"path\na.wav\n")
    put(bucket, "two/a.wav", b"1")
    place = f"s3://{bucket}/two/m.csv"
    first, before = open_manifest(place).fingerprint, read_manifest(place)["recording_id"]
    assert open_manifest(place).fingerprint == first
    put(bucket, "two/a.wav", b"2")
    assert open_manifest(place).fingerprint == first
    assert read_manifest(place)["recording_id"] != before
    put(bucket, "two/m.csv", b"path\nb.wav\n")
    assert open_manifest(place).fingerprint != first


def test_one_listing_for_each_folder(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"three/{k % 2}/{k}.wav" for k in range(40)] + ["three/few/1.wav", "three/few/2.wav"]
    for key in keys:
        put(bucket, key, key.encode())
    lines = "".join(f"s3://{bucket}/{key},{s}\n" for s in range(3) for key in keys)
    put(bucket, "three/m.csv", ("url,start\n" + lines + f"s3://{bucket}/three/0/missing.wav,0\n").encode())
    manifest = open_manifest(f"s3://{bucket}/three/m.csv")
    tables = [t for part in manifest.parts for t in manifest.read(part, batch_rows=50)]
    asked: Counter[str] = Counter()
    s3 = fsspec.filesystem("s3")
    call = type(s3)._call_s3

    async def counted(self, method, *arguments, **options):  # type: ignore[no-untyped-def]
        asked[method] += 1
        return await call(self, method, *arguments, **options)

    lists = type(s3)._lsdir

    async def counted_lists(self, path, *arguments, **options):  # type: ignore[no-untyped-def]
        asked["list"] += 1
        return await lists(self, path, *arguments, **options)

    monkeypatch.setattr(type(s3), "_call_s3", counted)
    monkeypatch.setattr(type(s3), "_lsdir", counted_lists)
    listings = Listings()
    rows = pa.concat_tables(listings.stat(table) for table in tables)
    assert asked["list"] == 2
    assert asked["head_object"] <= 2 * len(tables)
    missing = [row["uri"] for row in rows.to_pylist() if row["etag"] is None]
    assert missing == [f"s3://{bucket}/three/0/missing.wav"]
    assert [row["size"] for row in rows.to_pylist()[:42]] == [len(key) for key in keys]


def test_a_web_server(tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def do_GET(self) -> None:
            asked.append(self.path)
            if "forbidden" in self.path:
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "m.csv").write_text("path\nsub/a.wav\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        manifest = open_manifest(f"{place}/m.csv?token=secret")
        recordings = read_manifest(f"{place}/m.csv?token=secret")
        with pytest.raises(UsageError, match="MANIFEST_NOT_FOUND"):
            open_manifest(f"{place}/n.csv")
        with pytest.raises(SerpipeError, match="MANIFEST_OUT_OF_REACH") as refused:
            open_manifest(f"{place}/forbidden.csv?token=secret")
    finally:
        server.shutdown()
        server.server_close()
    assert recordings["uri"].to_pylist() == [f"{place}/sub/a.wav"]
    assert recordings["recording_id"][0].as_py() == recording_id(f"{place}/sub/a.wav", "")
    # The signature opens the manifest, and is not to be found in anything that is written or shown.
    assert "/m.csv?token=secret" in asked
    assert "/m.csv" not in asked
    assert "secret" not in str(refused.value)
    assert "secret" not in repr(manifest)
    assert manifest.fingerprint is None


def test_one_recording_by_a_signed_url(tmp_path: Path) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def send_head(self) -> Any:
            if not self.path.endswith("?X-Amz-Signature=secret"):
                return self.send_error(403)
            return super().send_head()

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "a.wav").write_bytes(b"RIFF\0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_address[1]}/a.wav"
    try:
        manifest = open_manifest(f"{place}?X-Amz-Signature=secret")
        found = read_manifest(f"{place}?X-Amz-Signature=secret").to_pylist()
    finally:
        server.shutdown()
        server.server_close()
    assert [(row["uri"], row["query"], row["size"]) for row in found] == [(place, "X-Amz-Signature=secret", 5)]
    assert "secret" not in repr(manifest)


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(UsageError, match="MANIFEST_NOT_FOUND"):
        open_manifest("s3://no-such-bucket-at-all/list.csv")


def test_a_store_that_does_not_answer_gives_no_ids(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.csv").write_text("uri\ns3://calls/a.wav\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(SerpipeError) as caught:
        read_manifest(str(tmp_path / "m.csv"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert (caught.value.code, caught.value.transient) == ("MANIFEST_OUT_OF_REACH", True)
    assert "s3://calls/a.wav" in str(caught.value)


def test_the_real_corpus(tmp_path: Path) -> None:
    data = Path(os.environ.get("SERPIPE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (data / "emodb" / "labels.csv").exists():
        pytest.skip("no EmoDB below SERPIPE_TEST_DATA")
    found = plain(read_manifest(str(data / "emodb" / "labels.csv")))
    assert len(found) == 266
    assert all(Path(one["uri"]).is_file() and one["size"] > 0 for one in found)
    assert Counter(one["meta"]["emotion"] for one in found).keys() == {
        "anger",
        "happiness",
        "neutral",
        "sadness",
    }
    odd = read_manifest(str(data / "formats"))
    assert odd.num_rows >= 142 - 1
