"""Labels that a run leaves as they are though it would make others today: how many, and what has changed since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serpipe.models.registry import ModelRef
from serpipe.store import runs
from serpipe.store.storage import Storage

_HASH_DIGITS = 8
"""Of a hash, what people compare."""


def sentences(
    storage: Storage,
    superseded: Mapping[tuple[str, str, str], int],
    models: Sequence[ModelRef],
    *,
    audio: str,
    asked: Mapping[str, Any],
) -> Iterator[str]:
    """Say which labels are kept, and what is different today.

    Args:
        storage: the store, which has the passports of old models and the records of old runs.
        superseded: number of recordings by model, old model fingerprint and old audio fingerprint.
        models: today's models.
        audio: today's audio fingerprint.
        asked: today's `serpipe.audio.stage.audio_facts`.

    Yields:
        One sentence for each.
    """
    today = {model.name: model for model in models}
    records = runs.load(storage) if any(old != audio for _, _, old in superseded) else []
    for (name, fp, old_audio), count in sorted(superseded.items()):
        changes: list[str] = []
        if fp != today[name].fp:
            changes += _model_changes(_passport(storage, name, fp), today[name]) or [
                _change("model", fp, today[name].fp)
            ]
        if old_audio != audio:
            before = next((run.asked for run in reversed(records) if run.audio == old_audio), {})
            changes += _audio_changes(before, asked) or [_change("audio", old_audio, audio)]
        one = count == 1
        yield (
            f"{name}: {count:,} recording{'' if one else 's'} keep{'s' if one else ''} the labels of "
            f"{' and '.join(changes)}; --relabel labels {'it' if one else 'them'} again, `serpipe gc {storage.shown}` "
            "then drops the old labels"
        )


def _passport(storage: Storage, model: str, fp: str) -> dict[str, Any]:
    for name in storage.list(f"passports/{model}-{fp}-"):
        found: dict[str, Any] = json.loads(storage.get(name))
        return found
    return {}


def _model_changes(before: Mapping[str, Any], model: ModelRef) -> list[str]:
    facts = (
        ("weights", "weights_sha256", model.weights_sha256),
        ("adapter epoch", "adapter_epoch", model.spec.adapter_epoch),
        ("dtype", "dtype", model.dtype),
    )
    return _changes(before, facts)


def _audio_changes(before: Mapping[str, Any], today: Mapping[str, Any]) -> list[str]:
    words = {
        "segmentation": "segmentation",
        "channels": "channels",
        "decoder_epoch": "decoder epoch",
        "unit_s": "seconds a unit",
    }
    return _changes(before, [(word, name, today[name]) for name, word in words.items()])


def _changes(before: Mapping[str, Any], facts: Sequence[tuple[str, str, Any]]) -> list[str]:
    return [_change(word, before[name], now) for word, name, now in facts if name in before and before[name] != now]


def _change(word: str, before: object, now: object) -> str:
    return f"{word} {_short(before)} (today: {_short(now)})"


def _short(value: object) -> str:
    text = str(value)
    return text[:_HASH_DIGITS] if len(text) == 64 else text
