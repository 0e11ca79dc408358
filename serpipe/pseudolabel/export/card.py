"""The data card, README.md: what the labels are, how they came about, what may be done with them, what must not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serpipe.pseudolabel.export.formats import FORMATS
from serpipe.pseudolabel.export.licence import Licences

LIMITS = (
    "The labels are pseudo-labels: models' opinions, not people's. Where teachers err alike, the labels err, and no "
    "stage of the recipe sees it.",
    "The stages that drop segments select: what is kept is what teachers are sure of, in audio that is good, and "
    "rarer, quieter and mixed emotions are rarer here than in the archive.",
    "Emotion is what is heard in the voice, in the teachers' classes; it is neither what a person feels nor what "
    "the words say, and cultures hear differently.",
    "Speakers are kept apart between the splits by the name that the owner gave, or by recording where there is "
    "none: an unnamed voice in two recordings may be in both splits.",
    "The split dev is for choosing among students. Judge them on labels by people.",
)

OUT_OF_SCOPE = (
    "Inferring emotions of people at work or in education, which the EU AI Act forbids (Regulation 2024/1689, "
    "article 5(1)(f)) but for medical or safety reasons.",
    "Decisions about individuals: hiring, credit, policing, insurance, health.",
    "Recognising or profiling the speakers.",
    "Anything that is shown as what people truly feel.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a card says.

    Attributes:
        form: key of `FORMATS`.
        root: the destination.
        cut: whether the audio is there, else referred to.
        record: of the generation.
        promotions: what the gates said of each of its students that they were asked of.
        licences: behind it.
        clips: of each split and label.
        hours: of each split.
        lost: clips that could not be exported, by reason.
        clipped: clips that reach beyond full scale, which FLAC does not hold.
    """

    form: str
    root: str
    cut: bool
    record: Mapping[str, Any]
    promotions: Sequence[Mapping[str, Any]]
    licences: Licences
    clips: Mapping[str, Mapping[str, int]]
    hours: Mapping[str, float]
    lost: Mapping[str, int]
    clipped: int


def write(facts: Facts) -> bytes:
    """The card in Markdown, with the front matter that dataset hubs read."""
    parts = (_front, _title, _counts, _licence, _recipe, _funnel, _gates, _limits)
    return ("\n".join(line for part in parts for line in part(facts)) + "\n").encode()


def _front(facts: Facts) -> Iterator[str]:
    yield "---"
    yield from _hub_licence(facts.licences)
    yield "task_categories:\n- audio-classification"
    taint = ["- non-commercial"] if facts.licences.tainting else []
    yield "\n".join(["tags:", "- emotion", "- pseudo-labels", *taint])
    data = {"hf": "data/{split}-*.parquet", "audiofolder": "{split}/**"}.get(facts.form)
    if data:
        yield "configs:\n- config_name: default"
        if facts.form == "audiofolder":
            yield "  drop_labels: true"
        yield "  data_files:"
        for split in ("train", "dev"):
            if facts.clips.get(split):
                name = FORMATS[facts.form].splits[split]
                yield f"  - split: {name}\n    path: {data.format(split=name)}"
    yield "---\n"


def _hub_licence(licences: Licences) -> Iterator[str]:
    strictest = licences.strictest
    if strictest is None or not licences.complete:
        yield "license: unknown"
    elif strictest.lower().startswith(("cc", "apache", "mit", "bsd")) and " " not in strictest:
        yield f"license: {strictest.lower()}"
    else:
        yield f"license: other\nlicense_name: {json.dumps(strictest)}"


def _title(facts: Facts) -> Iterator[str]:
    record = facts.record
    form = FORMATS[facts.form]
    yield f"# Emotion pseudo-labels, generation {record['number']}\n"
    yield (
        f"Speech segments with the emotion that {_listed([one['model'] for one in record['teachers']])} heard in them, "
        f"made on {record['created'][:10]} by serpipe {record['serpipe']}. Classes, in the order of the soft labels: "
        f"{', '.join(record['classes'])}.\n"
    )
    yield f"Format: {form.title}. Load it with `{form.loads.format(root=facts.root)}`.\n"
    if facts.cut:
        yield "Audio: cut from the recordings, the samples that were labelled, FLAC at 16 kHz, one channel."
        if facts.clipped:
            yield f"{facts.clipped} clips reach beyond full scale and are clipped there."
    else:
        yield (
            "Audio: by reference to the recordings. Whoever loads it decodes for himself; from compressed files other "
            "decoders may give other samples by a few milliseconds."
        )
    yield ""


def _counts(facts: Facts) -> Iterator[str]:
    yield "## Clips\n"
    yield from _table(
        ["split", "hours", "clips", *facts.record["classes"]],
        [
            [split, f"{facts.hours[split]:.2f}", sum(counts.values()), *(counts.get(n, 0) for n in _classes(facts))]
            for split, counts in facts.clips.items()
        ],
    )
    for reason, count in sorted(facts.lost.items()):
        yield f"{count} kept segments are missing here: {reason}.\n"


def _licence(facts: Facts) -> Iterator[str]:
    licences = facts.licences
    yield "## Licence\n"
    if licences.strictest:
        yield f"The strictest licence that is known is **{licences.strictest}**.\n"
    for model, licence in licences.tainting.items():
        yield (
            f"**Not for commercial use**: {model} is under {licence}, and what it says is its output, so these labels "
            "may not be used commercially, whatever the audio allows.\n"
        )
    teachers = [["labels", model, licence or "unknown"] for model, licence in licences.teachers.items()]
    order = sorted(licences.audio.items(), key=lambda one: (one[0] is None, one[0] or ""))
    audio = [["audio", f"{count} recordings", licence or "unknown"] for licence, count in order]
    yield from _table(["what", "of", "licence"], teachers + audio)
    if not licences.complete:
        yield (
            "**Something here has no known licence.** Without one nothing may be passed on; ask the owners. A column "
            "`licence` of the manifest says it for recordings.\n"
        )


def _recipe(facts: Facts) -> Iterator[str]:
    record = facts.record
    yield "## How the labels were made\n"
    rows = []
    for teacher in record["teachers"]:
        fit = teacher["calibration"]
        rows.append([teacher["model"], teacher["fp"], teacher["lineage"], fit.get("method"), *_ece(fit)])
    yield from _table(["teacher", "fingerprint", "lineage", "calibration", "ECE before", "ECE after"], rows)
    gold = record.get("gold")
    if gold:
        counts = "; ".join(f"{split} {sum(of.values())}" for split, of in gold["counts"].items())
        yield f"Gold labels by people, hash `{gold['hash']}`: {counts}. None of these clips is among those here.\n"
    else:
        yield "No gold labels by people were given.\n"
    yield from (f"- {note}" for note in record["notes"])
    yield f"\nRecipe, hash `{record['recipe_hash']}`, seed {record['seed']}:\n"
    yield f"```json\n{json.dumps(record['recipe'], indent=1)}\n```\n"


def _ece(fit: Mapping[str, Any]) -> list[str]:
    return ["" if fit.get(name) is None else f"{fit[name]:.3f}" for name in ("ece_before", "ece_after")]


def _funnel(facts: Facts) -> Iterator[str]:
    record = facts.record
    yield "## Funnel\n"
    first = ["considered", "", "", record["considered"]["segments"], f"{record['considered']['hours']:.2f}"]
    steps = [
        [step["stage"], step["dropped"], f"{step['dropped_hours']:.2f}", step["kept"], f"{step['kept_hours']:.2f}"]
        for step in record["funnel"]
    ]
    yield from _table(["stage", "dropped", "hours dropped", "left", "hours left"], [first, *steps])


def _gates(facts: Facts) -> Iterator[str]:
    yield "## Gates\n"
    if not facts.promotions:
        yield "No student of this generation was judged when this was exported.\n"
    said = {True: "passed", False: "failed", None: "not asked"}
    for promotion in facts.promotions:
        student, status, split = (promotion[name] for name in ("student", "status", "split"))
        yield f"The student {student} was **{status}**, judged on gold's split {split}.\n"
        yield from _table(
            ["gate", "verdict", "why"], [[one["gate"], said[one["passed"]], one["why"]] for one in promotion["gates"]]
        )


def _limits(_: Facts) -> Iterator[str]:
    yield "## Known limits\n"
    yield from (f"- {limit}" for limit in LIMITS)
    yield "\n## Out of scope\n"
    yield from (f"- {use}" for use in OUT_OF_SCOPE)


def _classes(facts: Facts) -> Sequence[str]:
    return list(facts.record["classes"])


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""
