"""Consensus against scipy's entropies, and what a lineage is worth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from serpipe.errors import UsageError
from serpipe.pseudolabel import agree


def votes(seed: int, classes: int = 4, count: int = 300) -> NDArray[np.float64]:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.6), count).T


def test_divergence_and_entropy_are_scipys() -> None:
    first, second = votes(1), votes(2)
    found = agree.consensus([first, second], ["a", "b"], [1.0, 1.0])
    np.testing.assert_allclose(found.jsd, jensenshannon(first, second, axis=0) ** 2, atol=1e-9)
    np.testing.assert_allclose(found.entropy, entropy((first + second) / 2, axis=0) / np.log(4), atol=1e-9)


def test_margin_confidence_and_votes_are_what_they_say() -> None:
    parts = [votes(seed) for seed in range(3)]
    found = agree.consensus(parts, ["a", "b", "c"], [1.0, 2.0, 1.0])
    mean = (parts[0] + 2 * parts[1] + parts[2]) / 4
    ordered = np.sort(mean, axis=0)
    np.testing.assert_allclose(found.soft, mean)
    np.testing.assert_allclose(found.margin, ordered[-1] - ordered[-2])
    np.testing.assert_array_equal(found.label, mean.argmax(axis=0))
    np.testing.assert_array_equal(found.votes, sum(part.argmax(axis=0) == mean.argmax(axis=0) for part in parts))


def test_models_of_one_lineage_have_one_vote() -> None:
    """Two that always agree because one taught the other do not outvote a third."""
    twin, other = votes(1), votes(2)
    together = agree.consensus([twin, twin, other], ["a", "a", "b"], [1.0, 1.0, 1.0])
    apart = agree.consensus([twin, other], ["a", "b"], [1.0, 1.0])
    np.testing.assert_allclose(together.soft, apart.soft)
    np.testing.assert_allclose(together.jsd, apart.jsd, atol=1e-12)
    np.testing.assert_array_equal(together.votes, apart.votes)
    assert together.votes.max() == 2


def test_what_is_no_witness_weighs_in_the_label_and_makes_no_agreement() -> None:
    first, second, pupil = votes(1), votes(2), votes(3)
    found = agree.consensus([first, second, pupil], ["a", "b", "c"], [1.0, 1.0, 2.0], [True, True, False])
    np.testing.assert_allclose(found.soft, (first + second + 2 * pupil) / 4)
    np.testing.assert_allclose(found.jsd, jensenshannon(first, second, axis=0) ** 2, atol=1e-9)
    agreed = sum((part.argmax(axis=0) == found.label).astype(int) for part in (first, second))
    np.testing.assert_array_equal(found.votes, agreed)
    alone = agree.consensus([first, pupil], ["a", "c"], [1.0, 5.0], [True, False])
    # One witness has nobody to agree with.
    assert (alone.votes == 1).all()
    assert not alone.jsd.any()


def test_a_missing_teacher_is_no_vote_and_no_number() -> None:
    first, second = votes(1, count=3), votes(2, count=3)
    second[:, 1] = np.nan
    found = agree.consensus([first, second], ["a", "b"], [1.0, 1.0])
    assert found.known.tolist() == [True, False, True]
    assert found.votes[1] == 0
    assert np.isnan(found.soft[:, 1]).all()
    assert np.isnan(found.confidence[1])


def test_a_segment_has_the_same_numbers_to_the_bit_in_any_company() -> None:
    parts = [votes(seed, count=1001) for seed in range(3)]
    whole = agree.consensus(parts, ["a", "b", "b"], [1.0, 0.7, 1.3])
    piece = agree.consensus([part[:, 337:340].copy() for part in parts], ["a", "b", "b"], [1.0, 0.7, 1.3])
    for name in ("soft", "confidence", "margin", "entropy", "jsd"):
        assert getattr(whole, name)[..., 337:340].tobytes() == getattr(piece, name).tobytes(), name


def test_common_classes() -> None:
    four, seven = ("anger", "happiness", "sadness", "neutral"), ("anger", "disgust", "fear", "happiness", "neutral")
    assert agree.common_classes([four, seven], "common") == ("anger", "happiness", "neutral")
    assert agree.common_classes([four], "C4") == four
    assert agree.common_classes([four, seven], ["neutral", "anger"]) == ("anger", "neutral")
    assert agree.common_classes([("anger", "calm", "other"), ("anger", "neutral", "other")], "common") == (
        "anger",
        "neutral",
    )
    for wanted, said in (("C4", "can name sadness"), (["anger", "fear"], "can name fear")):
        with pytest.raises(UsageError, match=f"CLASSES_NOT_COMMON: .*{said}"):
            agree.common_classes([four, seven], wanted)
    with pytest.raises(UsageError, match="fewer than two"):
        agree.common_classes([("anger",), ("fear",)], "common")


def test_calm_counts_as_neutral_and_the_rest_is_abstention() -> None:
    into = agree.leaves(("anger", "neutral"), ("anger", "fear", "neutral", "calm"))
    assert into == {"anger": 0, "neutral": 1, "calm": 1}
    table = agree.project(np.array([[0.2], [0.3], [0.1]]), list(into.values()), 2)
    np.testing.assert_allclose(table[:, 0], [0.2, 0.4])
