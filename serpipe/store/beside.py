"""What lies beside the tables and can be damaged too: catalogues and plans of runs, pseudo-labels, passports."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from serpipe.store import parquet, seal
from serpipe.store.damage import Finding
from serpipe.store.look import Seen
from serpipe.store.storage import Storage

AT_ONCE = 4
"""Files in memory."""

_STORED = ("catalogue", "bad-rows")
"""Folders of a run that a later run may read instead of the manifest."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file that was looked at.

    Attributes:
        name: of the object.
        size: bytes.
        why: what is wrong with it, in words; None where nothing is.
    """

    name: str
    size: int
    why: str | None


@dataclass(frozen=True, slots=True)
class Beside:
    """What was found.

    Attributes:
        files: looked at.
        size: their bytes.
        findings: what is wrong.
    """

    files: int
    size: int
    findings: tuple[Finding, ...]


def look(storage: Storage, ended: Collection[str]) -> Beside:
    """Look at what lies beside the tables.

    Args:
        storage: the store.
        ended: runs that may be judged; others still write, or have left what nobody reads.
    """
    names = [name for name in storage.list("runs/") if name.endswith(".parquet") and _run(name) in ended]
    pseudo = storage.list("pseudo_labels/")
    whole = {name.rsplit("/", 1)[0] for name in pseudo if name.endswith("/generation.json")}
    # Without its record a generation is one that was not made to its end, and is made again.
    names += [name for name in pseudo if name.rsplit("/", 1)[0] in whole and name.endswith((".parquet", ".json"))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = [file for file in pool.map(lambda name: _look(storage, name), names) if file is not None]
    findings = [*_of_runs(seen), *_of_generations(seen)]
    return Beside(len(seen), sum(file.size for file in seen), tuple(findings))


def passports(storage: Storage, whole: Iterable[Seen]) -> Iterator[Finding]:
    """Passports that footers name and that are not there.

    Args:
        storage: the store.
        whole: files that were looked at, and are whole.
    """
    there = {hashlib.sha256(storage.get(name)).hexdigest() for name in storage.list("passports/")}
    missing: dict[tuple[str, str], int] = defaultdict(int)
    for found in whole:
        if found.table == "predictions" and found.facts["passport"] and found.facts["passport"] not in there:
            missing[found.partition["model"], found.partition["fp"]] += 1
    for (model, fp), files in sorted(missing.items()):
        message = f"{files:,} files name a passport of model {model}, fp {fp} that is not there, or was changed"
        yield Finding(code="PASSPORT_MISSING", file="passports/", message=message, remedy="none")


def _run(name: str) -> str:
    return name.split("/")[1]


def _look(storage: Storage, name: str) -> _File | None:
    try:
        data = storage.get(name)
    except FileNotFoundError:
        return None
    if name.endswith(".json"):
        return _File(name, len(data), _unparsed(data))
    if name.startswith("runs/") and name.split("/")[2] not in _STORED:
        return _File(name, len(data), _unreadable(data))
    return _File(name, len(data), seal.broken(io.BytesIO(data)) or _misplaced(name, data))


def _unparsed(data: bytes) -> str | None:
    try:
        json.loads(data)
    except ValueError:
        return "it is no JSON"
    return None


def _unreadable(data: bytes) -> str | None:
    """Of a plan, which has no digest: what keeps its rows from being read."""
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return f"its rows cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return None


def _misplaced(name: str, data: bytes) -> str | None:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        written_as = parquet.facts_of(file.metadata).get("name", "?")
    return None if written_as == name else f"it was written as {written_as}"


def _of_runs(seen: Iterable[_File]) -> Iterator[Finding]:
    """A catalogue or a plan is used whole or not at all, so all files of one that is damaged go."""
    together: dict[tuple[str, str], list[_File]] = defaultdict(list)
    for file in seen:
        if file.name.startswith("runs/"):
            folder = file.name.rsplit("/", 1)[0]
            stored = file.name.split("/")[2] in _STORED
            together["catalogue" if stored else "plan", _run(file.name) if stored else folder].append(file)
    after = {
        "catalogue": "the run's catalogue goes, and the next run reads the manifest again",
        "plan": "the plan of that run, which has ended, goes",
    }
    for (kind, _), files in together.items():
        if any(file.why for file in files):
            for file in files:
                why = file.why or "another file of it is damaged"
                message = f"{why}; {after[kind]}"
                yield Finding(code="RUN_DAMAGED", file=file.name, message=message, remedy="again", drop=True)


def _of_generations(seen: Iterable[_File]) -> Iterator[Finding]:
    for file in seen:
        if file.name.startswith("pseudo_labels/") and file.why:
            message = f"{file.why}; `serpipe pseudolabel` makes these pseudo-labels again, as another generation"
            yield Finding(code="GENERATION_DAMAGED", file=file.name, message=message, remedy="none")
