"""Audio and checkpoints for tests and trials, made on the spot: nothing recorded, nothing downloaded."""

from __future__ import annotations

from serpipe.testing.checkpoints import make_checkpoint
from serpipe.testing.speech import speech_like, write_speech

__all__ = ["make_checkpoint", "speech_like", "write_speech"]
