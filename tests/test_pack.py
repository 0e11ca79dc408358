"""The audio of a pack is read where it lies, whatever table the pack is part of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from serpipe.pack import binary, samples_of


def pack(*samples: float) -> pa.Table:
    return pa.table({"audio": binary(np.array(samples, np.float32))})


@pytest.mark.parametrize("samples", [(), (0.5, -0.25, 1.0)])
def test_samples_of_any_table_are_the_packs(samples: tuple[float, ...]) -> None:
    one, other = pack(*samples), pack(0.125)
    both = pa.concat_tables([other, one, other]).combine_chunks()
    for table in (one, both.slice(1, 1), pa.concat_tables([other.slice(0, 0), one])):
        np.testing.assert_array_equal(samples_of(table), np.array(samples, np.float32))


def test_samples_are_a_read_only_view() -> None:
    one = pack(0.5, -0.25)
    samples = samples_of(one)
    assert samples.ctypes.data == one["audio"].chunk(0).buffers()[2].address
    with pytest.raises(ValueError, match="read-only"):
        samples[0] = 0.0
