"""The gates between a student and becoming a teacher: each a rule, what was measured, and a sentence.

Published averages of pseudo-labelling rounds rise while every natural corpus falls, so nothing here looks at an
average alone, and a student must not fall behind the one that taught it either. A gate that cannot be asked (no canary,
one corpus) says so and neither passes nor fails.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serpipe.evaluate import BINS, Answers, Measure, Statistic, difference, evaluate, measured, recalls
from serpipe.pseudolabel.planted import Planted

Floats = NDArray[np.float64]

CORPUS = "corpus"
GROUPS = ("gender", "sex", "language", "lang")
"""The owner's columns by whose values a student must not become more unequal."""

PLANTED = 20
"""Kept clips of planted gold, at least, to speak of how often they are right."""

SLICES = (CORPUS, *GROUPS)
"""The owner's columns that gates look at."""

RARE = ("fear", "disgust", "surprise")
"""Emotions that are rare in speech nobody acts, and the first that a round of pseudo-labels forgets."""

TAIL, SPEAKERS = 10, 20
"""Percentile of the speakers' UA that is watched, and the fewest speakers that have one: two lie below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gates ask.

    Attributes:
        corpus: largest loss of UA in any one corpus: the lower bound of the difference is above minus this.
        recall: largest loss of recall in any one class.
        rare: least recall of a class of `RARE`, as a share of what it was: where few are recognised, a loss of most of
            them is a small number.
        gap: largest growth of the distance between the best and the worst group's UA.
        tail: largest loss of percentile `TAIL` of the speakers' UA.
        precision: least share of right labels among planted gold that would have been kept; or
        sharpening: by how much that share is above that of all planted gold. Where nearly all labels are right there is
            nothing to win, and on natural speech, where people disagree, no filter reaches the first.
        ece: largest calibration error, or what a perfectly calibrated model would show by chance on as many clips.
        drift: largest Jensen-Shannon divergence, in nats, of the labels' shares on unlabelled canaries.
        flips: largest share of canaries that change their label though the teachers were sure of it.
        sure: probability from which on a teacher was sure.
        entropy: largest change of the mean entropy on canaries, as a share of what it was, or of `least_entropy`
            where it was less: of two entropies near zero the ratio is chance.
        least_entropy: share of the entropy of uniform scores, the least that a change is measured against; our choice.
        agreement: share of canaries, from which on a student that says the same as its teachers has nothing to teach.
        count: bootstrap replicates.
    """

    corpus: float = 0.02
    recall: float = 0.05
    rare: float = 0.8
    gap: float = 0.02
    tail: float = 0.03
    precision: float = 0.85
    sharpening: float = 0.1
    ece: float = 0.05
    drift: float = 0.02
    flips: float = 0.05
    sure: float = 0.9
    entropy: float = 0.15
    least_entropy: float = 0.05
    agreement: float = 0.98
    count: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one gate said.

    Attributes:
        gate: its name.
        passed: None where it could not be asked.
        why: one sentence with the figures.
    """

    gate: str
    passed: bool | None
    why: str


def against_majority(student: Answers, limits: Limits) -> Verdict:
    """Better than always naming the commonest class, whose UA is one over the number of classes."""
    found = evaluate(student, count=limits.count)["recall_macro_ua"]
    chance = 1 / len(np.unique(student.truth))
    return Verdict(
        gate="majority",
        passed=found.lower_bound > chance,
        why=f"UA {found}; the lower bound {found.lower_bound:.3f} must be above {chance:.3f}, one class for all",
    )


def against(student: Answers, other: Answers, what: str, limits: Limits) -> Verdict:
    """Better than another model on the same clips, so that the pseudo-labels were worth it."""
    gain = difference(student, other, count=limits.count)["recall_macro_ua"]
    return Verdict(
        gate=what,
        passed=gain.lower_bound > 0,
        why=f"UA changes by {gain} against {what}; the lower bound {gain.lower_bound:+.3f} must be above 0",
    )


def no_corpus_harmed(student: Answers, other: Answers, limits: Limits, *, by: str = CORPUS) -> Verdict:
    """Not worse in any one corpus."""
    if by not in student.slices:
        return Verdict(
            gate="corpora", passed=None, why=f"gold's recordings have no column {by}; all count as one corpus"
        )
    values = student.slices[by]
    bounds = {}
    for value in np.unique(values):
        mine = values == value
        gain = difference(student.take(mine), other.take(mine), count=limits.count)["recall_macro_ua"]
        bounds[str(value)] = gain.lower_bound
    worst = min(bounds, key=lambda name: bounds[name])
    return Verdict(
        gate="corpora",
        passed=bounds[worst] > -limits.corpus,
        why=f"of {len(bounds)} corpora {worst} loses most: lower bound {bounds[worst]:+.3f}, "
        f"which must be above {-limits.corpus:+.3f}",
    )


def no_class_harmed(student: Answers, other: Answers, limits: Limits) -> Verdict:
    """No class recognised much less often."""
    change = difference(student, other, count=limits.count)
    recalls = {name.removeprefix("recall."): made.value for name, made in change.items() if name.startswith("recall.")}
    worst = min(recalls, key=lambda name: recalls[name])
    return Verdict(
        gate="classes",
        passed=recalls[worst] >= -limits.recall,
        why=f"recall of {worst} changes most for the worse, by {recalls[worst]:+.3f}; "
        f"no class may lose more than {limits.recall:.3f}",
    )


def no_rare_class_forgotten(student: Answers, other: Answers, limits: Limits) -> Verdict:
    """No rare class recognised so much less often that most of what the other recognised is lost.

    A class of which the other recognised one clip in ten may lose half of them and pass `no_class_harmed`.
    """
    ours, theirs = (recalls(answers)(np.ones((1, len(answers)))) for answers in (student, other))
    pairs = {name: (float(ours[key][0]), float(theirs[key][0])) for name in RARE if (key := f"recall.{name}") in ours}
    if not pairs:
        return Verdict(gate="rare", passed=None, why=f"the clips that judge have none of {', '.join(RARE)}")
    worst = min(pairs, key=lambda name: pairs[name][0] - limits.rare * pairs[name][1])
    after, before = pairs[worst]
    return Verdict(
        gate="rare",
        # Exactly that share passes, whatever the rounding.
        passed=after - limits.rare * before > -1e-9,
        why=f"recall of {worst} goes from {before:.3f} to {after:.3f}, the worst of {', '.join(pairs)}; none may fall "
        f"below {limits.rare:.2f} of what it was",
    )


def no_group_harmed(student: Answers, other: Answers, limits: Limits) -> Verdict:
    """The worst group's UA falls no further behind the best one's.

    Groups cut the clips finely, and a distance between noisy numbers is large by chance: what its interval cannot tell
    from no growth does not fail.
    """
    there = [name for name in GROUPS if len(_known(student.slices.get(name))) > 1]
    if not there:
        why = f"gold's recordings have no column {' or '.join(GROUPS)} with two values"
        return Verdict(gate="groups", passed=None, why=why)
    growth = {name: _growth(_gap(student, name), _gap(other, name), student, limits) for name in there}
    harmed = {name: grown for name, grown in growth.items() if grown.value > limits.gap and grown.low > 0}
    worst = max(harmed or growth, key=lambda name: growth[name].value)
    return Verdict(
        gate="groups",
        passed=not harmed,
        why=f"the distance between the UA of the best and the worst {worst} grows by {growth[worst]}; it must not grow "
        f"by more than {limits.gap:.3f} where its interval excludes 0",
    )


def no_speaker_left_behind(student: Answers, other: Answers, limits: Limits) -> Verdict:
    """Those speakers who are recognised worst are not recognised worse still.

    The interval of a tail is wide with any number of speakers that gold has, so that the value decides, as for classes.
    """
    count = len(np.unique(student.speakers))
    if count < SPEAKERS:
        why = f"gold judges by {count} speakers, and the worst {TAIL} % of them take {SPEAKERS}"
        return Verdict(gate="speakers", passed=None, why=why)
    before, after = _tail(other), _tail(student)
    return Verdict(
        gate="speakers",
        passed=after - before >= -limits.tail,
        why=f"UA of the {TAIL}th percentile of {count} speakers goes from {before:.3f} to {after:.3f}; it may fall by "
        f"{limits.tail:.3f}",
    )


def _tail(answers: Answers) -> float:
    masks = (answers.speakers == speaker for speaker in np.unique(answers.speakers))
    found = [float(recalls(part)(np.ones((1, len(part))))["recall_macro_ua"][0]) for part in map(answers.take, masks)]
    return float(np.percentile(found, TAIL))


def _known(values: NDArray[np.str_] | None) -> list[str]:
    return [] if values is None else [str(value) for value in np.unique(values) if value != "unknown"]


def _growth(ours: Statistic, theirs: Statistic, answers: Answers, limits: Limits) -> Measure:
    def statistic(weights: Floats) -> dict[str, Floats]:
        return {"gap": ours(weights)["gap"] - theirs(weights)["gap"]}

    return measured(statistic, answers.speakers, count=limits.count)["gap"]


def _gap(answers: Answers, name: str) -> Statistic:
    """Distance between the UA of the best and of the worst group."""
    masks = [answers.slices[name] == value for value in _known(answers.slices[name])]
    parts = [(mask, recalls(answers.take(mask))) for mask in masks]

    def statistic(weights: Floats) -> dict[str, Floats]:
        found = np.stack([of(weights[:, mask])["recall_macro_ua"] for mask, of in parts])
        # A replicate that did not draw a group says nothing of it.
        return {"gap": found.max(axis=0) - found.min(axis=0)}

    return statistic


def f1_not_worse(student: Answers, other: Answers, limits: Limits) -> Verdict:
    """Macro-F1, which punishes guessing a rare class, does not fall."""
    change = difference(student, other, count=limits.count)["f1_macro"]
    return Verdict(gate="f1", passed=change.value >= 0, why=f"macro-F1 changes by {change}; it must not fall")


def calibrated(student: Answers, other: Answers, limits: Limits) -> Verdict:
    """As sure as it is right, as far as so many clips can tell, and no worse in log-loss."""
    mine, theirs = (evaluate(answers, count=1) for answers in (student, other))
    chance = chance_ece(student, limits.count)
    bound = max(limits.ece, chance)
    loss, before = mine["nll"].value, theirs["nll"].value
    return Verdict(
        gate="calibration",
        passed=mine["ece"].value <= bound and loss <= before,
        why=f"ECE {mine['ece'].value:.3f}, allowed {bound:.3f} (a calibrated model shows up to {chance:.3f} on "
        f"{len(student)} clips); log-loss {loss:.3f} against {before:.3f}, which it must not exceed",
    )


def chance_ece(answers: Answers, count: int, *, seed: int = 0) -> float:
    """The 95th percentile of the calibration error that a perfectly calibrated model shows on these clips.

    Few clips in many bins make the error of any model large (Vaicenavicius et al., 2019, consistency resampling): right
    and wrong are drawn with the model's own confidences.
    """
    rows = np.arange(len(answers))
    confidence = np.nan_to_num(answers.scores[rows, np.maximum(answers.predicted, 0)])[answers.predicted >= 0]
    if not len(confidence):
        return 0.0
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    drawn = np.random.default_rng(seed).random((count, len(confidence))) < confidence
    gaps = np.stack([((drawn - confidence) * (bins == place)).sum(axis=1) for place in range(BINS)])
    return float(np.percentile(np.abs(gaps).sum(axis=0) / len(confidence), 95))


def precise(planted: Planted | None, limits: Limits) -> Verdict:
    """What the generation keeps is right often enough, or more often than what it was chosen from."""
    if planted is None or planted.kept < PLANTED:
        there = planted.kept if planted else 0
        why = f"of the gold that judges {there} clips would have been kept, and it takes {PLANTED}"
        return Verdict(gate="planted", passed=None, why=why)
    kept, all_of_it = planted.precision, planted.unfiltered
    return Verdict(
        gate="planted",
        passed=kept >= limits.precision or kept - all_of_it >= limits.sharpening,
        why=f"of {planted.kept} gold clips that would have been kept {kept:.3f} have the right label, of all "
        f"{planted.clips} {all_of_it:.3f}; it must be {limits.precision:.2f}, or {limits.sharpening:.2f} above all",
    )


def steady(before: Floats, after: Floats, limits: Limits) -> list[Verdict]:
    """How labels move on unlabelled canaries: not far, and yet somewhere.

    Args:
        before: float (n, classes), the generation's consensus.
        after: float (n, classes), the student's scores.
        limits: what is allowed.
    """
    kept = ~(np.isnan(before).any(axis=1) | np.isnan(after).any(axis=1))
    before, after = before[kept], after[kept]
    if not len(before):
        return [Verdict(gate="canaries", passed=None, why="no canary has both a consensus and the student's scores")]
    first, second = before.argmax(axis=1), after.argmax(axis=1)
    shares = [np.bincount(labels, minlength=before.shape[1]) / len(labels) for labels in (first, second)]
    moved = _jsd(*shares)
    sure = before.max(axis=1) >= limits.sure
    flips = float((first != second)[sure].mean()) if sure.any() else 0.0
    entropies = [float(_entropy(scores).mean()) for scores in (before, after)]
    least = limits.least_entropy * float(np.log(before.shape[1]))
    change = abs(entropies[1] - entropies[0]) / max(entropies[0], least)
    return [
        Verdict(
            gate="drift",
            passed=moved <= limits.drift,
            why=f"the labels' shares on {len(before)} canaries move by {moved:.4f} nats, allowed {limits.drift}",
        ),
        Verdict(
            gate="flips",
            passed=flips <= limits.flips if sure.any() else None,
            why=f"of {int(sure.sum())} canaries the teachers were sure of, {flips:.3f} change their label, "
            f"allowed {limits.flips}",
        ),
        Verdict(
            gate="entropy",
            passed=change <= limits.entropy,
            why=f"mean entropy goes from {entropies[0]:.3f} to {entropies[1]:.3f} nats, a change of {change:.3f} "
            + (f"of {least:.3f} nats, as the teachers' is less" if entropies[0] < least else "of the teachers'")
            + f", allowed {limits.entropy}",
        ),
        _something_new(first, second, limits),
    ]


def _something_new(taught: NDArray[np.int64], said: NDArray[np.int64], limits: Limits) -> Verdict:
    """The student does not merely say what its teachers said.

    What fails must be sure: where all of a few canaries have the same label, a student that differs on one segment in
    ten may have been lucky. So the lower bound of the share decides, and too few canaries to reach it are not asked.
    """
    count, same = len(taught), int((taught == said).sum())
    bound, most = _lower_bound(same, count), _lower_bound(count, count)
    if most < limits.agreement:
        why = f"of {count} canaries {same} have the teachers' label; were it all, so few would not tell from "
        return Verdict(gate="agreement", passed=None, why=f"{why}{limits.agreement}")
    return Verdict(
        gate="agreement",
        passed=bound < limits.agreement,
        why=f"{same / count:.3f} of {count} canaries have the teachers' label, at the least {bound:.3f}; from "
        f"{limits.agreement} on the student has nothing new to teach",
    )


def _lower_bound(hits: int, count: int) -> float:
    """One-sided 95 % lower bound of a share (Wilson, 1927), which holds where all are hits too."""
    share, z2 = hits / count, 1.6449**2
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count)
    return float((share + z2 / (2 * count) - half) / (1 + z2 / count))


def _entropy(scores: Floats) -> Floats:
    return np.asarray(-(scores * np.log(np.maximum(scores, 1e-30))).sum(axis=-1))


def _jsd(first: Floats, second: Floats) -> float:
    """Jensen-Shannon divergence in nats."""
    return float(_entropy((first + second) / 2) - (_entropy(first) + _entropy(second)) / 2)


def judge(
    student: Answers,
    alone: Answers,
    parent: Answers | None,
    canaries: tuple[Floats, Floats] | None,
    limits: Limits,
    planted: Planted | None = None,
) -> list[Verdict]:
    """Every gate.

    Args:
        student: on gold that trained nobody.
        alone: the same backbone trained on gold alone, on the same clips.
        parent: the student this generation was taught by, on the same clips; None in a first round.
        canaries: consensus and student's scores on unlabelled segments.
        limits: what is asked.
        planted: how often labels of gold are right that the generation would have kept.
    """
    verdicts = [
        against_majority(student, limits),
        against(student, alone, "gold-only", limits),
        *_unharmed(student, alone, limits),
    ]
    if parent is not None:
        verdicts.append(against(student, parent, "parent", limits))
        verdicts += [
            replace(verdict, gate=f"parent-{verdict.gate}", why=f"against the parent, {verdict.why}")
            for verdict in _unharmed(student, parent, limits)
        ]
    verdicts.append(precise(planted, limits))
    if canaries is None:
        verdicts.append(Verdict(gate="canaries", passed=None, why="the generation has no rows to watch"))
    else:
        verdicts += steady(*canaries, limits)
    return verdicts


def _unharmed(student: Answers, other: Answers, limits: Limits) -> list[Verdict]:
    """Nothing that an average hides is worse than it was with the other model."""
    return [
        no_corpus_harmed(student, other, limits),
        no_class_harmed(student, other, limits),
        no_rare_class_forgotten(student, other, limits),
        no_group_harmed(student, other, limits),
        no_speaker_left_behind(student, other, limits),
        f1_not_worse(student, other, limits),
        calibrated(student, other, limits),
    ]
