"""What a run is asked for, made out the same way whether it is then carried out or only forecast."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from serpipe import ids
from serpipe.audio.decode import Channels
from serpipe.audio.segment import parse_segmentation
from serpipe.audio.stage import audio_fingerprint
from serpipe.engine import catalogue
from serpipe.errors import UsageError
from serpipe.manifest import Manifest
from serpipe.models.certificate import best_dtype
from serpipe.models.passport import versions
from serpipe.models.registry import ModelRef, resolve
from serpipe.store import layout
from serpipe.store.storage import Storage


@dataclass(frozen=True, slots=True)
class Cut:
    """How recordings become segments.

    Attributes:
        segmentation: as `serpipe.audio.segment.parse_segmentation` writes it.
        channels: `mix`, `first` or `split`.
    """

    segmentation: str
    channels: Channels

    @property
    def audio(self) -> str:
        """The audio fingerprint."""
        return audio_fingerprint(self.segmentation, self.channels)

    @property
    def by_length(self) -> bool:
        """Whether recordings of like length are planned together, so that a pack holds like lengths."""
        return self.segmentation in ("whole", "given")


@contextmanager
def device(address: str | None = None, *, gpus: float | None = None) -> Iterator[str]:
    """Where a run computes: `cuda` or `cpu`. A cluster that has to be asked stays joined for the `with` block.

    Args:
        address: of the run's cluster, as `serpipe.engine.cluster.joined` takes it.
        gpus: what the run will have, where that is known.

    Raises:
        SerpipeError: `CLUSTER_UNREACHABLE`.

    Examples:
        >>> with device(gpus=2.0) as where:
        ...     where
        'cuda'
    """
    # Ray is asked, never started for this: a night without work does without it.
    named = (address or os.environ.get("RAY_ADDRESS") or "local") != "local"
    if gpus is not None:
        yield _device(gpus)
    elif named or ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        from serpipe.engine.cluster import joined

        with joined(address) as cluster:
            yield _device(cluster.gpus)
    else:
        from serpipe.engine.cluster import gpus_here

        yield _device(gpus_here())


def _device(gpus: float) -> str:
    return "cuda" if gpus >= 1 else "cpu"


def resolved(models: Sequence[str], dtype: str, device: AbstractContextManager[str]) -> list[ModelRef]:
    """The models that are asked for, hashed and not loaded.

    Args:
        models: as `serpipe.models.registry.resolve` takes them.
        dtype: number format, or `auto`.
        device: where they will compute; entered for `auto` alone.

    Raises:
        UsageError: `MODEL_NONE`, `MODEL_TWICE`, `MODEL_UNKNOWN`.
        ModelError: `MODEL_WEIGHTS_MISSING`.
        SerpipeError: `CLUSTER_UNREACHABLE`.
    """
    if not models:
        raise UsageError("MODEL_NONE", "no model was asked for; name one with --model, `serpipe models` lists them")
    if dtype == "auto":
        with device as where:
            references = [replace(model, dtype=best_dtype(model, where)[0]) for model in map(resolve, models)]
    else:
        references = [resolve(model, dtype=dtype) for model in models]
    names = [model.name for model in references]
    for name in names:
        if names.count(name) > 1:
            raise UsageError("MODEL_TWICE", f"model {name!r} was asked for twice; name each model once")
    return references


def passport(model: ModelRef) -> str:
    """Where a store keeps a model's passport: one for each set of libraries."""
    libraries = ids.fingerprint(*sorted(f"{name}={version}" for name, version in versions().items()))
    return layout.passport(model.name, model.fp, libraries)


def read(
    found: Manifest,
    storage: Storage,
    run: str,
    join: Callable[[], object],
    *,
    into: Storage | None = None,
    recheck: bool = False,
) -> catalogue.Catalogue:
    """The recordings of a manifest: read here, kept from an earlier run, or read by a cluster.

    Args:
        found: the manifest.
        storage: the store.
        run: the run that reads it.
        join: joins the cluster, where one is needed.
        into: where a catalogue that a cluster reads goes; the store by default.
        recheck: ask where each recording lies for its content's version, whatever the manifest or an earlier run says.
    """
    if catalogue.is_small(found):
        return catalogue.read_here(found, recheck=recheck)
    kept = None if recheck else catalogue.unchanged(storage, found)
    if kept is not None:
        return kept
    join()
    return catalogue.read_with_ray(found, into or storage, run, recheck=recheck)


def cut(recordings: catalogue.Catalogue, segmentation: str | None, channels: Channels | None) -> Cut:
    """How recordings are cut, by request or by what the manifest says of them.

    Args:
        recordings: of the manifest.
        segmentation: `given`, `whole`, `window:6/3` or `vad`; by default `given` where the manifest has times, else
            `vad`.
        channels: by default `split` where the manifest names channels, else `mix`.

    Raises:
        UsageError: `SEGMENTATION_INVALID`.
    """
    parsed = parse_segmentation(segmentation or _default_segmentation(recordings))
    return Cut(str(parsed), channels or _default_channels(recordings))


def _default_segmentation(recordings: catalogue.Catalogue) -> str:
    return (
        "given"
        if any(pc.any(pc.greater(pc.list_value_length(part()["given"]), 0)).as_py() for part in recordings.parts)
        else "vad"
    )


def _default_channels(recordings: catalogue.Catalogue) -> Channels:
    for part in recordings.parts:
        given = part()["given"].combine_chunks().flatten()
        if len(given) > given.field("channel").null_count:
            return "split"
    return "mix"
