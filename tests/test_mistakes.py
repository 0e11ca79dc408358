"""The mistakes people make most: each is one sentence that names the mistake and the way out, and no traceback."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner, Result

from serpipe.cli import main
from serpipe.store import version
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage
from serpipe.testing import write_speech


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, and everything that can be given in its place by mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_speech(folder / "archive/a.wav", seconds=1.0)
    (folder / "no-audio").mkdir()
    (folder / "a-file").write_text("notes")
    (folder / "empty.csv").write_text("")
    (folder / "head.csv").write_text("uri,label\n")
    (folder / "names.csv").write_text("name,emotion\nann,sad\n")
    (folder / "spaces.csv").write_text("uri , emotion\n archive/a.wav , sad\n")
    (folder / "list.xlsx").write_bytes(b"PK\3\4" + bytes(64))
    (folder / "list.json").write_text('[\n{"uri": "archive/a.wav"}\n]')
    for name, text in (("older", '{"schema": "0"}'), ("another", "not serpipe's")):
        (folder / name).mkdir()
        (folder / name / "store.json").write_text(text)
    return folder


LABEL = "label {0}/archive {0}/store"

MISTAKES = {
    "an option of whole models": (
        "train {0}/s --gold {0}/g.csv --steps 9",
        2,
        "TRAIN_OPTION",
        "--steps is of --finetune",
    ),
    "an option of heads": (
        "train {0}/s --gold {0}/g.csv --finetune m=/m --hidden 0",
        2,
        "TRAIN_OPTION",
        "--hidden is of students on",
    ),
    "a hub's id for a name": ("label {0}/archive {0}/store --model superb/hubert=/m", 2, "MODEL_NAME", "as in hubert"),
    "wrong path": ("label {0}/archve {0}/store", 2, "MANIFEST_NOT_FOUND", "there is no .*/archve; give a manifest"),
    "wrong kind of uri": ("label s4://b/archive {0}/store", 2, "MANIFEST_NO_FILESYSTEM", "write a local path, s3://"),
    "folder without audio": ("label {0}/no-audio {0}/store", 2, "MANIFEST_EMPTY", "name the folder they lie in"),
    "empty list": ("label {0}/empty.csv {0}/store", 2, "MANIFEST_EMPTY", "write a line for each recording"),
    "list without rows": ("label {0}/head.csv {0}/store", 2, "MANIFEST_EMPTY", "write one for each recording"),
    "missing column": ("label {0}/names.csv {0}/store", 2, "MANIFEST_NO_URI_COLUMN", "'name'.*`--column uri=NAME`"),
    "typo in a column": (
        "label {0}/spaces.csv {0}/store --column uri=file",
        2,
        "MANIFEST_NO_SUCH_COLUMN",
        "it has the columns 'uri', 'emotion'",
    ),
    "spreadsheet": ("label {0}/list.xlsx {0}/store", 2, "MANIFEST_UNKNOWN_FORMAT", "save the list as CSV"),
    "JSON document": ("label {0}/list.json {0}/store", 2, "MANIFEST_UNKNOWN_FORMAT", "one object a line.*jq -c"),
    "unknown format": ("label {0}/names.csv {0}/store --format excel", 2, "MANIFEST_UNKNOWN_FORMAT", "known: .*csv"),
    "wrong segments": (f"{LABEL} --segment windows:6/3", 2, "SEGMENTATION_INVALID", "such as window:6/3"),
    "store is a file": ("label {0}/archive {0}/a-file", 2, "STORE_NO_FOLDER", "name one that is no file"),
    "store below a file": ("label {0}/archive {0}/a-file/store", 2, "STORE_NO_FOLDER", "name one that is no file"),
    "store cannot be made": ("label {0}/archive /proc/no-such-store", 2, "STORE_NO_FOLDER", "/proc/no-such-store"),
    "store of another version": ("label {0}/archive {0}/older", 1, "STORE_OTHER_VERSION", "version 0.*or a new store"),
    "another program's folder": ("label {0}/archive {0}/another", 1, "STORE_DAMAGED", "name another store"),
    "no store": ("status {0}/no-audio", 2, "STORE_NOT_FOUND", "`serpipe label MANIFEST .*` makes one"),
    "typo in a model": (f"{LABEL} --model hubert-large-superb", 2, "MODEL_UNKNOWN", "mean hubert-large-superb-er"),
    "folder of no model": (f"{LABEL} --model mine={{0}}/nowhere", 1, "MODEL_WEIGHTS_MISSING", "there is no folder"),
    "model twice": (f"{LABEL} --model embedded --model embedded", 2, "MODEL_TWICE", "name each model once"),
    "nothing to measure": (
        "models certify embedded --audio {0}/no-audio",
        2,
        "CERTIFICATE_NO_AUDIO",
        "folder of speech",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_a_way_out(mistake: str, here: Path) -> None:
    words, exit_code, code, way_out = MISTAKES[mistake]
    result = run(*words.format(here).split())
    assert result.stderr.startswith(f"serpipe: {code}: "), result.output
    assert re.search(way_out, result.stderr)
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (exit_code, 1, "")


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        ("lable {0}/archive {0}/store", "Did you mean .*'label'"),
        (f"{LABEL} --modle embedded", "Did you mean .*'--model'"),
        (f"{LABEL} --dtype fp16", "'float32', 'bfloat16', 'float16', 'auto'"),
        ("label {0}/archive", "Missing argument 'STORE'"),
    ],
)
def test_a_typo_in_the_command_is_told_what_was_meant(words: str, way_out: str, here: Path) -> None:
    result = run(*words.format(here).split())
    assert result.exit_code == 2
    assert re.search(way_out, result.stderr)


def test_weights_that_are_not_here_come_with_the_command_that_fetches_them(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-such-cache"))
    result = run("label", f"{here}/archive", f"{here}/store", "--model", "audeering-dim")
    assert result.exit_code == 1
    assert re.match(
        r"serpipe: MODEL_WEIGHTS_MISSING: .*`hf download audeering/\S+ --revision \w{40}` \(after `hf auth login` ",
        result.stderr,
    )


def test_a_gpu_that_is_not_there_is_told(here: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = run("models", "certify", "embedded", "--audio", f"{here}/archive", "--device", "cuda")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("serpipe: DEVICE_MISSING: ")
    assert "leave --device out" in result.stderr


def test_a_second_run_is_told_who_holds_the_store(here: Path, tmp_path: Path) -> None:
    version.check(Storage(str(tmp_path)))
    with Lease(Storage(str(tmp_path)), "tonights-run"):
        result = run("label", f"{here}/archive", str(tmp_path))
    assert result.exit_code == 1
    assert re.match(r"serpipe: STORE_HELD: .*tonights-run.*wait for it, or end it", result.stderr)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An S3 server with one bucket, and no credentials in reach."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield monkeypatch
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_no_credentials_and_no_bucket_are_told_apart(here: Path, s3: pytest.MonkeyPatch) -> None:
    import fsspec

    reading = run("label", "s3://absent/archive", f"{here}/store")
    writing = run("label", f"{here}/archive", "s3://absent/store")
    assert re.match(r"serpipe: MANIFEST_OUT_OF_REACH: .*set AWS_ACCESS_KEY_ID and", reading.stderr), reading.stderr
    assert re.match(r"serpipe: STORE_FORBIDDEN: .*set AWS_ACCESS_KEY_ID and", writing.stderr), writing.stderr
    assert (reading.exit_code, writing.exit_code) == (1, 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3.setenv(name, "test")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    absent = run("label", f"{here}/archive", "s3://absent/store")
    assert re.match(r"serpipe: STORE_NO_BUCKET: .*make it first", absent.stderr), absent.stderr
    assert absent.exit_code == 2


class _Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_what_is_wrong_with_one_recording_costs_one_row(tmp_path: Path) -> None:
    """Names with blanks are read as they stand; what is deleted, forbidden or no audio is told with what to do.

    So are blanks around a name, which a spreadsheet may have and a file hardly ever.
    """
    write_speech(tmp_path / "archive/a talk.wav", seconds=1.0)
    (tmp_path / "archive/page.mp3").write_text("<html>not found</html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    uris = [
        "archive/a talk.wav",
        "archive/deleted.wav",
        "archive/page.mp3",
        f"http://127.0.0.1:{server.server_port}/b.wav",
    ]
    with (tmp_path / "list.csv").open("w") as file:
        csv.writer(file).writerows([["uri "], *([uri] for uri in uris), [" archive/a talk.wav "]])
    try:
        result = run("label", f"{tmp_path}/list.csv", f"{tmp_path}/store", "--segment", "whole", "--no-speech-share")
    finally:
        server.shutdown()
        server.server_close()
    assert result.exit_code == 3, result.output
    told = run("failures", f"{tmp_path}/store").stdout
    assert re.search(r"RECORDING_NOT_FOUND .*deleted\.wav: .*deleted since it was listed, or the uri is wrong", told)
    assert re.search(r"RECORDING_FORBIDDEN .*b\.wav: .*check the credentials", told)
    assert re.search(r"AUDIO_\w+ .*page\.mp3: ", told)
    assert re.search(r"RECORDING_NOT_FOUND .*a talk\.wav : .*take blanks around names out of the manifest", told)
    assert told.count("talk.wav") == 2
    assert "`serpipe retry" in told


def test_a_dead_cluster_is_one_sentence(here: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    words = ("label", f"{here}/archive", str(tmp_path / "store"), "--address", "127.0.0.1:9")
    result = subprocess.run(
        [sys.executable, "-m", "serpipe", *words], env=environment, capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert re.search(r"CLUSTER_UNREACHABLE: .*at 127\.0\.0\.1:9 .*; look with `ray status", result.stderr)
