"""Numbers agree with scikit-learn's and SciPy's, and intervals know that clips of one voice are not independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from serpipe.evaluate import (
    Answers,
    answers_of,
    by_slice,
    categorical,
    confusion,
    difference,
    dimensional,
    evaluate,
    measured,
    recalls,
    replicates,
)

CLASSES = ("anger", "happiness", "neutral", "sadness")


def made(seed: int, n: int = 200, speakers: int = 6, *, skill: float = 1.0, classes: int = 4) -> Answers:
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, n)
    logits = random.normal(size=(n, 4)) + skill * np.eye(4)[truth]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return answers_of(
        [CLASSES[place] for place in truth], scores, CLASSES, [f"s{i}" for i in random.integers(0, speakers, n)]
    )


def value(answers: Answers) -> dict[str, float]:
    return {name: float(found[0]) for name, found in categorical(answers)(np.ones((1, len(answers)))).items()}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(30, 120), classes=st.integers(2, 4))
def test_every_number_is_scikit_learns(seed: int, n: int, classes: int) -> None:
    answers = made(seed, n, classes=classes)
    found, present = value(answers), np.unique(answers.truth)
    assert found["recall_macro_ua"] == pytest.approx(
        metrics.recall_score(answers.truth, answers.predicted, labels=present, average="macro")
    )
    assert found["accuracy_wa"] == pytest.approx(metrics.accuracy_score(answers.truth, answers.predicted))
    assert found["f1_macro"] == pytest.approx(
        metrics.f1_score(answers.truth, answers.predicted, labels=present, average="macro", zero_division=0)
    )
    areas = [metrics.roc_auc_score(answers.truth == place, answers.scores[:, place]) for place in present]
    assert found["auc_macro"] == pytest.approx(np.mean(areas))
    assert found["nll"] == pytest.approx(metrics.log_loss(answers.truth, answers.scores, labels=range(4)))
    squares = np.square(answers.scores - np.eye(4)[answers.truth]).sum(axis=1)
    assert found["brier"] == pytest.approx(squares.mean())
    assert found["coverage"] == 1.0


def test_calibration_error_by_its_definition() -> None:
    answers = made(5, 500)
    confidence = answers.scores.max(axis=1)
    right = answers.predicted == answers.truth
    gaps = 0.0
    for low in np.arange(15) / 15:
        mine = (confidence > low) & (confidence <= low + 1 / 15)
        if mine.any():
            gaps += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
    assert value(answers)["ece"] == pytest.approx(gaps)


def test_no_answer_is_a_wrong_answer() -> None:
    scores = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8]])
    answers = answers_of(["anger", "anger", "sadness"], scores, ["anger", "sadness"], "abc")
    found = value(answers)
    assert found["recall.anger"] == 0.5
    assert found["recall_macro_ua"] == 0.75
    assert found["coverage"] == pytest.approx(2 / 3)
    assert confusion(answers)[0].tolist() == [[1, 0, 1], [0, 1, 0]]


def test_an_answer_outside_the_classes_is_wrong_and_not_covered() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1]])
    answers = answers_of(["anger", "anger"], scores, ["anger", "sadness"], "ab", predicted=["anger", "disgust"])
    assert value(answers)["accuracy_wa"] == 0.5
    assert value(answers)["coverage"] == 0.5


def test_weights_are_repeated_rows() -> None:
    """What intervals rest on: a replicate is the numbers of the rows it drew."""
    answers = made(3, 60)
    times = np.random.default_rng(0).integers(0, 4, 60)
    repeated = value(answers.take(np.repeat(np.arange(60), times)))
    for name, weighted in categorical(answers)(times[None].astype(float)).items():
        assert weighted[0] == pytest.approx(repeated[name]), name


def test_replicates_draw_speakers_then_their_clips() -> None:
    speakers = np.array(["a"] * 5 + ["b"] * 50 + ["c"] * 20)
    weights = np.concatenate(list(replicates(speakers, 400, seed=0)))
    assert np.array_equal(weights[0], np.ones(75))
    drawn = weights[1:]
    assert len(drawn) == 400
    for name, size in (("a", 5), ("b", 50), ("c", 20)):
        times = drawn[:, speakers == name].sum(axis=1) / size
        assert set(times) <= {0.0, 1.0, 2.0, 3.0}
        assert times.mean() == pytest.approx(1.0, abs=0.15)
    assert len(np.unique(drawn[drawn[:, :5].sum(axis=1) == 5][:, :5], axis=0)) > 10


def test_a_seed_draws_the_same_weights_again() -> None:
    """Pairing needs the same weights for two models, which differ in nothing but their answers."""
    speakers = made(1).speakers
    first = np.concatenate(list(replicates(speakers, 50, seed=4)))
    again = np.concatenate(list(replicates(speakers, 50, seed=4)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, np.concatenate(list(replicates(speakers, 50, seed=5))))


def test_clips_of_one_voice_are_not_independent() -> None:
    """Of four speakers two are always wrong: an interval over clips would be far too narrow."""
    speakers = np.repeat(["a", "b", "c", "d"], 100)
    truth = np.tile(["anger", "sadness"], 200)
    right = np.isin(speakers, ["a", "b"])
    scores = np.where((truth == "anger") == right, 0.9, 0.1)
    answers = answers_of(
        truth.tolist(), np.stack([scores, 1 - scores], axis=1), ["anger", "sadness"], speakers.tolist()
    )
    clustered = evaluate(answers, count=500)["recall_macro_ua"]
    lone = answers_of(truth.tolist(), answers.scores, ["anger", "sadness"], [str(i) for i in range(len(truth))])
    naive = evaluate(lone, count=500)["recall_macro_ua"]
    assert clustered.value == naive.value == 0.5
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    worse = made(11, 300, skill=1.0)
    better = Answers(
        classes=worse.classes,
        truth=worse.truth,
        predicted=np.where(np.arange(300) % 12 == 0, worse.truth, worse.predicted),
        scores=worse.scores,
        speakers=worse.speakers,
    )
    gain = difference(better, worse, count=500)["recall_macro_ua"]
    alone = evaluate(better, count=500)["recall_macro_ua"]
    assert gain.value > 0
    assert gain.lower_bound > 0
    assert gain.high - gain.low < alone.high - alone.low
    assert difference(worse, worse, count=50)["recall_macro_ua"].high == 0.0


def test_other_clips_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same clips"):
        difference(made(1), made(2))


def test_slices_are_evaluated_alone() -> None:
    answers = made(2, 80)
    gender = np.where(np.arange(80) % 2, "f", "m")
    sliced = Answers(
        classes=answers.classes,
        truth=answers.truth,
        predicted=answers.predicted,
        scores=answers.scores,
        speakers=answers.speakers,
        slices={"gender": gender},
    )
    found = by_slice(sliced, count=20)
    assert set(found) == {("gender", "f"), ("gender", "m")}
    alone = recalls(answers.take(gender == "f"))(np.ones((1, 40)))["recall_macro_ua"][0]
    assert found["gender", "f"]["recall_macro_ua"].value == pytest.approx(alone)


def test_dimensions_by_their_definitions() -> None:
    random = np.random.default_rng(0)
    truth = 1000 + random.normal(size=100)
    predicted = truth + 0.5 + 0.3 * random.normal(size=100)
    found = {name: float(drawn[0]) for name, drawn in dimensional(truth, predicted)(np.ones((1, 100))).items()}
    covariance = np.cov(truth, predicted, bias=True)
    ccc = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (truth.mean() - predicted.mean()) ** 2)
    assert found["ccc"] == pytest.approx(ccc)
    assert found["mse"] == pytest.approx(metrics.mean_squared_error(truth, predicted))
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, predicted))
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, predicted).statistic)
    interval = measured(dimensional(truth, predicted), np.array([str(i % 9) for i in range(100)]), count=200)["ccc"]
    assert interval.low < interval.value < interval.high
