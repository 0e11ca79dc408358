"""Each gate stops what it is there for, and lets through what is better in every respect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serpipe.evaluate import Answers
from serpipe.pseudolabel import gate
from serpipe.pseudolabel.gate import Limits, Verdict
from serpipe.pseudolabel.planted import Planted

CLASSES = ("anger", "happiness", "neutral", "sadness")
LIMITS = Limits(count=300)
TRUTH = np.tile(np.arange(4), 100)
SPEAKERS = np.array([f"s{place // 10}" for place in range(400)])
CORPUS = np.where(np.arange(400) < 200, "acted", "natural")
GENDER = np.where(np.arange(400) // 10 % 2, "female", "male")


def answering(
    right: np.ndarray, *, confidence: float | None = None, slices: bool = True, silent: bool = False
) -> Answers:
    """Right where told, otherwise the next class, or no answer; as sure as the share that is right unless told."""
    sure = float(right.mean()) if confidence is None else confidence
    predicted = np.where(right, TRUTH, (TRUTH + 1) % 4)
    scores = np.full((400, 4), (1 - sure) / 3)
    scores[np.arange(400), predicted] = sure
    return Answers(
        classes=CLASSES,
        truth=TRUTH,
        predicted=np.where(right, TRUTH, -1) if silent else predicted,
        scores=scores,
        speakers=SPEAKERS,
        slices={"corpus": CORPUS, "gender": GENDER} if slices else {},
    )


def share(of: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(400) < of


def ask(student: Answers, alone: Answers, parent: Answers | None = None, canaries: object = None) -> dict[str, Verdict]:
    return {verdict.gate: verdict for verdict in gate.judge(student, alone, parent, canaries, LIMITS)}  # type: ignore[arg-type]


def test_better_in_every_respect_passes_every_gate() -> None:
    alone = answering(share(0.6))
    student = answering(share(0.6) | share(0.5, 1))
    soft = np.full((50, 4), 0.1) + 0.6 * np.eye(4)[np.arange(50) % 4]
    found = ask(student, alone, alone, (soft, soft))
    not_asked = {"flips", "planted", "rare", "parent-rare", "agreement"}
    assert [name for name, verdict in found.items() if verdict.passed is not True and name not in not_asked] == []
    assert found["flips"].passed is found["planted"].passed is found["rare"].passed is None
    assert all(verdict.why for verdict in found.values())


def test_no_better_than_gold_alone_is_refused() -> None:
    alone = answering(share(0.6))
    found = ask(alone, alone)
    assert found["gold-only"].passed is False
    assert found["majority"].passed is True


def test_one_class_for_all_is_refused() -> None:
    found = ask(answering(TRUTH == 0), answering(share(0.3)))
    assert found["majority"].passed is False


def test_an_average_does_not_hide_a_corpus() -> None:
    """What happened to emotion2vec+ base: the mean rose, natural speech fell."""
    alone = answering(share(0.6))
    better = share(0.6) | (CORPUS == "acted")
    worse = better & ~((CORPUS == "natural") & share(0.3, 2))
    found = ask(answering(worse), alone)
    assert found["gold-only"].passed is True
    assert found["corpora"].passed is False
    assert "natural" in found["corpora"].why
    assert ask(answering(better, slices=False), answering(share(0.6), slices=False))["corpora"].passed is None


def test_an_average_does_not_hide_what_fell_behind_the_parent() -> None:
    """Better than gold alone everywhere, and than the parent on average: it fell behind it on natural speech."""
    alone = answering(share(0.4))
    parent = answering(share(0.4) | (CORPUS == "natural") | share(0.3, 1))
    student = answering(share(0.4) | (CORPUS == "acted") | share(0.75, 3))
    found = ask(student, alone, parent)
    assert found["gold-only"].passed is found["corpora"].passed is True
    assert found["parent"].passed is True
    assert found["parent-corpora"].passed is False
    assert "against the parent" in found["parent-corpora"].why
    assert "natural loses most" in found["parent-corpora"].why


def test_no_better_than_the_parent_is_refused() -> None:
    alone, parent = answering(share(0.4)), answering(share(0.4) | share(0.5, 1))
    found = ask(parent, alone, parent)
    assert found["gold-only"].passed is True
    assert found["parent"].passed is False
    assert all(found[f"parent-{name}"].passed for name in ("corpora", "classes", "f1", "calibration", "groups"))


@pytest.mark.parametrize("lost", ["classes", "calibration"])
def test_what_the_parent_did_better_is_refused(lost: str) -> None:
    alone, parent = answering(share(0.3)), answering(share(0.3) | share(0.6, 1))
    right = share(0.3) | share(0.6, 1) | (TRUTH != 3)
    student = answering(right & ~((TRUTH == 3) & share(0.2, 2)) if lost == "classes" else right, confidence=0.6)
    if lost == "calibration":
        student = answering(right, confidence=0.35)
    found = ask(student, alone, parent)
    assert found["parent"].passed is True
    assert found[f"parent-{lost}"].passed is False


def test_guessing_where_another_says_nothing_is_refused() -> None:
    """UA rises with every guess that is right, and F1 falls with those that are wrong."""
    alone = answering(share(0.6), silent=True)
    found = ask(answering(share(0.6) | share(0.2, 1)), alone)
    assert found["gold-only"].passed is True
    assert found["f1"].passed is False


def test_an_average_does_not_hide_a_group() -> None:
    alone = answering(share(0.5))
    student = answering(share(0.5) | ((GENDER == "male") & share(0.8, 1)))
    found = ask(student, alone)
    assert found["gold-only"].passed is found["corpora"].passed is True
    assert found["groups"].passed is False
    assert "worst gender grows by 0." in found["groups"].why
    assert ask(answering(share(0.5) | share(0.5, 1)), alone)["groups"].passed is True
    unknown = ask(answering(share(0.5), slices=False), answering(share(0.5), slices=False))
    assert unknown["groups"].passed is None
    assert "gender" in unknown["groups"].why


def test_an_average_does_not_hide_the_speakers_who_are_recognised_worst() -> None:
    alone = answering(share(0.6))
    last = np.isin(SPEAKERS, ["s3", "s8", "s13", "s18", "s23", "s28", "s33", "s38"])
    student = answering((share(0.6) | share(0.8, 1)) & ~(last & share(0.8, 2)))
    found = ask(student, alone)
    assert found["gold-only"].passed is True
    assert found["speakers"].passed is False
    assert ask(answering(share(0.6) | share(0.5, 1)), alone)["speakers"].passed is True
    few = np.arange(80)
    assert ask(student.take(few), alone.take(few))["speakers"].passed is None


@pytest.mark.parametrize(
    ("right", "kept_right", "passed"),
    [(60, 36, True), (60, 28, False), (36, 28, True), (90, 36, True), (90, 33, False)],
)
def test_what_a_generation_keeps_must_be_right(right: int, kept_right: int, passed: bool) -> None:
    """Of 100 planted clips 40 would have been kept: 85 % of them right, or 10 points more than of all."""
    planted = Planted(clips=100, right=right, kept=40, kept_right=kept_right)
    found = gate.precise(planted, LIMITS)
    assert found.passed is passed
    assert f"{kept_right / 40:.3f}" in found.why
    alone = answering(share(0.6))
    asked = gate.judge(alone, alone, None, None, LIMITS, planted)
    assert found in asked


def test_few_planted_clips_say_nothing() -> None:
    assert gate.precise(Planted(clips=100, right=10, kept=19, kept_right=0), LIMITS).passed is None
    assert gate.precise(None, LIMITS).passed is None


def test_an_average_does_not_hide_a_class() -> None:
    alone = answering(share(0.6))
    student = answering((share(0.6) | (TRUTH != 3)) & ~((TRUTH == 3) & share(0.3, 2)))
    found = ask(student, alone)
    assert found["gold-only"].passed is True
    assert found["classes"].passed is False
    assert "sadness" in found["classes"].why


@pytest.mark.parametrize(("after", "passed"), [(10, True), (9, True), (8, True), (7, False), (0, False)])
def test_what_is_rarely_recognised_is_not_forgotten(after: int, passed: bool) -> None:
    """Of 200 frightened clips the other recognises 10: half of them are 0.025 of recall, which `classes` lets pass."""
    truth = np.repeat([0, 1], 200)

    def recognising(fear: int) -> Answers:
        predicted = np.where(np.arange(400) % 200 < fear, 1, 0) * (truth == 1)
        speakers = np.array([f"s{place % 40}" for place in range(400)])
        scores = np.full((400, 2), 0.5)
        return Answers(classes=("anger", "fear"), truth=truth, predicted=predicted, scores=scores, speakers=speakers)

    found = gate.no_rare_class_forgotten(recognising(after), recognising(10), LIMITS)
    assert found.passed is passed
    assert f"recall of fear goes from 0.050 to {after / 200:.3f}, the worst of fear" in found.why
    assert gate.no_class_harmed(recognising(after), recognising(10), LIMITS).passed is True
    asked = {verdict.gate: verdict for verdict in gate.judge(recognising(after), recognising(10), None, None, LIMITS)}
    assert asked["rare"] == found


def test_sureness_without_being_right_is_refused() -> None:
    alone, right = answering(share(0.6)), share(0.6) | share(0.5, 1)
    assert ask(answering(right), alone)["calibration"].passed is True
    assert ask(answering(right, confidence=0.99), alone)["calibration"].passed is False


def test_few_clips_show_an_error_by_chance() -> None:
    """On 40 clips a calibrated model often misses by more than 0.05; on many it does not."""
    random = np.random.default_rng(0)
    scores = random.dirichlet(np.ones(4), 4000)
    truth = np.array([random.choice(4, p=row) for row in scores])
    answers = Answers(
        classes=CLASSES,
        truth=truth,
        predicted=scores.argmax(axis=1),
        scores=scores,
        speakers=np.array(["s"] * 4000),
    )
    assert gate.chance_ece(answers.take(np.arange(40)), 300) > 0.1
    assert gate.chance_ece(answers, 300) < 0.04


@pytest.mark.parametrize("changed", ["drift", "flips", "entropy"])
def test_labels_must_not_run_away_on_canaries(changed: str) -> None:
    before = np.full((100, 4), 0.02) + 0.92 * np.eye(4)[np.arange(100) % 4]
    after = before.copy()
    if changed == "drift":
        after[:40] = before[0]
    elif changed == "flips":
        after[:20] = np.roll(before[:20], 1, axis=1)
    else:
        after = np.full((100, 4), 0.2) + 0.2 * np.eye(4)[np.arange(100) % 4]
    found = {verdict.gate: verdict.passed for verdict in gate.steady(before, after, LIMITS)}
    assert found[changed] is False
    assert all(found[name] for name in {"drift", "entropy"} - {changed})


@pytest.mark.parametrize(
    ("count", "others", "passed"),
    [(400, 0, False), (400, 2, False), (400, 8, True), (133, 0, False), (133, 1, True), (132, 0, None), (20, 20, None)],
)
def test_who_says_only_what_was_said_has_nothing_to_teach(count: int, others: int, passed: bool | None) -> None:
    """Few canaries that all agree are no proof, and neither are some that agree by chance."""
    before = np.full((count, 4), 0.1) + 0.6 * np.eye(4)[np.arange(count) % 4]
    after = before.copy()
    after[:others] = np.roll(before[:others], 1, axis=1)
    (found,) = (verdict for verdict in gate.steady(before, after, LIMITS) if verdict.gate == "agreement")
    assert found.passed is passed
    assert str(count) in found.why
    free = replace(LIMITS, agreement=1.0)
    assert next(one for one in gate.steady(before, after, free) if one.gate == "agreement").passed is not False


def test_canaries_that_nobody_scored_are_not_asked() -> None:
    nothing = np.full((3, 4), np.nan)
    (verdict,) = gate.steady(nothing, nothing, LIMITS)
    assert verdict.passed is None


def certain(by: float) -> np.ndarray:
    """Scores for the classes in turn, all but sure."""
    return np.full((100, 4), by / 3) + (1 - by * 4 / 3) * np.eye(4)[np.arange(100) % 4]


def entropy_gate(before: np.ndarray, after: np.ndarray) -> Verdict:
    (found,) = (verdict for verdict in gate.steady(before, after, LIMITS) if verdict.gate == "entropy")
    return found


def test_of_two_entropies_near_zero_the_ratio_is_chance() -> None:
    """0.0001 nats against 0.0004 is a change by 3 of the first and by nothing that anybody would notice."""
    passed = entropy_gate(certain(1e-5), certain(4e-5))
    assert passed.passed is True
    assert "of 0.069 nats" in passed.why
    assert entropy_gate(certain(1e-5), certain(0.02)).passed is False, "a rise from certainty is still seen"
    assert entropy_gate(certain(0.2), certain(0.3)).passed is False
    assert "of the teachers'" in entropy_gate(certain(0.2), certain(0.21)).why
