"""Fitting a head: as good as scikit-learn's, the same twice, gold in every batch, sure only as far as it is right."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from serpipe.pseudolabel import fit as module
from serpipe.pseudolabel.fit import Examples, Head, Settings, cool, fit, left_out, logits_of, temperature


def made(seed: int, n: int, *, gap: float = 1.0, voices: int = 5) -> Examples:
    """Three classes around three points of eight dimensions."""
    random = np.random.default_rng(seed)
    hard = random.integers(0, 3, n)
    centres = np.random.default_rng(99).normal(size=(3, 8)) * gap
    embeddings = (centres[hard] + random.normal(size=(n, 8))).astype(np.float16)
    soft = np.eye(3, dtype=np.float32)[hard]
    voice = np.array([f"v{i % voices}" for i in range(n)])
    return Examples(embeddings, soft, np.ones(n, np.float32), voice, np.array([f"r{seed}-{i}" for i in range(n)]))


def right(logits: np.ndarray, examples: Examples) -> float:
    return float((logits.argmax(axis=1) == examples.soft.argmax(axis=1)).mean())


def test_a_linear_head_is_a_logistic_regression() -> None:
    train, test = made(0, 300), made(1, 600)
    head = fit(train, None, Settings(penalty=0.01))
    scaled = (train.embeddings.astype(float) - head.mean.numpy()) / head.deviation.numpy()
    reference = LogisticRegression(C=1 / (2 * 0.01 * len(train))).fit(scaled, train.soft.argmax(axis=1))
    other = reference.decision_function((test.embeddings.astype(float) - head.mean.numpy()) / head.deviation.numpy())
    assert abs(right(logits_of(head, test.embeddings), test) - right(other, test)) < 0.03
    same = logits_of(head, test.embeddings).argmax(axis=1) == other.argmax(axis=1)
    assert same.mean() > 0.95


@pytest.mark.parametrize("hidden", [0, 8])
def test_the_same_rows_and_seed_give_the_same_bytes(hidden: int) -> None:
    settings = Settings(hidden=hidden, steps=40)
    torch.manual_seed(5)
    one = fit(made(0, 60), made(1, 200), settings)
    torch.manual_seed(6)
    two = fit(made(0, 60), made(1, 200), settings)
    other = fit(made(0, 60), made(1, 200), Settings(hidden=hidden, steps=40, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.out.weight, other.out.weight)


def test_features_are_standardised_over_gold_and_pseudo_labels() -> None:
    gold, pseudo = made(0, 30), made(1, 9000, gap=3.0)
    head = fit(gold, pseudo, Settings(steps=2))
    everything = np.concatenate([gold.embeddings, pseudo.embeddings]).astype(np.float64)
    np.testing.assert_allclose(head.mean.numpy(), everything.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(head.deviation.numpy(), everything.std(axis=0), rtol=1e-6)


def test_embeddings_are_not_held_a_second_time() -> None:
    """At 500,000 rows of 1024 a float64 copy is 4 GB beside the 1 GB they are."""
    random = np.random.default_rng(0)
    hard = np.arange(40_000) % 3
    embeddings = random.normal(size=(40_000, 128)).astype(np.float16)
    soft, names = np.eye(3, dtype=np.float32)[hard], hard.astype(str)
    pseudo = Examples(embeddings, soft, np.ones(40_000, np.float32), names, names)
    gold = Examples(embeddings[:30], soft[:30], pseudo.weights[:30], names[:30], names[:30])
    tracemalloc.start()
    try:
        fit(gold, pseudo, Settings(steps=2))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * embeddings.nbytes


def test_rows_without_weight_teach_nothing() -> None:
    gold, pseudo = made(0, 30), made(1, 200)
    wrong = replace(pseudo, soft=np.roll(pseudo.soft, 1, axis=1), weights=np.zeros(200, np.float32))
    both = Examples(
        np.concatenate([pseudo.embeddings, wrong.embeddings]),
        np.concatenate([pseudo.soft, wrong.soft]),
        np.concatenate([pseudo.weights, wrong.weights]),
        np.concatenate([pseudo.groups, wrong.groups]),
        np.concatenate([pseudo.recordings, wrong.recordings]),
    )
    test = made(2, 300)
    assert right(logits_of(fit(gold, both, Settings()), test.embeddings), test) > 0.85


@pytest.mark.parametrize("known", ["both", "gold alone"])
def test_a_voice_that_is_left_out_is_heard_in_no_recording(known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pseudo-labels of gold's own recordings, whose speakers the manifest need not name."""
    gold, pseudo = made(0, 20), made(1, 60)
    gold = replace(gold, recordings=np.array([f"file-{i % 5}" for i in range(20)]))
    pseudo = replace(pseudo, recordings=np.array([f"file-{i % 12}" for i in range(60)]))
    if known == "gold alone":
        pseudo = replace(pseudo, groups=pseudo.recordings)
    heard = []

    def watched(rows: Examples, others: Examples | None, settings: Settings) -> Head:
        assert others is not None
        held = ~np.isin(gold.groups, rows.groups)
        assert not np.isin(others.recordings, gold.recordings[held]).any()
        assert not np.isin(others.groups, gold.groups[held]).any()
        heard.append(len(others))
        return fit(rows, others, settings)

    monkeypatch.setattr(module, "fit", watched)
    left_out(gold, pseudo, Settings(steps=2))
    assert len(heard) == 5
    assert all(0 < count < 60 for count in heard)


def test_gold_holds_its_share_of_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pseudo-labels say otherwise, a quarter of every batch is gold."""
    gold, pseudo = made(0, 30), made(1, 3000)
    sizes: list[tuple[int, int]] = []
    draw = np.random.Generator.choice

    class Watched:
        def __init__(self, seed: int) -> None:
            self._random = draw_from(seed)

        def choice(self, count: int, size: int, p: np.ndarray) -> np.ndarray:
            sizes.append((count, size))
            return draw(self._random, count, size, p=p)

    draw_from = np.random.default_rng
    monkeypatch.setattr(module.np.random, "default_rng", Watched)
    fit(gold, pseudo, Settings(steps=3, batch=64, gold_share=0.25))
    assert sizes == [(30, 16), (3000, 48)] * 3


def test_left_out_voices_are_judged_by_heads_that_did_not_hear_them(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[set[str], set[str]]] = []
    whole = module.fit

    def watched(gold: Examples, pseudo: Examples | None, settings: Settings) -> object:
        heard.append((set(gold.groups), set(pseudo.groups) if pseudo is not None else set()))
        return whole(gold, pseudo, settings)

    monkeypatch.setattr(module, "fit", watched)
    gold = made(0, 50, voices=5)
    logits = left_out(gold, made(1, 50, voices=10), Settings(steps=20))
    assert logits.shape == (50, 3)
    assert len(heard) == 5
    for voices, taught in heard:
        assert len(voices) == 4
        assert not {"v0", "v1", "v2", "v3", "v4"} - voices & taught


def test_scores_are_as_sure_as_they_are_right() -> None:
    train, test = made(0, 200, gap=0.5), made(1, 2000, gap=0.5)
    settings = Settings(penalty=1.0)
    logits = left_out(train, None, settings)
    head = fit(train, None, settings)
    before = logits_of(head, test.embeddings)
    cool(head, temperature(logits, train.soft))
    after = logits_of(head, test.embeddings)

    def gap(values: np.ndarray) -> float:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        confidence = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
        return abs(float(confidence.mean()) - right(values, test))

    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert gap(after) < 0.5 * gap(before)
