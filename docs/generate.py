"""Writes the pages that are made from the code: `python docs/generate.py`. A test holds them to it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from serpipe.labels import CANONICAL, COARSER, MAPPING_VERSION, TAXONOMIES
from serpipe.models.registry import FAMILIES
from serpipe.pseudolabel import recipe

HERE = Path(__file__).parent


def models() -> str:
    """What every model gives, its licence, and how far it was verified."""
    lines = [
        "# Models",
        "",
        "Made from the code by `docs/generate.py`.",
        "",
        "No real weights were at hand where these adapters were built, but for the embedded model's: every other one",
        "was tested on random-weight checkpoints in its hub's layout (`serpipe.testing.make_checkpoint`). The first",
        "contact with real weights is `serpipe models check NAME`.",
        "",
        "| model | hub id, revision | labels | embedding | seconds | licence | verified | not verified |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for module in FAMILIES:
        family = import_module(module)
        for spec in family.SPECS:
            pinned = f"`{spec.revision}`" if spec.revision else "not pinned"
            hub = f"{spec.hub_id}, {pinned}" if spec.hub_id else "ships with serpipe"
            frames = f", frames at {spec.frame_rate:g} Hz" if spec.frame_rate else ""
            cells = [
                f"`{spec.name}`",
                hub,
                ", ".join(spec.labels).replace("|", "\\|") or "none: embeddings only",
                f"{spec.embedding_width}{frames}",
                f"{spec.min_seconds:g}-{spec.max_seconds:g}",
                spec.licence,
                family.VERIFIED,
                family.NOT_VERIFIED,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def labels() -> str:
    """How raw labels become canonical ones, and what is lost."""
    lines = [
        "# Labels",
        "",
        f"Made from the code by `docs/generate.py`; mapping version {MAPPING_VERSION}.",
        "",
        "Raw labels and scores are always stored. Canonical scores are sums of raw ones; an emotion that a model",
        "cannot name is null, never zero; `mapped_mass` is the share of the scores that has a counterpart.",
        "",
    ]
    for name, mapping in TAXONOMIES.items():
        lines += [f"## {name}", "", "| raw | canonical |", "|---|---|"]
        lines += [f"| {raw.replace('<', '&lt;')} | {emotion or 'unmapped'} |" for raw, emotion in mapping.items()]
        lines.append("")
    heads = ["canonical", *COARSER]
    lines += ["## Coarser sets", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for emotion in CANONICAL:
        cells = []
        for target in COARSER.values():
            into = target.mapping.get(emotion, "unmapped")
            cells.append(f"{into} (lossy: {target.lossy[emotion]})" if emotion in target.lossy else into)
        lines.append(f"| {emotion} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


PAGES = {"models.md": models, "labels.md": labels, "recipe.md": recipe.page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
