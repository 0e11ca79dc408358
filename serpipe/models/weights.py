"""Where weights come from: a folder, an object store, the local copy of a model hub. Nothing is fetched from a hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from serpipe.errors import ModelError
from serpipe.models.contract import ModelSpec

RANDOM_WEIGHTS = "RANDOM_WEIGHTS"
"""File that marks a checkpoint whose weights `serpipe.testing.make_checkpoint` made up."""


def cache() -> Path:
    """Where copies of remote checkpoints are kept: `SERPIPE_CACHE`, else below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("SERPIPE_CACHE") or os.path.join(home, "serpipe"))


def localised(location: str, files: tuple[str, ...]) -> str:
    """A local folder with a checkpoint's files; those at a URL are copied once, and again where they have changed.

    Args:
        location: a local folder, or an fsspec URL of one.
        files: patterns of the names that are wanted; the mark of random weights always is.

    Raises:
        ModelError: `MODEL_WEIGHTS_MISSING`, `MODEL_WEIGHTS_UNREACHABLE`.
    """
    if "://" not in location:
        if not os.path.isdir(location):
            raise ModelError("MODEL_WEIGHTS_MISSING", f"there is no folder {location}; give the checkpoint's own")
        return location
    # A machine that has its weights in a folder needs nothing that speaks to object stores.
    from serpipe.remote import connect, patiently

    try:
        fs, root = connect(location)
        fs.invalidate_cache(root)
        found = patiently()(fs.ls, root, detail=True)
    except Exception as error:
        raise _unreachable(location, error) from error
    wanted = {
        Path(entry["name"]).name: entry
        for entry in found
        if any(fnmatch(Path(entry["name"]).name, pattern) for pattern in (*files, RANDOM_WEIGHTS))
    }
    if not wanted.keys() - {RANDOM_WEIGHTS}:
        raise ModelError("MODEL_WEIGHTS_MISSING", f"there is no checkpoint at {location}")
    # What the store says of the files: a model that was trained again in its place is another one.
    facts = json.dumps([location, wanted], sort_keys=True, default=str)
    target = cache() / "models" / hashlib.sha256(facts.encode()).hexdigest()[:24]
    if not target.is_dir():
        _copy(location, fs, [entry["name"] for entry in wanted.values()], target)
    return str(target)


def _copy(location: str, fs: Any, names: list[str], target: Path) -> None:
    from serpipe.remote import patiently

    target.parent.mkdir(parents=True, exist_ok=True)
    # Another worker may copy the same checkpoint; whoever is first to rename wins, and both copies are the same.
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        for name in names:
            patiently()(fs.get_file, name, str(scratch / Path(name).name))
    except Exception as error:
        shutil.rmtree(scratch)
        raise _unreachable(location, error) from error
    try:
        scratch.rename(target)
    except OSError:
        shutil.rmtree(scratch)


def _unreachable(location: str, error: Exception) -> ModelError:
    from serpipe.remote import Trouble, trouble

    what = trouble(error)
    if what is Trouble.ABSENT:
        return ModelError("MODEL_WEIGHTS_MISSING", f"there is no checkpoint at {location}")
    transient = what is Trouble.PASSING
    hint = "try again" if transient else "check the location, the credentials and their rights to list and read"
    return ModelError("MODEL_WEIGHTS_UNREACHABLE", f"{location} cannot be read ({error}); {hint}", transient=transient)


def from_hub(spec: ModelSpec, revision: str, files: tuple[str, ...]) -> str:
    """The local copy of a hub's repository at a pinned revision.

    Args:
        spec: the model.
        revision: another revision than the spec's; empty for the spec's own.
        files: patterns of the names that are wanted.

    Raises:
        ModelError: `MODEL_WEIGHTS_MISSING`, with the command that fetches them.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if spec.hub_id is None:
        raise ModelError("MODEL_WEIGHTS_MISSING", f"{spec.name} has no hub; give its weights as {spec.name}=DIRECTORY")
    wanted = revision or spec.revision
    try:
        return snapshot_download(spec.hub_id, revision=wanted, allow_patterns=list(files), local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        pinned = f" --revision {wanted}" if wanted else ""
        raise ModelError(
            "MODEL_WEIGHTS_MISSING",
            f"the weights of {spec.name} are not on this machine; fetch them with `hf download {spec.hub_id}{pinned}` "
            f"(after `hf auth login` where its authors ask for consent), or give a folder as {spec.name}=DIRECTORY",
        ) from None
