"""From labelled packs to the rows of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serpipe.pack import TIMESTAMP, rows_of
from serpipe.store import layout, schemas
from serpipe.store.commit import Commit, ModelRows


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What every row of a run has in common.

    Attributes:
        run_id: the run.
        audio: audio fingerprint.
        models: model name to fingerprint.
        passports: model name to the hash of its passport.
    """

    run_id: str
    audio: str
    models: dict[str, str]
    passports: dict[str, str] = field(default_factory=dict)


def commit_of(packs: Sequence[pa.Table], run: RunFacts) -> Commit:
    """Gather labelled packs, each a table of one row, into one commit."""
    name = layout.commit_name(run.run_id, [pack["pack_id"][0].as_py() for pack in packs])
    parts = [_segments(pack) for pack in packs]
    return Commit(
        name=name,
        audio=run.audio,
        recordings=_stamped(_joined(packs, "recordings"), schemas.RECORDINGS, run),
        segments=_stamped(
            _numbered(pa.concat_tables([part.filter(part["new"]) for part in parts])), schemas.SEGMENTS, run
        ),
        quarantine=quarantine_rows(_joined(packs, "failures"), run),
        models=[_model_rows(packs, parts, model, fp, run, name) for model, fp in run.models.items()],
    )


_FLAT = pa.schema(
    [
        pa.field("uri", pa.string()),
        pa.field("model", pa.string()),
        *(pa.field(field.name, field.type) for field in schemas.PREDICTIONS if field.name != "run_id"),
        pa.field("embedding", pa.list_(pa.float16())),
    ]
)


def flatten(packs: pa.Table) -> pa.Table:
    """Labelled packs as one row per segment and model: what `predictions` holds, with the uri and the model's name.

    Args:
        packs: what `Predict` returns, any number of rows.

    Returns:
        Columns of `serpipe.store.schemas.PREDICTIONS` without `run_id`, after `uri` and `model`, and `embedding`,
        null where none was asked for.
    """
    models = [name.removeprefix("results:") for name in packs.column_names if name.startswith("results:")]
    tables = [_FLAT.empty_table()]
    for row in range(packs.num_rows):
        pack = packs.slice(row, 1)
        segments = _segments(pack)
        for model in models:
            results = rows_of(pack, f"results:{model}")
            mine = segments.take(results["segment"])
            table = _predictions(mine, results)
            table = table.add_column(0, "uri", mine["uri"]).add_column(
                1, "model", pa.array([model] * table.num_rows, pa.string())
            )
            tables.append(table.append_column("embedding", results["embedding"].cast(pa.list_(pa.float16()))))
    return pa.concat_tables(tables)


def quarantine_rows(failures: pa.Table, run: RunFacts) -> pa.Table:
    """Failures, with whichever columns they have, as rows of `schemas.QUARANTINE`."""
    time = pa.array([datetime.now(UTC)] * failures.num_rows, TIMESTAMP)
    return _stamped(failures.append_column("time", time), schemas.QUARANTINE, run)


def _segments(pack: pa.Table) -> pa.Table:
    """A pack's segments with their unit's `number`, `uri`, `new` and `attempt`; `unit` is its place in the pack."""
    segments, units = rows_of(pack, "segments"), rows_of(pack, "units")
    segments = segments.append_column("number", units["unit"].take(segments["unit"]))
    for column in ("uri", "new", "attempt"):
        segments = segments.append_column(column, units[column].take(segments["unit"]))
    return segments


def _model_rows(
    packs: Sequence[pa.Table], parts: Sequence[pa.Table], model: str, fp: str, run: RunFacts, name: str
) -> ModelRows:
    width = packs[0].schema.field(f"results:{model}").type.value_type.field("embedding").type.list_size
    predictions, embeddings, frames, failures, settled = [], [], [], [], []
    for pack, segments in zip(packs, parts, strict=True):
        results = rows_of(pack, f"results:{model}")
        mine = segments.take(results["segment"])
        predictions.append(_predictions(mine, results))
        keys = mine.select(["segment_id", "recording_id"])
        embeddings.append(_present(keys, "embedding", results["embedding"]))
        frames.append(_present(keys, "frames", results["frames"]))
        failures.append(_model_failures(rows_of(pack, f"failures:{model}"), segments, model, fp))
        settled.append(_settled(rows_of(pack, "units"), segments, results, model, fp, run, name))
    vectors = _stamped(pa.concat_tables(embeddings), schemas.embeddings(width), run)
    by_frame = _stamped(pa.concat_tables(frames), schemas.frames(width), run)
    return ModelRows(
        model=model,
        fp=fp,
        predictions=_stamped(pa.concat_tables(predictions), schemas.PREDICTIONS, run),
        embeddings=vectors,
        frames=by_frame,
        width=width,
        passport=run.passports.get(model, ""),
        quarantine=quarantine_rows(pa.concat_tables(failures), run),
        settled=pa.concat_tables(settled),
    )


def _predictions(segments: pa.Table, results: pa.Table) -> pa.Table:
    rows = _numbered(segments).select(["segment_id", "recording_id", "unit", "channel", "start_s", "end_s"])
    for name in results.column_names:
        if name not in ("segment", "embedding", "frames"):
            rows = rows.append_column(name, results[name])
    return rows


def _numbered(segments: pa.Table) -> pa.Table:
    """Segments with `unit` as the ledger counts it."""
    names = {"unit": "place", "number": "unit"}
    return segments.rename_columns([names.get(name, name) for name in segments.column_names])


def _present(keys: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    table = keys.append_column(name, values)
    return table.filter(pc.is_valid(values))


def _model_failures(failures: pa.Table, segments: pa.Table, model: str, fp: str) -> pa.Table:
    mine = segments.take(failures["segment"])
    count = failures.num_rows
    table = _numbered(mine).select(["recording_id", "segment_id", "unit", "uri", "start_s", "end_s", "attempt"])
    for name, values in (
        ("model", pa.array([model] * count, pa.string())),
        ("fp", pa.array([fp] * count, pa.string())),
        ("stage", pa.array(["model"] * count, pa.string())),
        ("code", failures["code"]),
        ("message", failures["message"]),
        ("transient", pa.array([False] * count, pa.bool_())),
    ):
        table = table.append_column(name, values)
    return table


def _settled(
    units: pa.Table, segments: pa.Table, results: pa.Table, model: str, fp: str, run: RunFacts, name: str
) -> pa.Table:
    labelled = segments["unit"].take(results["segment"]).to_numpy()
    per_unit = np.bincount(segments["unit"].to_numpy(), minlength=units.num_rows)
    rows = np.bincount(labelled, minlength=units.num_rows)
    mine = np.array([model in todo for todo in units["todo"].to_pylist()], bool)
    mine &= np.array(units["status"].to_pylist(), object) != "open"
    count = units.num_rows
    columns = {
        **{column: units[column] for column in ("recording_id", "unit", "final", "status")},
        **{key: pa.array([value] * count) for key, value in (("model", model), ("fp", fp), ("audio", run.audio))},
        "segments": pa.array(per_unit, pa.int32()),
        "rows": pa.array(rows, pa.int32()),
        "commit": pa.array([name] * count),
    }
    return pa.table(columns).select(schemas.LEDGER.names).filter(pa.array(mine)).cast(schemas.LEDGER)


def _joined(packs: Sequence[pa.Table], column: str) -> pa.Table:
    return pa.concat_tables([rows_of(pack, column) for pack in packs])


def _stamped(table: pa.Table, schema: pa.Schema, run: RunFacts) -> pa.Table:
    """The schema's columns, the run's id among them; what a table lacks is null."""
    columns = []
    for column in schema:
        if column.name == "run_id":
            columns.append(pa.array([run.run_id] * table.num_rows, pa.string()))
        elif column.name in table.column_names:
            columns.append(table[column.name].cast(column.type))
        else:
            columns.append(pa.nulls(table.num_rows, column.type))
    return pa.Table.from_arrays(columns, schema=schema)
