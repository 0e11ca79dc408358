"""Secrets stay out of everything that is written or said; manifests name only what they may; nothing is unpickled."""

from __future__ import annotations

import ast
import bz2
import gzip
import http.server
import json
import logging
import os
import pickle
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import CliRunner

import serpipe
from serpipe import plan, remote
from serpipe.audio.resolver import Resolver
from serpipe.audio.stage import audio_fingerprint
from serpipe.cli import main
from serpipe.errors import SerpipeError, UsageError
from serpipe.manifest import open_manifest, read_manifest, read_manifest_with_errors
from serpipe.manifest.roots import Roots
from serpipe.models.registry import resolve
from serpipe.redact import redact, strip_secrets
from serpipe.store import commit, runs, version
from serpipe.store.rows import RunFacts, commit_of
from serpipe.store.storage import Storage
from serpipe.testing import speech_like, write_speech

CANARY = "kanari"
"""Stands in every secret of these tests, and must stand in nothing they make."""


class Site(http.server.BaseHTTPRequestHandler):
    """Gives a recording to those who sign, and repeats what it was asked to all others."""

    content: bytes

    def do_GET(self) -> None:
        status = 200 if f"X-Amz-Signature={CANARY}" in self.path else 403
        for name, other in (("gone", 404), ("busy", 503), ("broken", 500)):
            status = other if name in self.path else status
        body = self.content if status == 200 else f"no: {self.path} {self.headers}".encode()
        self.send_response(status, "OK" if status == 200 else f"refused {self.path}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base class asks for the name

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = write_speech(tmp_path_factory.mktemp("speech") / "a.wav", seconds=4.0)
    Site.content = Path(path).read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "AZURE_STORAGE_SAS_TOKEN"):
        monkeypatch.setenv(name, f"{CANARY}-{name.lower()}")


def everything_in(folder: Path) -> str:
    """Every byte of a store, Parquet unpacked."""
    said = []
    for path in sorted(folder.rglob("*")):
        said.append(str(path))
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            said.append(repr((table.schema.metadata, table.to_pylist())))
        elif path.is_file():
            said.append(path.read_bytes().decode("utf-8", "replace"))
    return "\n".join(said)


# --- secrets


def test_no_secret_reaches_a_table_a_log_or_an_error(
    site: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    signed = f"X-Amz-Credential={CANARY}&X-Amz-Signature={CANARY}"
    uris = [
        f"http://{site}/a.wav?{signed}",
        f"http://me:{CANARY}@{site}/b.wav?{signed}",
        f"http://{site}/c.wav?access_token={CANARY}",
        f"http://{site}/gone.wav?{signed}#{CANARY}",
        f"http://{site}/busy.wav?{signed}",
        f"http://{site}/broken.wav?sig={CANARY}",
        f"simplecache::http://me:{CANARY}@{site}/d.wav?{signed}",
        f"http://127.0.0.1:9/e.wav?{signed}",
        f"gopher://me:{CANARY}@{site}/f.wav?{signed}",
        f"s4://{CANARY}:{CANARY}@bucket/g.wav?sig={CANARY}",
    ]
    link = f"https://me:{CANARY}@host/page?v=1&sig={CANARY}"
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"uri": uri, "link": link}) + "\n" for uri in uris))
    store = tmp_path / "store"
    storage, run = Storage(str(store)), runs.new_run_id()
    recordings, bad = read_manifest_with_errors(str(tmp_path / "m.jsonl"))
    assert (recordings.num_rows, bad.num_rows) == (8, 2)
    model = resolve("embedded")
    wanted = {"audio": audio_fingerprint("window:2/2", "mix"), "models": {"embedded": model.fp}}
    todo = plan.make_plan(storage, run, [lambda: recordings], **wanted, by_length=False)
    facts = RunFacts(run_id=run, **wanted)
    decode = serpipe.Decode(segmentation="window:2/2", speech=False, models=facts.models)
    predict = serpipe.Predict([model], threads=1)
    commit.write(storage, commit_of([predict(pack) for pack in decode(recordings)], facts))
    runs.save(storage, runs.Run(run_id=run, manifest=str(tmp_path / "m.jsonl"), **wanted))
    assert sum(len(queries) for queries in todo.queries.values()) == 8
    names = storage.list("quarantine/")
    failed = [row for name in names for row in pq.read_table(storage.path(name), partitioning=None).to_pylist()]
    assert {row["uri"].removeprefix(f"http://{site}"): row["code"] for row in failed} == {
        "/c.wav": "RECORDING_FORBIDDEN",
        "/gone.wav": "RECORDING_NOT_FOUND",
        "/busy.wav": "RECORDING_UNREACHABLE",
        "/broken.wav": "RECORDING_UNREACHABLE",
        "http://127.0.0.1:9/e.wav": "RECORDING_UNREACHABLE",
    }
    written = pq.read_table(store / "recordings", partitioning=None)
    assert sorted(written["uri"].to_pylist()) == [
        f"http://{site}/a.wav",
        f"http://{site}/b.wav",
        f"simplecache::http://{site}/d.wav",
    ]
    assert dict(written["meta"][0].as_py()) == {"link": "https://host/page"}
    out = capfd.readouterr()
    for said in (everything_in(store), repr(bad.to_pylist()), caplog.text, out.out, out.err):
        assert CANARY not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["label", "http://me:{0}@{1}/gone.csv?X-Amz-Signature={0}", "{2}/store"],
        ["label", "http://me:{0}@{1}/m.csv?token={0}", "{2}/store"],
        ["label", "http://127.0.0.1:9/m.csv?token={0}", "{2}/store"],
        ["label", "gopher://me:{0}@{1}/m.csv?token={0}", "{2}/store"],
        ["label", "{2}/m.csv", "{2}/store"],
        ["label", "{2}", "gopher://me:{0}@{1}/store?sig={0}"],
        ["label", "{2}/a.wav", "{2}/store", "--model", "embedded=https://me:{0}@{1}/model?sig={0}"],
        ["label", "{2}/a.wav", "s3://key:{0}@bucket/store"],
        ["status", "https://me:{0}@{1}/store?sig={0}"],
    ],
)
def test_no_secret_is_said_to_the_operator(site: str, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a.wav").write_bytes(Site.content)
    (tmp_path / "m.csv").write_text(f"uri\ngopher://me:{CANARY}@h/a.wav?sig={CANARY}\n")
    result = CliRunner().invoke(main, [argument.format(CANARY, site, tmp_path) for argument in arguments])
    assert result.exit_code in (1, 2), result.output
    assert result.output.startswith("serpipe: ")
    assert CANARY not in result.output


@pytest.mark.parametrize(
    "said",
    [
        f"403, message='Forbidden', url='https://h.org/a.wav?X-Amz-Signature={CANARY}'",
        f"GET https://me:{CANARY}@h.org/a.wav failed",
        f"https://h.org/a.wav#access_token={CANARY}&x=1",
        f"{{'Authorization': 'Bearer {CANARY}.abc'}}",
        f"Authorization: AWS4-HMAC-SHA256 Credential={CANARY}/x, SignedHeaders=host, Signature={CANARY}",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={CANARY}==;EndpointSuffix=x",
        f"aws_secret_access_key={CANARY}",
        f"<urlopen error of s3://{CANARY}:{CANARY}@bucket/a.wav>",
        f"x-amz-security-token: {CANARY}",
        f"the key {CANARY}-hf_token is not known",
    ],
)
def test_what_libraries_say(said: str) -> None:
    assert CANARY not in redact(said)
    assert CANARY not in str(SerpipeError("X", said))
    assert redact(redact(said)) == redact(said)


@pytest.mark.parametrize(
    "plain",
    [
        "s3://bucket/a b.wav has 3 bytes",
        "abfs://box@account.dfs.core.windows.net/a.wav",
        "`--column start=` if the column means something else",
        "process 12 since 2030-01-01T00:00:00+00:00; try again after 120 s",
        "mail me@host or read https://host/docs/key.html",
    ],
)
def test_what_is_no_secret_stays(plain: str) -> None:
    assert redact(plain) == strip_secrets(plain) == plain


def test_a_manifest_with_fresh_signatures_reopens_what_a_store_names(site: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"uri\nhttp://{site}/a.wav?X-Amz-Signature={CANARY}\n")
    row = {"uri": f"http://{site}/a.wav"}
    with Resolver(read_manifest(str(tmp_path / "m.csv"))).local_copy(row["uri"]) as path:
        assert Path(path).read_bytes() == Site.content
    with pytest.raises(SerpipeError, match="RECORDING_FORBIDDEN"), Resolver().local_copy(row["uri"]):
        pass


# --- roots


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    for name in ("in/a.wav", "in/deep/b.wav", "out/c.wav", "inside/d.wav"):
        write_speech(tmp_path / name, seconds=0.5)
    (tmp_path / "in" / "link.wav").symlink_to(tmp_path / "out" / "c.wav")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    (tmp_path / "way").symlink_to(tmp_path / "in")
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("{0}/in/a.wav", True),
        ("in/deep/../deep/b.wav", True),
        ("{0}/way/a.wav", True),
        ("file://{0}/in/a.wav", True),
        ("s3://calls/may/a.wav", True),
        ("s3a://calls/may/x/../a.wav", True),
        ("https://host/calls/a.wav?sig=1", True),
        ("{0}/out/c.wav", False),
        ("{0}/in", False),
        ("{0}/inside/d.wav", False),
        ("{0}/in/link.wav", False),
        ("{0}/in/folder/c.wav", False),
        ("in/../out/c.wav", False),
        ("file://{0}/in/%2e%2e/out/c.wav", False),
        ("file:///etc/passwd", False),
        ("/proc/self/environ", False),
        ("s3://calls/mayor/a.wav", False),
        ("s3://other/may/a.wav", False),
        ("https://host/calls/../secret.wav", False),
        ("https://host/calls/%2e%2E/secret.wav", False),
        ("https://host/calls/%252e%252e/secret.wav", False),
        ("http://host/calls/a.wav", False),
        ("https://host:8080/calls/a.wav", False),
        ("https://host@evil/calls/a.wav", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("simplecache::s3://calls/may/a.wav", False),
        ("memory://calls/may/a.wav", False),
        ("gs://calls/may/x/../a.wav", True),
        ("abfs://calls/may/a.wav", True),
        ("abfs://calls/may/../../pay/a.wav", False),
        ("sftp://host/calls/a.wav", True),
        ("sftp://host/calls/../secret.wav", False),
        ("smb://host/calls/may/..\\..\\secret.wav", False),
        ("ftp://host/calls/%2e%2e/secret.wav", False),
        ("hdfs://host/calls/../secret.wav", False),
    ],
)
def test_what_lies_in_the_roots(roots: Path, uri: str, inside: bool) -> None:
    (roots / "m.csv").write_text(f"uri\n{uri.format(roots)}\n")
    allowed = [f"{roots}/in", "s3://calls/may/", "gs://calls/may", "abfs://calls/may", "https://host/calls"]
    allowed += [f"{scheme}://host/calls" for scheme in ("sftp", "smb", "ftp", "hdfs")]
    manifest = open_manifest(str(roots / "m.csv"), roots=allowed)
    (row,) = next(manifest.read(manifest.parts[0])).to_pylist()
    assert row["error_code"] == (None if inside else "URI_OUTSIDE_ROOTS")
    assert manifest.fingerprint != open_manifest(str(roots / "m.csv")).fingerprint


def test_a_row_outside_is_named_before_any_work(roots: Path) -> None:
    (roots / "m.csv").write_text(f"uri\n{roots}/in/a.wav\n{roots}/out/c.wav\n")
    arguments = ["label", str(roots / "m.csv"), str(roots / "store"), "--allow-root", str(roots / "in")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "URI_OUTSIDE_ROOTS" in result.output
    assert "m.csv, row 3:" in result.output
    assert not list((roots / "store").rglob("*.parquet"))


def test_links_in_a_folder_do_not_lead_out(roots: Path) -> None:
    manifest = open_manifest(str(roots / "in"), roots=[str(roots / "in")])
    rows = [row for part in manifest.parts for table in manifest.read(part) for row in table.to_pylist()]
    refused = {Path(row["uri"]).relative_to(roots / "in").as_posix() for row in rows if row["error_code"]}
    assert refused == {"link.wav", "folder/c.wav"}


def test_roots_that_make_no_sense() -> None:
    for root in ("", "s3://a/b?versionId=1", "zip://x::s3://a"):
        with pytest.raises(UsageError, match="ROOT_INVALID"):
            Roots([root])


# --- bombs


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    for name, start in (("m.csv.gz", b"uri\n"), ("m.jsonl.gz", b'{"uri": "a.wav"}\n'), ("wav.scp.gz", b"a a.wav\n")):
        with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
            file.write(start)
            for _ in range(24):
                file.write(b"x" * (1 << 20))
        with pytest.raises(UsageError, match="MANIFEST_LINE_TOO_LONG"):
            read_manifest(str(tmp_path / name))


def m4a(path: Path) -> bytes:
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(speech_like(2.0)[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path.read_bytes()


def test_archives_and_bombs_cost_one_row_each(tmp_path: Path) -> None:
    zeros = gzip.compress(bytes(16 << 20), compresslevel=9)
    (tmp_path / "gzip.wav").write_bytes(zeros)
    with zipfile.ZipFile(tmp_path / "zip.mp3", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.mp3", bytes(16 << 20))
    with tarfile.open(tmp_path / "tar.flac", "w") as tar:
        tar.add(tmp_path / "gzip.wav", "a.flac")
    (tmp_path / "bzip.ogg").write_bytes(bz2.compress(bytes(8 << 20)))
    soundfile.write(tmp_path / "silence.flac", np.zeros(5 * 60 * 8_000, np.int16), 8_000)
    assert (tmp_path / "silence.flac").stat().st_size < 100_000
    for name, box, field in (("index.m4a", b"stsz", 12), ("length.m4a", b"mdhd", 20)):
        content = bytearray(m4a(tmp_path / name))
        at = content.index(box) + field
        content[at : at + 4] = (10**9).to_bytes(4, "big")
        (tmp_path / name).write_bytes(content)
    write_speech(tmp_path / "fine.wav", seconds=2.0)
    recordings = read_manifest(f"{tmp_path}/*")
    assert recordings.num_rows == 8
    found: dict[str, list[str]] = {}
    labelled: dict[str, float] = {}
    for pack in serpipe.Decode(segmentation="whole", speech=False)(recordings):
        for failure in pack["failures"][0].as_py():
            found.setdefault(Path(failure["uri"]).name, []).append(failure["code"])
        for row in pack["recordings"][0].as_py():
            labelled[Path(row["uri"]).name] = round(row["duration_s"], 1)
    archives = ("gzip.wav", "zip.mp3", "tar.flac", "bzip.ogg", "index.m4a")
    refused = {name: ["AUDIO_UNDECODABLE"] for name in archives}
    assert found == refused | {"silence.flac": ["SEGMENT_SILENT"]}
    assert labelled == {"silence.flac": 300.0, "fine.wav": 2.0, "length.m4a": 2.1}


# --- pickles


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Bomb.path),)

    path: Path


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    Bomb.path = tmp_path / "ran"
    planted = pickle.dumps(Bomb())
    archive = tmp_path / "archive"
    for ending in ("wav", "mp3", "flac", "m4a", "ogg", "npy", "pkl"):
        (archive / f"a.{ending}").parent.mkdir(exist_ok=True)
        (archive / f"a.{ending}").write_bytes(planted)
    for name in ("m.parquet", "m.csv", "m.tsv", "m.jsonl", "m.json", "wav.scp", "m.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(planted) if name.endswith("gz") else planted)
        with pytest.raises(UsageError):
            read_manifest(str(tmp_path / name))
    for pack in serpipe.Decode(segmentation="whole", speech=False)(read_manifest(f"{archive}/*")):
        assert pack["segments"][0].as_py() == []
    everywhere = {"status", "failures", "retry", "gc", "label"}
    for name, refused in {
        version.NAME: everywhere | {"verify"},
        "ledger/R-0.parquet": everywhere,
        "ledger/compact-000001.parquet": everywhere,
        "quarantine/R-0.parquet": everywhere - {"gc"},
        "quarantine/R-manifest.parquet": everywhere - {"gc"},
        "lease/0000000001.json": everywhere - {"failures"},
        "rewrites/x.json": {"retry", "gc", "label"},
        "damage/marks.json": {"label"},
        "runs/R/run.json": {"status"},
    }.items():
        for command in sorted(refused):
            store = tmp_path / f"{command} {name.replace('/', ' ')}"
            version.check(Storage(str(store)))
            Storage(str(store)).put(name, planted)
            arguments = [command, str(archive), str(store)] if command == "label" else [command, str(store)]
            told = CliRunner().invoke(main, arguments)
            assert isinstance(told.exception, SystemExit), (command, name, told.exception)
            assert re.match(r"serpipe: STORE_DAMAGED: .*\n$", told.stderr), (command, name, told.stderr)
            assert told.exit_code == 1
    assert not Bomb.path.exists()
    pickle.loads(planted)
    assert Bomb.path.exists()


def test_no_code_unpickles() -> None:
    source = Path(serpipe.__file__).parent
    found = set()
    for path in source.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name, options = ast.unparse(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
            safe = name == "torch.load" and ast.unparse(options.get("weights_only", call.func)) == "True"
            unsafe = name.endswith((".load", ".loads")) and name.split(".")[0] in ("pickle", "torch", "joblib", "dill")
            allowed = {ast.unparse(options[name]) for name in ("allow_pickle", "trust_remote_code") if name in options}
            if (unsafe and not safe) or allowed - {"False"}:
                found.add((path.relative_to(source).as_posix(), ast.unparse(call)))
    # What one of the program's own processes hands to another, through Ray, which pickles everything.
    assert {path for path, _ in found} <= {"pseudolabel/passes.py"}, found
