"""Writes the pages that are made from the code: `python docs/generate.py`. A test holds them to it."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pyarrow as pa

import serpipe
from serpipe import errors as kinds
from serpipe.audio.verdict import VERDICTS
from serpipe.cli import main
from serpipe.labels import CANONICAL, COARSER, MAPPING_VERSION, TAXONOMIES
from serpipe.models.registry import FAMILIES
from serpipe.pseudolabel import recipe
from serpipe.pseudolabel import schemas as generations
from serpipe.store import schemas

HERE = Path(__file__).parent
SOURCE = Path(serpipe.__file__).parent
JOBS = HERE.parent / "jobs"

KINDS = {name: kind for name, kind in vars(kinds).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
CODE = re.compile(r"(?!PCM_)[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
SAID = re.compile(rf"serpipe: ({CODE.pattern}): $")
EXITS = {
    "UsageError": "2",
    "AudioError": "a row of quarantine",
    "of a row": "a row of quarantine",
    "of a file": "a finding of `serpipe verify`",
}


def models() -> str:
    """What every model gives, its licence, and how far it was verified."""
    lines = [
        "# Models",
        "",
        "Made from the code by `docs/generate.py`.",
        "",
        "None but the embedded model was tested with its published weights: every other one was tested on",
        "random-weight checkpoints in its hub's layout (`serpipe.testing.make_checkpoint`). The first contact with",
        "real weights is `serpipe models check NAME`.",
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
                _cell(", ".join(spec.labels)) or "none: embeddings only",
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


def commands() -> str:
    """The help of every command."""
    lines = [
        "# Commands",
        "",
        "Made from the code by `docs/generate.py`: what `--help` says of each. Exit codes: 0 done, 1 broken or",
        "stopped, 2 a request that makes no sense, 3 done with too much in quarantine, 4 a student refused.",
        "",
    ]
    for words, command in _commands(main, "serpipe"):
        context = click.Context(
            command,
            info_name=words,
            max_content_width=100,
            terminal_width=100,
            help_option_names=main.context_settings["help_option_names"],
        )
        lines += [f"## {words}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def _commands(group: click.Group, words: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        yield f"{words} {name}", command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{words} {name}")


def errors() -> str:
    """Every code that an error or a row of quarantine can carry, and what it says."""
    lines = [
        "# Errors",
        "",
        "Made from the code by `docs/generate.py`. A code is stable and the same in messages, in `quarantine` and",
        "here; a message says what, where, why and what to do next, and `…` stands for what it is about.",
        "",
        "| code | ends with | says |",
        "|---|---|---|",
    ]
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for code, kind, message in _raised():
        said = found[code][EXITS.get(kind, "1")]
        if message != "…" and message not in said:
            said.append(message)
    for code, ends in sorted(found.items()):
        said = (
            "<br>".join(_cell(message) for messages in ends.values() for message in messages)
            or "what went wrong, in the words of what raised it"
        )
        lines.append(f"| `{code}` | {', '.join(sorted(ends))} | {said} |")
    return "\n".join([*lines, ""])


def _raised() -> Iterator[tuple[str, str, str]]:
    """Code, kind and message of every error, fault of a row and finding in a file that the source makes."""
    for path in sorted([*SOURCE.rglob("*.py"), *JOBS.glob("*.py")]):
        tree = ast.parse(path.read_text())
        said = _sentences(tree)
        other = "of a file" if path.is_relative_to(SOURCE / "store") else "of a row"
        for node in ast.walk(tree):
            for code, message, kind in _pairs(node):
                if path.is_relative_to(JOBS) and not kind:
                    continue  # A job makes no rows and no files of a store.
                for word in ast.walk(code):
                    if isinstance(word, ast.Constant) and isinstance(word.value, str) and CODE.fullmatch(word.value):
                        yield word.value, kind or other, _text(message, said, word.lineno).strip()


def _pairs(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None, str]]:
    """Where a code and its message stand side by side, and the kind of error that carries them."""
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        kind = name if name in KINDS else ""
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if "code" in named:
            yield named["code"], named.get("message", named.get("why")), kind
        if name in KINDS or name.startswith("_") or name == "BadRowError":
            for place, argument in enumerate(node.args):
                if isinstance(argument, ast.Constant):
                    yield argument, _sentence(node.args[place + 1 :], named.get("message")), kind
    elif isinstance(node, ast.JoinedStr) and (told := SAID.match(str(getattr(node.values[0], "value", "")))):
        # Said by a command itself.
        yield ast.copy_location(ast.Constant(told[1]), node), ast.JoinedStr(node.values[1:]), "SerpipeError"
    elif isinstance(node, ast.Tuple) and len(node.elts) == 2:
        yield node.elts[0], node.elts[1], ""
    elif isinstance(node, ast.Dict):
        both = list(zip(node.keys, node.values, strict=True))
        named = {key.value: value for key, value in both if isinstance(key, ast.Constant)}
        if "code" in named:
            yield named["code"], named.get("message"), ""
        for key, value in both:
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and " " in str(value.value):
                yield key, value, ""
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "code":
        yield node.value, None, ""


def _sentence(arguments: list[ast.expr], otherwise: ast.expr | None) -> ast.expr | None:
    """Of the arguments behind a code the one that is text."""
    text = [one for one in arguments if isinstance(one, ast.JoinedStr | ast.Constant | ast.BinOp)]
    return next(iter([*text, *arguments[:1]]), otherwise)


def _sentences(tree: ast.AST) -> dict[str, list[ast.Assign]]:
    """Assignments by name: a message may have been put together a few lines before."""
    found: dict[str, list[ast.Assign]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id].append(node)
    return found


def _text(node: ast.expr | None, said: dict[str, list[ast.Assign]], line: int) -> str:
    """A message with an ellipsis for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return re.sub("(…){2,}", "…", "".join(map(str, parts)))
    if isinstance(node, ast.BinOp):
        return _text(node.left, said, line) + _text(node.right, said, line)
    if isinstance(node, ast.Call):
        # A column of one message.
        node = next((part for part in ast.walk(node) if isinstance(part, ast.Name) and part.id == "message"), None)
    if isinstance(node, ast.Name):
        before = [made for made in said.get(node.id, []) if made.lineno <= line]
        if before:
            nearest = max(before, key=lambda made: made.lineno)
            return _text(nearest.value, {}, line)
    return "…"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def tables() -> str:
    """Every column of every table."""
    lines = [
        "# Tables",
        "",
        "Made from the code by `docs/generate.py`. Plain Parquet, zstd. Ids are 16 bytes; times are seconds from the",
        "recording's start, exact multiples of 1/16000. `segment_id` joins segments, predictions and embeddings.",
        "",
    ]
    for module, name, table in (
        (schemas, "RECORDINGS", "recordings"),
        (schemas, "SEGMENTS", "segments"),
        (schemas, "PREDICTIONS", "predictions"),
        (schemas, "QUARANTINE", "quarantine"),
        (schemas, "LEDGER", "ledger"),
        (generations, "PSEUDO_LABELS", "pseudo_labels"),
    ):
        source = inspect.getsource(module)
        said, _, after = source.partition(f"\n{name} = ")[2].partition('"""')
        lines += [
            f"## {table}",
            "",
            after.partition('"""')[0],
            "",
            "| column | type | empty | meaning |",
            "|---|---|---|---|",
        ]
        notes = dict(re.findall(r'pa\.field\(\s*"(\w+)",.*?\),  # (.*)', said))
        lines += [
            f"| `{field.name}` | {_type(field.type)} | {'may be' if field.nullable else ''} "
            f"| {_cell(notes.get(field.name, ''))} |"
            for field in getattr(module, name)
        ]
        if table == "recordings":
            lines += ["", "| verdict | means |", "|---|---|"]
            lines += [f"| `{name}` | {meaning} |" for name, meaning in VERDICTS.items()]
        lines.append("")
    for name, table in (("embeddings", schemas.embeddings), ("frames", schemas.frames)):
        lines += [f"## {name}", "", table.__doc__.splitlines()[0], "", "| column | type |", "|---|---|"]
        lines += [f"| `{field.name}` | {_type(field.type).replace('[1]', '[width]')} |" for field in table(1)]
        lines.append("")
    return "\n".join(lines)


def _type(kind: pa.DataType) -> str:
    names = {"fixed_size_binary[16]": "16 bytes", "halffloat": "float16", "float": "float32", "double": "float64"}
    text = re.sub(r"(element|item): | not null", "", str(kind))
    text = re.sub(r"\bhalffloat\b", "float16", text)
    return names.get(text, re.sub(r"\bfloat\b", "float32", text)).replace("<", "&lt;")


PAGES = {
    "models.md": models,
    "labels.md": labels,
    "recipe.md": recipe.page,
    "reference/commands.md": commands,
    "reference/errors.md": errors,
    "reference/tables.md": tables,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page())
