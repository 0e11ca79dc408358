"""From a corpus, or a large archive and a small gold, to a promoted or refused student, and around again.

MANIFEST is what `serpipe label` takes, GOLD what `serpipe pseudolabel` takes; both may be one file. The job labels what
is not labelled yet, trains on gold alone, and makes generation after generation until a student is refused or the
interval of its gain includes zero; a page says what the last one kept and what its gates said. Ended in the middle, the
same command goes on where it stopped, and goes round again where the archive has grown. Exit code 0 where a student was
promoted, 4 where none was.

    python jobs/generation.py CORPUS/labels.csv STORE --gold CORPUS/labels.csv --column uri=path --gold-clips 8
"""

from __future__ import annotations

import csv
import io
import sys
from collections import defaultdict

import click

from serpipe.cli.exits import EXIT_BROKEN, EXIT_REFUSED, EXIT_USAGE
from serpipe.engine.label import label
from serpipe.errors import SerpipeError, UsageError
from serpipe.pseudolabel import gold as golden
from serpipe.pseudolabel import recipe as recipes
from serpipe.pseudolabel import schemas
from serpipe.pseudolabel.arrays import text_key
from serpipe.pseudolabel.fit import Settings
from serpipe.pseudolabel.rounds import Ended, run
from serpipe.report import build
from serpipe.store.storage import Storage

SMALL = recipes.parse(
    """
[quality]
min_s = 1.0       # acted sentences are short
[caps]
feed_share = 1.0  # a corpus's folder is no feed
[calibrate]
method = "none"   # students come calibrated on voices they did not hear
[split]
dev = 0.0
""",
    "the job's own recipe",
)
"""For a small corpus and students as teachers; `--recipe` replaces it."""


def few_gold(location: str, clips: int, seed: int, store: str) -> str:
    """Gold with labels for so many clips of each class only; its splits gate, test and final stay whole.

    Returns:
        Where it was written, in the store.
    """
    read = golden.read(location)
    by_class: dict[str, list[dict[str, object]]] = defaultdict(list)
    judging: list[dict[str, object]] = []
    for row in read.rows.to_pylist():
        if row["split"] in golden.JUDGING:
            judging.append(row)
        else:
            by_class[row["label"]].append(row | {"split": "train"})
    chosen = [
        row
        for _, rows in sorted(by_class.items())
        for row in sorted(rows, key=lambda row: text_key(f"{seed} {row['uri']} {row['start_s']}"))[:clips]
    ]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["segment_id", "uri", "channel", "start", "end", "label", "speaker", "split"])
    for row in chosen + judging:
        named = row["segment_id"].hex() if isinstance(row["segment_id"], bytes) else ""
        columns = ("uri", "channel", "start_s", "end_s", "label", "speaker", "split")
        writer.writerow([named, *(row[name] for name in columns)])
    storage = Storage(store)
    name = f"students/gold-{clips}-{seed}.csv"
    storage.put(name, text.getvalue().encode())
    return f"{storage.root}/{name}"


@click.command(help=__doc__)
@click.argument("manifest")
@click.argument("store")
@click.option("--gold", required=True, help="Labels by people, with speakers and splits.")
@click.option("--gold-clips", type=click.IntRange(min=1), help="Use so many labels of each class, hide the others.")
@click.option("--column", "columns", multiple=True, metavar="ROLE=NAME", help="Of the manifest, as for serpipe label.")
@click.option("--segment", "segmentation", default="whole", show_default=True, help="As for serpipe label.")
@click.option("--model", "models", multiple=True, default=("mel-statistics",), show_default=True, help="To label with.")
@click.option("--backbone", help="Of the students  [default: the only model with embeddings]")
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False), help="TOML  [default: one for small corpora]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Generations at most.")
@click.option("--report", help="Where the page on the last generation goes  [default: report.html beside its rows]")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    manifest: str,
    store: str,
    gold: str,
    gold_clips: int | None,
    columns: tuple[str, ...],
    segmentation: str,
    models: tuple[str, ...],
    backbone: str | None,
    recipe: str | None,
    rounds: int,
    report: str | None,
    seed: int,
) -> None:
    """Label, then rounds, then the report."""
    try:
        roles = dict(column.split("=", 1) for column in columns if "=" in column)
        if len(roles) != len(columns):
            raise UsageError("COLUMN_INVALID", "--column wants ROLE=NAME, as uri=path")
        label(manifest, store, models=models, segmentation=segmentation, columns=roles or None)
        taught = gold if gold_clips is None else few_gold(gold, gold_clips, seed, store)
        made = recipes.load(recipe) if recipe else SMALL.model_copy(update={"seed": seed})
        ended = run(
            store, taught, recipe=made, backbone=backbone, settings=Settings(seed=seed), most=rounds, say=click.echo
        )
        finish(store, ended, report)
    except SerpipeError as error:
        click.echo(f"serpipe: {error}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_BROKEN)
    if ended.promoted is None:
        sys.exit(EXIT_REFUSED)


def finish(store: str, ended: Ended, report: str | None) -> None:
    """Say how it ended, and write the page on the last generation."""
    number, last = ended.promoted, ended.rounds[-1]
    passed = "no student passed its gates" if number is None else f"probe-{number} is the last that passed its gates"
    click.echo(f"{ended.why}; {passed}")
    root = Storage(store).root
    click.echo(f"rows, records and what the gates said: {root}/pseudo_labels/")
    click.echo(f"report: {build(store, report or f'{root}/{schemas.folder(last)}report.html', generation=last)}")


if __name__ == "__main__":
    main()
