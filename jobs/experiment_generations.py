"""What rounds of pseudo-labels are worth on a small labelled corpus, and write the table into docs/generations.md.

CORPUS is a folder with `labels.csv` (columns path, emotion, speaker, split) and the files it names. Of split `dev` some
clips of each class are gold, drawn by the seed; the others are the pool, their labels hidden, and so are the segments
of `--timeline`, a recording whose `.segments.csv` (start_s, end_s, speaker, emotion, source_file) lies beside it; those
that were cut from gold clips are gold too. Split `test`, other speakers, judges. Nothing here has learnt from anything
else: the teacher of the first round is the student of the gold alone, and so is the backbone below it, either the
embedded model's network trained on the gold of that seed and size (`jobs/train_embedded.py`), or a front end without
weights.

    python jobs/experiment_generations.py CORPUS --timeline TIMELINE.flac --docs docs/generations.md
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import pyarrow.compute as pc
import train_embedded
from safetensors.torch import save

import serpipe
from serpipe.engine.cluster import joined
from serpipe.evaluate import Answers, recalls, replicates
from serpipe.models.embedded.adapter import WEIGHTS
from serpipe.pseudolabel import generation, sources
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel.fit import Settings
from serpipe.pseudolabel.recipe import Recipe, Teacher
from serpipe.pseudolabel.relabel import relabel
from serpipe.pseudolabel.rounds import ANCHOR
from serpipe.pseudolabel.scoring import score, stored
from serpipe.pseudolabel.train import train
from serpipe.store.reading import Store
from serpipe.store.reading import open as open_store

BACKBONES = ("embedded", "mel-statistics")
RECIPE = {
    # Sentences of a studio corpus are short, and its folder is no feed.
    "quality": {"min_s": 1.0},
    "caps": {"feed_share": 1.0},
    # Students come calibrated on voices they did not hear; their gold is too small to hold any back.
    "calibrate": {"method": "none"},
    "split": {"dev": 0.0},
}
REPLICATES = 2000
BEGIN, END = "<!-- {backbone}: begin -->", "<!-- {backbone}: end -->"
ARMS = ("gold only", "one round", "two rounds")


@dataclass(frozen=True, slots=True)
class Clip:
    """A labelled segment: where it is, its times in a timeline, what is felt, whose voice, which split, which file."""

    uri: str
    start: str
    end: str
    emotion: str
    speaker: str
    split: str
    source: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed at one size: answers on the test clips by arm, and precision of what was kept and of everything."""

    size: int
    seed: int
    answers: dict[str, Answers]
    kept: dict[str, tuple[int, float]]
    pool: dict[str, tuple[int, float]]


def read_clips(corpus: Path, timeline: Path | None) -> list[Clip]:
    """Clips of the corpus, then the segments of the timeline."""
    with (corpus / "labels.csv").open(encoding="utf-8", newline="") as lines:
        clips = [
            Clip(str(path.resolve()), "", "", row["emotion"], row["speaker"], row["split"], path.name)
            for row in csv.DictReader(lines)
            for path in [corpus / row["path"]]
        ]
    columns = ("start_s", "end_s", "emotion", "speaker")
    if timeline is not None:
        with timeline.with_suffix("").with_suffix(".segments.csv").open(encoding="utf-8", newline="") as lines:
            clips += [
                Clip(str(timeline.resolve()), *(row[name] for name in columns), "timeline", row["source_file"])
                for row in csv.DictReader(lines)
            ]
    return clips


def write_rows(path: Path, clips: Sequence[Clip], splits: Sequence[str] | None = None) -> str:
    """A manifest, or gold where splits are given."""
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["uri", "start", "end", "speaker", *(["label", "split"] if splits else [])])
        for place, clip in enumerate(clips):
            said = [clip.emotion, splits[place]] if splits else []
            writer.writerow([clip.uri, clip.start, clip.end, clip.speaker, *said])
    return str(path)


def draw_gold(clips: Sequence[Clip], size: int, seed: int) -> list[Clip]:
    """So many `dev` clips of each class, and what the timeline has of them."""
    random = np.random.default_rng([seed, size])
    chosen: list[Clip] = []
    for emotion in sorted({clip.emotion for clip in clips}):
        mine = [clip for clip in clips if clip.split == "dev" and clip.emotion == emotion]
        chosen += [mine[place] for place in sorted(random.choice(len(mine), min(size, len(mine)), replace=False))]
    names = {clip.source for clip in chosen}
    return chosen + [clip for clip in clips if clip.split == "timeline" and clip.source in names]


def train_backbone(examples: Sequence[train_embedded.Example], seed: int, folder: str) -> str:
    """The embedded model's network trained on some clips, as a folder that `label` takes."""
    network = train_embedded.train(examples, seed)
    Path(folder).mkdir(parents=True)
    (Path(folder) / WEIGHTS).write_bytes(save(network.state_dict()))
    return folder


Case = tuple[int | None, int]
"""Gold clips of each class, all of `dev` when None, and the seed."""


def label_all(
    clips: Sequence[Clip],
    cases: Sequence[Case],
    backbone: str,
    corpus: Path,
    scratch: Path,
    workers: ProcessPoolExecutor,
) -> dict[Case, tuple[str, str]]:
    """For each case a store with a backbone's embeddings of every clip, and the backbone as `label` takes it."""
    manifest = write_rows(scratch / "manifest.csv", clips)
    if backbone == "mel-statistics":
        store = str(scratch / "store")
        serpipe.label(manifest, store, models=[backbone], segmentation="given")
        return dict.fromkeys(cases, (store, backbone))
    heard = [clip for clip in train_embedded.read_clips(corpus) if clip.split == "dev"]
    examples = dict(
        zip(
            [str(clip.path.resolve()) for clip in heard],
            workers.map(train_embedded.make_example, range(len(heard)), heard, chunksize=8),
            strict=True,
        )
    )
    trained = {}
    for size, seed in cases:
        gold = heard if size is None else draw_gold(clips, size, seed)
        names = [str(clip.path.resolve()) if isinstance(clip, train_embedded.Clip) else clip.uri for clip in gold]
        known = [examples[name] for name in names if name in examples]
        folder = str(scratch / f"backbone-{size}-{seed}")
        trained[size, seed] = workers.submit(train_backbone, known, seed, folder)
    stores = {}
    # One Ray for all of them: to start it takes longer than to label.
    with joined(None):
        for case, folder in trained.items():
            store, model = f"{folder.result()}-store", f"{backbone}={folder.result()}"
            serpipe.label(manifest, store, models=[model], segmentation="given")
            stores[case] = store, model
    return stores


def run_one(labelled: str, backbone: str, clips: Sequence[Clip], size: int, seed: int) -> Outcome:
    """Gold alone, one round and two, in a copy of the labelled store."""
    with tempfile.TemporaryDirectory() as scratch:
        store = shutil.copytree(labelled, f"{scratch}/store")
        chosen = draw_gold(clips, size, seed)
        test = [clip for clip in clips if clip.split == "test"]
        gold = write_rows(Path(scratch) / "gold.csv", [*chosen, *test], ["train"] * len(chosen) + ["test"] * len(test))
        answers = {ARMS[0]: _student(store, backbone, 0, "gold-only", gold, seed)}
        kept, pool = {}, {}
        taught = (Teacher(model="gold-only", lineage="students"),)
        for number, arm in enumerate(ARMS[1:], start=1):
            # Two rounds are made whatever gates would say: what they cost or gain is the question.
            generation.make(store, Recipe(seed=seed, teachers=taught, **RECIPE), gold=gold, ungated=True)
            kept[arm], pool[arm] = precision(open_store(store), number, clips)
            answers[arm] = _student(store, backbone, number, f"round-{number}", gold, seed)
            taught = (
                Teacher(model="gold-only", lineage="students", weight=ANCHOR),
                Teacher(model=f"round-{number}", lineage="students", weight=1 - ANCHOR),
            )
        return Outcome(size, seed, answers, kept, pool)


def run_oracle(labelled: str, backbone: str, clips: Sequence[Clip], seed: int) -> Answers:
    """The same head, and where it is trained the same backbone, on the true labels of all of `dev`."""
    with tempfile.TemporaryDirectory() as scratch:
        store = shutil.copytree(labelled, f"{scratch}/store")
        known = [clip for clip in clips if clip.split in ("dev", "test")]
        splits = ["train" if clip.split == "dev" else "test" for clip in known]
        gold = write_rows(Path(scratch) / "gold.csv", known, splits)
        return _student(store, backbone, 0, "oracle", gold, seed)


def _student(store: str, backbone: str, number: int, name: str, gold: str, seed: int) -> Answers:
    trained = train(store, number, gold, backbone=backbone, settings=Settings(seed=seed))
    relabel(store, trained.folder, name=name)
    opened = open_store(store)
    audio = sources.audio_of(opened, None)
    matched = golden.match(opened, golden.read(gold), audio)
    clips = matched.filter(pc.equal(matched["split"], "test"))
    return score(opened, audio, stored(opened, audio, name), clips).answers


def precision(store: Store, number: int, clips: Sequence[Clip]) -> tuple[tuple[int, float], tuple[int, float]]:
    """Rows and share of right labels: of what a generation kept, and of all it considered but gold and test."""
    known = {(clip.uri, clip.start and f"{float(clip.start):.2f}"): clip for clip in clips if clip.split != "test"}
    columns = ["uri", "start_s", "label", "kept", "reason"]
    kept, everything = [], []
    for row in generation.rows(store.storage, number, columns=columns).to_pylist():
        clip = known.get((row["uri"], "")) or known.get((row["uri"], f"{row['start_s']:.2f}"))
        if clip is None or row["reason"] == "gold":
            continue
        right = row["label"] == clip.emotion
        everything.append(right)
        if row["kept"]:
            kept.append(right)
    return _share(kept), _share(everything)


def _share(right: Sequence[bool]) -> tuple[int, float]:
    return len(right), float(np.mean(right)) if right else float("nan")


def mean_ua(arms: Sequence[Answers], other: Sequence[Answers] | None = None) -> tuple[float, float, float]:
    """Mean UA over seeds, or of the difference to another arm, with a 95 % interval over seeds, speakers and clips."""
    blocks = []
    for weights in replicates(arms[0].speakers, REPLICATES, 0):
        here = np.stack([recalls(answers)(weights)["recall_macro_ua"] for answers in arms])
        if other is not None:
            here -= np.stack([recalls(answers)(weights)["recall_macro_ua"] for answers in other])
        blocks.append(here)
    values = np.concatenate(blocks, axis=1)
    random = np.random.default_rng(1)
    drawn = random.integers(0, len(arms), (len(arms), values.shape[1] - 1))
    means = np.take_along_axis(values[:, 1:], drawn, axis=0).mean(axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values[:, 0].mean()), float(low), float(high)


def report(outcomes: Sequence[Outcome], oracle: Sequence[Answers], command: str, seconds: float) -> Iterator[str]:
    """The table and what it says, in Markdown."""
    seeds = len({outcome.seed for outcome in outcomes})
    yield f"`{command}`: {seeds} seeds, {len(oracle[0])} test clips of {len(np.unique(oracle[0].speakers))} speakers,"
    yield f"{seconds:.0f} s. UA is the mean over seeds; intervals are over seeds, speakers and clips of a speaker."
    yield ""
    yield "| gold clips | arm | UA | change against gold only | kept | right of the kept | right of all |"
    yield "|---|---|---|---|---|---|---|"
    verdicts = []
    for size in sorted({outcome.size for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if outcome.size == size]
        alone = [outcome.answers[ARMS[0]] for outcome in mine]
        gold = f"{size} a class"
        yield f"| {gold} | {ARMS[0]} | {_interval(mean_ua(alone))} | | | | |"
        for arm in ARMS[1:]:
            ours = [outcome.answers[arm] for outcome in mine]
            gain = mean_ua(ours, alone)
            kept, pool = (_mean([getattr(outcome, name)[arm] for outcome in mine]) for name in ("kept", "pool"))
            yield (
                f"| {gold} | {arm} | {_interval(mean_ua(ours))} | {_interval(gain, sign=True)} | "
                f"{kept[0]:.0f} of {pool[0]:.0f} | {kept[1]:.3f} | {pool[1]:.3f} |"
            )
            helped = "helps" if gain[1] > 0 else "harms" if gain[2] < 0 else "makes no difference that can be told"
            verdicts.append(f"- {gold}, {arm}: {helped} ({gain[0]:+.3f}).")
    yield f"| all of dev | oracle | {_interval(mean_ua(oracle))} | | | | |"
    yield ""
    yield from verdicts


def _mean(pairs: Sequence[tuple[int, float]]) -> tuple[float, float]:
    return float(np.mean([count for count, _ in pairs])), float(np.nanmean([share for _, share in pairs]))


def _interval(found: tuple[float, float, float], *, sign: bool = False) -> str:
    mark = "+" if sign else ""
    return f"{found[0]:{mark}.3f} [{found[1]:{mark}.3f}, {found[2]:{mark}.3f}]"


def write_docs(page: Path, lines: Sequence[str], backbone: str) -> None:
    """Put the table between the page's two marks for this backbone."""
    text = page.read_text(encoding="utf-8")
    begin, end = BEGIN.format(backbone=backbone), END.format(backbone=backbone)
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")


@click.command(help=__doc__)
@click.argument("corpus", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--timeline", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="More of the pool.")
@click.option(
    "--backbone", type=click.Choice(BACKBONES), default=BACKBONES[0], show_default=True, help="Below the heads."
)
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(min=2))
@click.option("--size", "sizes", multiple=True, default=(4, 8, 16), show_default=True, help="Gold clips of each class.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--docs", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Page that gets the table.")
def main(
    corpus: Path,
    timeline: Path | None,
    backbone: str,
    seeds: int,
    sizes: tuple[int, ...],
    workers: int,
    docs: Path | None,
) -> None:
    """Label for every seed and size, run each in a copy, print the table."""
    began = time.monotonic()
    clips = read_clips(corpus, timeline)
    cases: list[Case] = [(int(size), seed) for size in sizes for seed in range(seeds)]
    oracles: list[Case] = [(None, seed) for seed in range(seeds)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        stores = label_all(clips, cases + oracles, backbone, corpus, Path(scratch), pool)
        work = [pool.submit(run_one, *stores[size, seed], clips, size, seed) for size, seed in cases]
        ends = [pool.submit(run_oracle, *stores[case], clips, case[1]) for case in oracles]
        outcomes = []
        for job in work:
            outcomes.append(job.result())
            figures = {arm: mean_ua([answers])[0] for arm, answers in outcomes[-1].answers.items()}
            click.echo(json.dumps({"size": outcomes[-1].size, "seed": outcomes[-1].seed} | figures))
        oracle = [job.result() for job in ends]
    extra = f" --timeline {timeline.name}" if timeline else ""
    command = f"python jobs/experiment_generations.py {corpus.name}{extra} --backbone {backbone}"
    lines = list(report(outcomes, oracle, command, time.monotonic() - began))
    click.echo("\n".join(lines))
    if docs is not None:
        write_docs(docs, lines, backbone)


if __name__ == "__main__":
    main()
