"""Fitting the head of a student: gold in every batch, soft labels, classes drawn equally often."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch.nn import functional

from serpipe.models.probe_head import Head

Floats = NDArray[np.float32]

_CHUNK = 4096
"""Embeddings that are float64 at once: 32 MiB at 1024 wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a head is fitted.

    Attributes:
        hidden: width of the hidden layer; 0 for a linear head.
        steps: of the optimiser.
        batch: rows of a step.
        gold_share: part of every batch that is gold (Arazo et al., 2020: a least number of labelled rows in each batch
            is what holds confirmation bias back; a quarter is our choice).
        rate: peak learning rate.
        penalty: of the squared weights, in units of the mean loss; features are standardised. Chosen by leaving one
            speaker of `dev` out of a small acted corpus.
        dropout: behind a hidden layer.
        seed: of first weights and batches.
    """

    hidden: int = 0
    steps: int = 200
    batch: int = 256
    gold_share: float = 0.25
    rate: float = 0.02
    penalty: float = 1.0
    dropout: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled embeddings.

    Attributes:
        embeddings: float (n, width).
        soft: float (n, classes), each row a distribution.
        weights: float (n,).
        groups: (n,), whose voice.
        recordings: (n,), in which recording.
    """

    embeddings: NDArray[np.float16] | Floats
    soft: Floats
    weights: Floats
    groups: NDArray[np.str_]
    recordings: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.soft)

    def take(self, rows: NDArray[np.bool_]) -> Examples:
        """Some of the rows."""
        return Examples(
            self.embeddings[rows], self.soft[rows], self.weights[rows], self.groups[rows], self.recordings[rows]
        )


@contextmanager
def _deterministic() -> Iterator[None]:
    """One thread: sums in another order are other numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit(gold: Examples, pseudo: Examples | None, settings: Settings) -> Head:
    """Fit a head.

    Args:
        gold: labelled by people; at least one row.
        pseudo: labelled by teachers; None or empty for a gold-only student.
        settings: how.

    Returns:
        The head, its weights averaged over the last half of the steps. The same for the same rows in the same order.
    """
    pseudo = pseudo if pseudo is not None and len(pseudo) else None
    with _deterministic(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        random = np.random.default_rng(settings.seed)
        head = Head(gold.embeddings.shape[1], gold.soft.shape[1], hidden=settings.hidden, dropout=settings.dropout)
        mean, deviation = _moments([part.embeddings for part in (gold, pseudo) if part is not None])
        head.mean.copy_(torch.from_numpy(mean))
        head.deviation.copy_(torch.from_numpy(np.maximum(deviation, 1e-6)))
        _descend(head, gold, pseudo, settings, random)
    return head.eval()


def _moments(
    parts: Sequence[NDArray[np.float16] | Floats],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of each column over all rows, in two passes and without a float64 copy of them."""
    rows = sum(len(part) for part in parts)

    def total(of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        found = np.zeros(parts[0].shape[1])
        for part in parts:
            for start in range(0, len(part), _CHUNK):
                found += of(part[start : start + _CHUNK].astype(np.float64)).sum(axis=0)
        return found

    mean = total(lambda values: values) / rows
    return mean, np.sqrt(total(lambda values: np.square(values - mean)) / rows)


def _descend(
    head: Head, gold: Examples, pseudo: Examples | None, settings: Settings, random: np.random.Generator
) -> None:
    optimiser = torch.optim.Adam(head.parameters(), lr=settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    average = torch.optim.swa_utils.AveragedModel(head)
    weights = [parameter for name, parameter in head.named_parameters() if name.endswith("weight")]
    golden = settings.batch if pseudo is None else max(1, round(settings.gold_share * settings.batch))
    draws = [(gold, _chances(gold), golden)]
    if pseudo is not None:
        draws.append((pseudo, _chances(pseudo), settings.batch - golden))
    head.train()
    for step in range(settings.steps):
        places = [(part, random.choice(len(part), count, p=chances)) for part, chances, count in draws]
        embeddings = np.concatenate([part.embeddings[rows].astype(np.float32) for part, rows in places])
        soft = np.concatenate([part.soft[rows] for part, rows in places])
        loss = functional.cross_entropy(head(torch.from_numpy(embeddings)), torch.from_numpy(soft))
        for parameter in weights:
            loss = loss + settings.penalty * parameter.square().sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step >= settings.steps // 2:
            average.update_parameters(head)
    head.load_state_dict(average.module.state_dict())


def _chances(examples: Examples) -> NDArray[np.float64]:
    """Chance of each row in a draw: by its weight, and every class that occurs equally often."""
    weights = np.maximum(examples.weights.astype(np.float64), 0.0)
    hard = examples.soft.argmax(axis=1)
    mass = np.bincount(hard, weights)
    chances = weights / np.maximum(mass[hard], 1e-30)
    return np.asarray(chances / chances.sum())


@torch.inference_mode()
def logits_of(head: Head, embeddings: NDArray[np.float16] | Floats) -> Floats:
    """Logits, float32 (n, classes)."""
    with _deterministic():
        values: Floats = head(torch.from_numpy(embeddings.astype(np.float32))).numpy()
    return values


def left_out(gold: Examples, pseudo: Examples | None, settings: Settings, *, folds: int = 5) -> Floats:
    """Logits for gold from heads that did not hear that voice (with one voice: that clip's fold)."""
    names = np.unique(gold.groups)
    if len(names) > 1:
        fold = np.searchsorted(names, gold.groups) % min(folds, len(names))
    else:
        # Clips of a class are spread over the folds.
        fold = np.zeros(len(gold), np.int64)
        hard = gold.soft.argmax(axis=1)
        for label in np.unique(hard):
            mine = np.flatnonzero(hard == label)
            fold[mine] = np.arange(len(mine)) % min(folds, len(gold))
    logits = np.zeros(gold.soft.shape, np.float32)
    for number in np.unique(fold):
        held = fold == number
        if held.all():
            return logits_of(fit(gold, pseudo, settings), gold.embeddings)
        others = pseudo
        if others is not None and len(names) > 1:
            # A teacher may have taught the pseudo-labels of this voice with this very clip. Where gold or the manifest
            # alone says who speaks, only the recording tells that it is the same voice.
            heard = np.isin(others.groups, np.unique(gold.groups[held]))
            heard |= np.isin(others.recordings, np.unique(gold.recordings[held]))
            others = others.take(~heard)
        logits[held] = logits_of(fit(gold.take(~held), others, settings), gold.embeddings[held])
    return logits


def temperature(logits: Floats, soft: Floats) -> float:
    """What logits are divided by so that their scores are as sure as they are right (Guo et al., 2017).

    Examples:
        >>> sure = np.array([[4.0, 0.0]] * 4, np.float32)
        >>> round(temperature(sure, np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]], np.float32)), 2)
        3.64
    """

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(-(soft * (scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))).sum(axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))


def cool(head: Head, by: float) -> None:
    """Divide a head's logits by a temperature, in its weights."""
    with torch.no_grad():
        head.out.weight.div_(by)
        head.out.bias.div_(by)
