from __future__ import annotations

from pathlib import Path

import pytest

from serpipe.testing import write_speech


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine recordings in six formats, one of them no audio at all."""
    folder = tmp_path_factory.mktemp("archive")
    for seed, (name, seconds, rate, channels) in enumerate(
        [
            ("a/one.wav", 8.0, 16_000, 1),
            ("a/two.wav", 13.2, 44_100, 2),
            ("a/three.flac", 21.4, 48_000, 1),
            ("b/four.mp3", 30.0, 22_050, 1),
            ("b/five.ogg", 9.9, 16_000, 1),
            ("b/six.opus", 40.1, 48_000, 2),
            ("b/seven.wav", 2.0, 8_000, 1),
            ("b/tiny.wav", 0.01, 16_000, 1),
        ]
    ):
        write_speech(folder / name, seconds=seconds, sample_rate=rate, channels=channels, seed=seed)
    (folder / "b" / "page.mp3").write_text("<html>404</html>")
    return folder
