"""Where everything of a store lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def recordings(commit: str) -> str:
    """The commit's rows of `recordings`."""
    return f"recordings/{commit}.parquet"


def segments(audio: str, commit: str) -> str:
    """The commit's rows of `segments`."""
    return f"segments/audio={audio}/{commit}.parquet"


def predictions(model: str, fp: str, commit: str) -> str:
    """The commit's predictions of one model."""
    return f"predictions/model={model}/fp={fp}/{commit}.parquet"


def embeddings(model: str, fp: str, commit: str) -> str:
    """The commit's utterance embeddings of one model."""
    return f"embeddings/model={model}/fp={fp}/{commit}.parquet"


def frames(model: str, fp: str, commit: str) -> str:
    """The commit's frame embeddings of one model."""
    return f"frames/model={model}/fp={fp}/{commit}.parquet"


def quarantine(commit: str, model: str | None = None) -> str:
    """What failed in the commit: before any model, or in one model."""
    return f"quarantine/{commit}.parquet" if model is None else f"quarantine/{commit}.{model}.parquet"


def ledger(commit: str) -> str:
    """The commit's index entries."""
    return f"ledger/{commit}.parquet"


def plan(run: str, piece: int = 0) -> str:
    """A piece of the frozen plan of a run; most plans have one."""
    return f"runs/{run}/plan-{piece:05d}.parquet" if piece else f"runs/{run}/plan.parquet"


def run(run: str) -> str:
    """What a run was asked, and how it ended."""
    return f"runs/{run}/run.json"


def progress(run: str) -> str:
    """How far a run is, rewritten while it lasts."""
    return f"runs/{run}/progress.json"


def of_driver(run: str, what: str) -> str:
    """Stem of a file that a run's driver writes beside the commits: `manifest` or `lost`."""
    return f"{run}-{what}"


def run_of(commit: str) -> str:
    """The run a commit belongs to.

    Examples:
        >>> run_of(commit_name("20300101T000000000000Z-1a2b3c4d", ["a"]))
        '20300101T000000000000Z-1a2b3c4d'
    """
    return commit.rsplit("-", 1)[0]


def passport(model: str, fp: str, libraries: str) -> str:
    """A model's passport, one for each set of libraries; its hash stands in the footer of every file they wrote."""
    return f"passports/{model}-{fp}-{libraries}.json"


def commit_name(run: str, packs: Iterable[str]) -> str:
    """Stem of a commit's files: the run and a hash over its packs, the same whenever the task runs again.

    Examples:
        >>> commit_name("R1", ["b", "a"]) == commit_name("R1", ["a", "b"])
        True
    """
    digest = hashlib.blake2b("\n".join(sorted(packs)).encode(), digest_size=8)
    return f"{run}-{digest.hexdigest()}"


def stem(name: str) -> str:
    """The commit a file belongs to.

    Examples:
        >>> stem("quarantine/R1-00ff.embedded.parquet")
        'R1-00ff'
    """
    return name.rsplit("/", 1)[-1].split(".", 1)[0]
