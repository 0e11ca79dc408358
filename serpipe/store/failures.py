"""What fails now: by code, stage and feed, with examples and with what tries it again."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from serpipe.store.reading import Store

FEEDS = 10
"""Of the feeds with failures, how many are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What fails with one code at one stage.

    Attributes:
        code: of the error.
        stage: manifest, read, decode, segment, model or run.
        rows: events.
        recordings: recordings they belong to.
        again: what tries them again, as a sentence.
    """

    code: str
    stage: str
    rows: int
    recordings: int
    again: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One event.

    Attributes:
        code: of the error.
        stage: where it happened.
        uri: of the recording; None where it is not known.
        model: None where it failed before any model.
        start_s: of the segment; None where the whole recording, or the rest of it, failed.
        end_s: of the segment.
        message: what, why, what to do.
        transient: tried again by the next run, unasked.
        attempt: how often it was tried.
        run_id: the last run that tried it.
    """

    code: str
    stage: str
    uri: str | None
    model: str | None
    start_s: float | None
    end_s: float | None
    message: str
    transient: bool
    attempt: int
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """What fails now.

    Attributes:
        groups: by code and stage, most first.
        feeds: recordings with failures by folder of their uri, most first.
        examples: as many as were asked for.
        more: events beyond the examples.
    """

    groups: tuple[Group, ...]
    feeds: dict[str, int]
    examples: tuple[Example, ...]
    more: int


def failures(
    store: Store, *, code: str | None = None, stage: str | None = None, feed: str | None = None, limit: int = 20
) -> Failures:
    """Look at what fails now.

    Args:
        store: the store.
        code: only this error code.
        stage: only this stage.
        feed: only recordings in this folder, or below it.
        limit: examples wanted.
    """
    failing = store.failing()
    for name, wanted in (("code", code), ("stage", stage)):
        if wanted is not None:
            failing = failing.filter(pc.equal(failing[name], wanted))
    if feed is not None:
        failing = failing.filter(pc.starts_with(failing["uri"], feed.rstrip("/") + "/"))
    rows = failing.sort_by([("code", "ascending"), ("uri", "ascending"), ("start_s", "ascending")]).to_pylist()
    feeds: dict[str, set[bytes]] = defaultdict(set)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        feeds[posixpath.dirname(row["uri"] or "?")].add(row["recording_id"])
        groups[row["code"], row["stage"]].append(row)
    return Failures(
        groups=tuple(_group(store, *key, groups[key]) for key in sorted(groups, key=lambda key: -len(groups[key]))),
        feeds=dict(Counter({name: len(ids) for name, ids in feeds.items()}).most_common(FEEDS)),
        examples=tuple(_example(row) for row in rows[:limit]),
        more=max(len(rows) - limit, 0),
    )


def lines(found: Failures) -> Iterator[str]:
    """What fails, for people."""
    if not found.groups:
        yield "nothing fails"
        return
    for group in found.groups:
        yield f"{group.code} ({group.stage}): {group.rows:,} of {group.recordings:,} recordings; {group.again}"
    yield "by feed: " + ", ".join(f"{name} {count:,}" for name, count in found.feeds.items())
    for row in found.examples:
        where = "" if row.start_s is None else f" at {row.start_s:.2f} s"
        model = f" [{row.model}]" if row.model else ""
        yield f"  {row.code}{model} {row.uri or '?'}{where}: {row.message}"
    if found.more:
        yield f"  … and {found.more:,} more (--limit)"


def _group(store: Store, code: str, stage: str, rows: list[dict[str, Any]]) -> Group:
    passing = sum(row["transient"] for row in rows)
    if stage == "manifest":
        again = "mend these rows of the manifest"
    elif passing == len(rows):
        again = (
            "the next `serpipe label` with the same models and segmentation tries them again, those behind signed uris "
            "when a manifest names them"
        )
    else:
        again = f"`serpipe retry {store.storage.shown} --code {code}` makes them work for the next run"
        if passing:
            again += f", which tries {passing:,} of them unasked"
    return Group(
        code=code, stage=stage, rows=len(rows), recordings=len({row["recording_id"] for row in rows}), again=again
    )


def _example(row: dict[str, Any]) -> Example:
    return Example(**{name: row[name] for name in Example.__dataclass_fields__})
