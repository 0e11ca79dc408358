"""A store in words: what is done, what fails, what ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow.compute as pc

from serpipe.store.reading import Store


def status(store: Store) -> Iterator[str]:
    """Lines about recordings, models, failures and the last runs."""
    recordings = store.recordings()
    hours = (pc.sum(recordings["duration_s"]).as_py() or 0.0) / 3600
    yield f"{recordings.num_rows} recordings, {hours:.2f} h of audio"
    entries = store.entries
    if entries.num_rows:
        per = entries.group_by(["model", "fp"]).aggregate([("rows", "sum"), ("unit", "count")])
        for row in sorted(per.to_pylist(), key=lambda row: (row["model"], row["fp"])):
            yield f"model {row['model']} fp {row['fp']}: {row['rows_sum']} predictions in {row['unit_count']} units"
    failing = store.failing()
    codes = Counter(failing["code"].to_pylist())
    for code, count in codes.most_common():
        yield f"failing {code}: {count}"
    for run in store.runs()[-5:]:
        ended = f"ended {run.ended}" if run.ended else "not ended"
        yield f"run {run.run_id}: {run.state}, started {run.started}, {ended}, {run.manifest}"


def failures(store: Store, *, code: str | None = None, limit: int = 20) -> Iterator[str]:
    """Lines about what fails now: counts by code, then examples."""
    failing = store.failing()
    if code is not None:
        failing = failing.filter(pc.equal(failing["code"], code))
    if not failing.num_rows:
        yield "nothing fails" if code is None else f"nothing fails with {code}"
        return
    rows = failing.sort_by([("code", "ascending"), ("uri", "ascending")]).to_pylist()
    for name, count in Counter(row["code"] for row in rows).most_common():
        again = sum(row["transient"] for row in rows if row["code"] == name)
        yield f"{name}: {count}" + (f", {again} tried again by the next run" if again else "")
    for row in rows[:limit]:
        where = "" if row["start_s"] is None else f" at {row['start_s']:.2f} s"
        model = f" [{row['model']}]" if row["model"] else ""
        yield f"  {row['code']}{model} {row['uri'] or '?'}{where}: {row['message']}"
    if len(rows) > limit:
        yield f"  … and {len(rows) - limit} more (--limit)"
