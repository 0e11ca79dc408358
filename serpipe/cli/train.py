# ruff: noqa: D301 - click wants the character that \b stands for, so these docstrings are not raw
"""Students and what they are worth: `serpipe train`, `relabel`, `evaluate`, `promote`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from serpipe.cli.exits import EXIT_REFUSED

if TYPE_CHECKING:
    from serpipe.pseudolabel.schemas import Kind

_GOLD = click.option("--gold", required=True, help="Labels by people: CSV, TSV, JSONL or Parquet.")
_AUDIO = click.option("--audio-fp", help="Audio fingerprint, where recordings were cut in several ways.")


@click.command()
@click.argument("store")
@click.option(
    "--generation", type=click.IntRange(min=0), default=0, show_default=True, help="Whose kept rows; 0 is gold alone."
)
@_GOLD
@click.option("--backbone", help="Model whose stored embeddings are heard  [default: the only one there is]")
@click.option("--hidden", type=click.IntRange(min=0), default=0, show_default=True, help="Hidden units; 0 is linear.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of first weights and batches.")
@click.option("--finetune", metavar="MODEL", help="Fine-tune this whole Transformers model instead, with Ray Train.")
@click.option("--out", help="Folder of the fine-tuned model  [default: students/finetuned-N of the store]")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Of --finetune.")
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Of --finetune.")
@_AUDIO
def train(
    store: str,
    generation: int,
    gold: str,
    backbone: str | None,
    hidden: int,
    seed: int,
    finetune: str | None,
    out: str | None,
    workers: int,
    steps: int,
    audio_fp: str | None,
) -> None:
    """Train the student of a generation of STORE, gold in every batch; a folder that `label` takes like any model.

    \b
    Example:
      serpipe train demo/store --generation 1 --gold gold.csv
    """
    _refuse_options_of_the_other(whole=finetune is not None)
    if finetune is not None:
        from serpipe.pseudolabel.finetune import finetune as run_finetune

        made = run_finetune(
            store, generation, gold, finetune, out=out, workers=workers, steps=steps, seed=seed, audio=audio_fp
        )
        click.echo(f"{made.name}: {made.rows} rows, {made.steps} steps")
        click.echo(f"label with it: --model {made.name}={made.folder}")
        return
    from serpipe.pseudolabel.fit import Settings
    from serpipe.pseudolabel.train import train as run

    settings = Settings(hidden=hidden, seed=seed)
    trained = run(store, generation, gold, backbone=backbone, settings=settings, audio=audio_fp)
    facts = trained.training
    ua = facts["left_out"]["recall_macro_ua"]
    click.echo(f"{trained.name}: {facts['gold']['rows']} gold and {facts['pseudo_rows']} pseudo-labelled rows")
    click.echo(f"UA on gold voices it did not hear: {ua['value']:.3f} [{ua['low']:.3f}, {ua['high']:.3f}]")
    click.echo(f"label with it: --model {trained.name}={trained.folder}")


def _refuse_options_of_the_other(*, whole: bool) -> None:
    """Refuse what a head on embeddings, or a whole model, has no use for, where somebody gave it."""
    from serpipe.errors import UsageError

    context = click.get_current_context()
    for name in ("backbone", "hidden") if whole else ("out", "workers", "steps"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            kind = "of students on embeddings, and with --finetune there is none" if whole else "of --finetune alone"
            raise UsageError("TRAIN_OPTION", f"--{name} is {kind}; leave it out")


@click.command()
@click.argument("store")
@click.option("--student", "generation", type=click.IntRange(min=0), help="Generation of the student; 0 is gold alone.")
@click.option("--model", metavar="NAME=DIRECTORY", help="A student that lies elsewhere.")
def relabel(store: str, generation: int | None, model: str | None) -> None:
    """Label what STORE has embeddings of with a student, without reading audio.

    \b
    Example:
      serpipe relabel demo/store --student 1
    """
    from serpipe.errors import UsageError
    from serpipe.pseudolabel import student
    from serpipe.pseudolabel.relabel import relabel as run
    from serpipe.store.storage import Storage

    if (generation is None) == (model is None):
        raise UsageError("RELABEL_WHICH", "name the student with --student N or with --model NAME=DIRECTORY")
    if model is not None:
        name, _, directory = model.partition("=")
        if not name or not directory:
            raise UsageError("RELABEL_WHICH", f"--model {model!r} is not NAME=DIRECTORY")
    else:
        name = student.name(generation or 0)
        directory = f"{Storage(store).root}/{student.folder(generation or 0)}"
    done = run(store, directory, name=name)
    speed = done.segments / max(done.elapsed_s, 1e-9) * 60
    click.echo(f"{done.segments} predictions of {done.model} in {done.elapsed_s:.1f} s ({speed:.0f} a minute)")
    if done.done_before:
        click.echo(f"{done.done_before} units were labelled before")


@click.command()
@click.argument("store")
@click.option("--model", "models", required=True, multiple=True, help="Model of the store; may be given again.")
@_GOLD
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(["train", "cal", "dev", "gate", "test"]),
    help="Of gold; the final split is scored by `serpipe promote --final`.",
)
@click.option("--by", multiple=True, metavar="COLUMN", help="The owner's column to slice by, or speaker.")
@click.option("--fp", help="Model fingerprint, where a model has several.")
@_AUDIO
@click.option("--replicates", type=click.IntRange(min=1), default=2000, show_default=True, help="Of the bootstrap.")
def evaluate(
    store: str,
    models: tuple[str, ...],
    gold: str,
    split: str,
    by: tuple[str, ...],
    fp: str | None,
    audio_fp: str | None,
    replicates: int,
) -> None:
    """How good stored predictions are on gold: UA, WA, macro-F1, AUC, calibration, per class and slice, with intervals.

    \b
    Example:
      serpipe evaluate demo/store --model embedded --gold gold.csv
    """
    from serpipe.pseudolabel.scoring import report

    for model in models:
        for line in report(store, model, gold, split=split, by=by, fp=fp, audio=audio_fp, count=replicates):
            click.echo(line)


@click.command()
@click.argument("store")
@click.option("--generation", type=click.IntRange(min=1), required=True, help="Whose student.")
@_GOLD
@click.option("--finetuned", is_flag=True, help="The whole model that was fine-tuned, not the head on embeddings.")
@click.option("--final", is_flag=True, help="Score gold's final split of a promoted student, which can be done once.")
def promote(store: str, generation: int, gold: str, finetuned: bool, final: bool) -> None:
    """Apply the gates to a generation's student; only one that passes may teach. Exit 4 where it is refused.

    The student and the one of its kind trained on gold alone must have labelled STORE before.

    \b
    Example:
      serpipe promote demo/store --generation 1 --gold gold.csv
    """
    from serpipe.pseudolabel.promote import lines, score_final
    from serpipe.pseudolabel.promote import promote as run

    kind: Kind = "finetuned" if finetuned else "probe"
    made = run(store, generation, gold, kind=kind)
    for line in lines(made):
        click.echo(line)
    if final and made.status == "refused":
        click.echo("the final split, which judges once, was not spent on a refused student")
    elif final:
        figures: dict[str, Any] = score_final(store, generation, gold, kind=kind)
        click.echo(f"final split, scored once: UA {figures['recall_macro_ua']}, WA {figures['accuracy_wa']}")
    if made.status == "refused":
        sys.exit(EXIT_REFUSED)
