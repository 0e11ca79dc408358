"""Planted gold: how often labels are right that would have been kept, told by clips whose label people gave.

Gold that judges goes through every stage that looks at one segment, and through its class's threshold, like any other
segment; that it is gold, and so no training row, is left out of it. What weighs a segment against others (caps,
balance, budget) says nothing of whether its label is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from serpipe.pseudolabel import schemas
from serpipe.pseudolabel.arrays import places
from serpipe.store.storage import Storage

SPLITS = ("gate", "test")
"""Splits of gold that nothing was fitted on; `final` judges once, and not here."""

_COLUMNS = ["segment_id", "label", "confidence", "verdicts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Gold clips among what a generation considered.

    Attributes:
        clips: that have a consensus.
        right: of these, with the label that people gave.
        kept: clips that would have been kept.
        kept_right: of these, with the label that people gave.
    """

    clips: int
    right: int
    kept: int
    kept_right: int

    @property
    def precision(self) -> float:
        """Share of right labels among those that would have been kept."""
        return self.kept_right / self.kept if self.kept else np.nan

    @property
    def unfiltered(self) -> float:
        """Share of right labels among all."""
        return self.right / self.clips if self.clips else np.nan


def measure(storage: Storage, number: int, thresholds: Mapping[str, float], gold: pa.Table) -> Planted:
    """Look gold's judging clips up among a generation's rows.

    Args:
        storage: the store.
        number: of the generation, whose rows are written.
        thresholds: least confidence of each class.
        gold: rows of `serpipe.pseudolabel.gold.MATCHED`.
    """
    gold = gold.filter(pc.is_in(gold["split"], value_set=pa.array(SPLITS)))
    names = [name for name in storage.list(f"{schemas.folder(number)}part-") if name.endswith(".parquet")]
    paths = [storage.path(name) for name in names]
    dataset = ds.dataset(paths, schema=schemas.PSEUDO_LABELS, format="parquet", filesystem=storage.fs)
    found = np.zeros(4, np.int64)
    for batch in dataset.to_batches(columns=_COLUMNS, filter=ds.field("label").is_valid()):
        rows = pa.Table.from_batches([batch])
        place = places(rows["segment_id"], gold["segment_id"])
        rows, truth = rows.filter(pc.is_valid(place)), gold["label"].take(place.drop_null())
        right = pc.equal(rows["label"], truth).to_numpy()
        kept = _would_be_kept(rows, thresholds)
        found += [rows.num_rows, right.sum(), kept.sum(), (right & kept).sum()]
    clips, good, kept_clips, kept_good = map(int, found)
    return Planted(clips=clips, right=good, kept=kept_clips, kept_right=kept_good)


def _would_be_kept(rows: pa.Table, thresholds: Mapping[str, float]) -> np.ndarray:
    least = np.array([thresholds[label] for label in rows["label"].to_pylist()])
    kept = rows["confidence"].to_numpy() >= least
    for stage in schemas.LOCAL_STAGES:
        if stage != "gold":
            kept &= pc.fill_null(pc.struct_field(rows["verdicts"], stage), True).to_numpy()
    return np.asarray(kept, bool)
