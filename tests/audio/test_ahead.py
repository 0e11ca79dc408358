"""The next recording is fetched while the present one is decoded: one ahead, and each fails for itself."""

from __future__ import annotations

import http.server
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from serpipe.audio.stage import Decode
from serpipe.engine.pipeline import _Decode
from serpipe.testing import write_speech
from tests.audio.test_stage import gather, row, table

PATIENCE_S = 60.0


class Archive:
    """A server of recordings that remembers what was asked for; of what is not there it says so."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.changed = threading.Condition()
        archive = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: object) -> None:
                super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                with archive.changed:
                    archive.asked.append(self.path.strip("/"))
                    archive.changed.notify_all()
                super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def wait_for(self, asked: list[str]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked == asked, PATIENCE_S), self.asked


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    for seed, name in enumerate("abc"):
        write_speech(tmp_path / "archive" / f"{name}.wav", seconds=2.0, seed=seed)
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    served = Archive(tmp_path / "archive")
    thread = threading.Thread(target=served.server.serve_forever)
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def names(archive: Archive, *recordings: str) -> list[str]:
    return [f"{archive.url}/{name}" for name in recordings]


def test_one_recording_ahead_and_no_more(archive: Archive, tmp_path: Path) -> None:
    uris = names(archive, "a.wav", "b.wav", "c.wav")
    packs = Decode(segmentation="whole", speech=False, pack_seconds=1.0)(table([row(uri) for uri in uris]))
    next(packs)
    # The consumer holds the first pack; the second recording comes all the same, the third not before its turn.
    archive.wait_for(["a.wav", "b.wav"])
    assert len(list((tmp_path / "copies").glob("serpipe-*"))) <= 2
    next(packs)
    archive.wait_for(["a.wav", "b.wav", "c.wav"])
    packs.close()
    assert not list((tmp_path / "copies").glob("serpipe-*"))


def test_the_next_task_is_fetched_while_this_one_is_decoded(archive: Archive, tmp_path: Path) -> None:
    """Tasks of one recording each, as of podcasts: an actor has two, and decodes one at a time."""
    long = np.tile(soundfile.read(tmp_path / "archive" / "a.wav", dtype="int16")[0], 160)
    soundfile.write(tmp_path / "archive" / "long.wav", long, 16_000)
    uris = names(archive, "long.wav", "b.wav")
    board = SimpleNamespace(stopped=lambda: None)
    decode = _Decode(board=board, segmentation="window:10/10", speech=False, pack_seconds=1.0)  # type: ignore[arg-type]
    first = decode(table([row(uris[0])]))
    packs = [next(first)]
    others: list[pa.Table] = []
    second = threading.Thread(target=lambda: others.extend(decode(table([row(uris[1])]))))
    second.start()
    archive.wait_for(["long.wav", "b.wav"])
    second.join(0.3)
    # The first one is in the middle of its recording.
    assert not others
    packs += first
    second.join(PATIENCE_S)
    together = gather([*packs, *others])
    alone = gather(Decode(segmentation="window:10/10", speech=False)(table([row(uri) for uri in uris])))
    for uri in uris:
        assert not together[uri].codes
        assert [one["segment_id"] for one in together[uri].segments] == [
            one["segment_id"] for one in alone[uri].segments
        ]
        assert all((one == other).all() for one, other in zip(together[uri].audio, alone[uri].audio, strict=True))


def test_what_cannot_be_fetched_fails_alone(archive: Archive, tmp_path: Path) -> None:
    uris = names(archive, "a.wav", "gone.wav", "b.wav", "gone too.wav", "c.wav")
    local = write_speech(tmp_path / "local.wav", seconds=1.0)
    mixed = [*uris[:3], str(tmp_path / "absent.wav"), local, *uris[3:]]
    decode = Decode(segmentation="whole", speech=False)
    ahead = gather(decode(table([row(uri) for uri in mixed])))
    assert {uri: found.codes for uri, found in ahead.items() if found.codes} == {
        uri: ["RECORDING_NOT_FOUND"] for uri in mixed if "gone" in uri or "absent" in uri
    }
    for uri in mixed:
        alone = gather(decode(table([row(uri)])))[uri]
        assert [(one["code"], one["message"], one["stage"], one["transient"]) for one in alone.failures] == [
            (one["code"], one["message"], one["stage"], one["transient"]) for one in ahead[uri].failures
        ]
        assert [one["segment_id"] for one in alone.segments] == [one["segment_id"] for one in ahead[uri].segments]
        assert all((one == other).all() for one, other in zip(alone.audio, ahead[uri].audio, strict=True))
    assert not list((tmp_path / "copies").glob("serpipe-*"))
