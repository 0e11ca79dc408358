"""Text files of an export, filled clip by clip."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence

from serpipe.pseudolabel.export.clips import Clip
from serpipe.pseudolabel.export.formats import Format, Text


class Texts:
    """The text files of a format.

    Args:
        form: the format.
        texts: which of its files.
        classes: of the generation.
    """

    def __init__(self, form: Format, texts: Sequence[Text], classes: Sequence[str]) -> None:
        self._form, self._texts, self._classes = form, texts, classes
        # A split without clips has files too: trainers ask for them by name.
        self._lines: dict[tuple[int, str], list[str]] = {
            (place, text.name.format(split=split)): []
            for place, text in enumerate(texts)
            for split in form.splits.values()
        }

    def add(self, clip: Clip) -> None:
        """Write a clip into every file that it belongs in."""
        for place, text in enumerate(self._texts):
            name = text.name.format(split=self._form.splits[clip.split])
            values = [get(clip, self._classes) for get in text.columns.values()]
            if text.per_class is not None:
                values += clip.soft
            values += [get(clip, self._classes) for get in text.last.values()]
            if not (text.if_any and values[-1] is None):
                self._lines[place, name].append(_line(text, values))

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of every file."""
        for (place, name), lines in self._lines.items():
            text = self._texts[place]
            if text.if_any and not lines:
                continue
            content = "".join(_arranged(text, lines, self._classes)).encode()
            yield name, gzip.compress(content, mtime=0) if text.style == "jsonl.gz" else content


def _line(text: Text, values: Sequence[object]) -> str:
    if text.style == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerow(values)
        return file.getvalue()
    if text.style in ("lines", "groups"):
        # A line break in the owner's text would be another row.
        return " ".join(str(value).replace("\r", " ").replace("\n", " ") for value in values) + "\n"
    return json.dumps(dict(zip(text.columns, values, strict=True)), ensure_ascii=False) + "\n"


def _arranged(text: Text, lines: Sequence[str], classes: Sequence[str]) -> Sequence[str]:
    match text.style:
        case "csv":
            per_class = [text.per_class(name) for name in classes] if text.per_class else []
            header = io.StringIO()
            csv.writer(header, lineterminator="\n").writerow([*text.columns, *per_class, *text.last])
            return [header.getvalue(), *lines]
        case "lines":
            return sorted(set(lines), key=str.encode)
        case "groups":
            return _grouped(sorted(set(lines), key=str.encode))
        case _:
            return lines


def _grouped(lines: Sequence[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.rstrip("\n").partition(" ")
        groups.setdefault(key, []).append(value)
    return [f"{key} {' '.join(values)}\n" for key, values in groups.items()]
