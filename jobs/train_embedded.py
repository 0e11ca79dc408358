"""Train the model that ships in the package, `serpipe/models/embedded/`, and print how good it is.

DATA is a folder with `labels.csv` (columns path, emotion, speaker, split) and the 16 kHz mono files it names:
the Berlin Database of Emotional Speech, split by speaker. Leave-one-speaker-out within `dev` says what the
recipe is worth, and choices are made by that alone. Then one model per seed is trained on all of `dev`, and
scored once on `test`. The weights of seed 0 are the ones that are kept.

    python jobs/train_embedded.py DATA --out serpipe/models/embedded
"""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import av
import click
import numpy as np
import soundfile
import soxr
import torch
from av.audio.stream import AudioStream
from numpy.typing import NDArray
from safetensors.torch import save
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional

from serpipe.models.contract import SAMPLE_RATE
from serpipe.models.embedded import SPEC, load
from serpipe.models.embedded.adapter import WEIGHTS
from serpipe.models.embedded.network import MELS, EmbeddedNetwork, LogMel

VARIANTS = 16
"""Augmented copies of each clip, made once, because a codec at every step costs more than the step."""
STEPS = 300
BATCH = 32
PEAK_RATE = 2e-3
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1
CROP_FRAMES = (60, 160)
DROPOUT = 0.3


@dataclass(frozen=True, slots=True)
class Clip:
    """A labelled recording: where it is, which of `SPEC.labels`, whose voice, which split."""

    path: Path
    label: int
    speaker: str
    split: str


@dataclass(frozen=True, slots=True)
class Example:
    """Log-mel spectrograms, float32 (frames, 64), of a clip: as it is, then each augmented variant."""

    clip: Clip
    variants: tuple[NDArray[np.float32], ...]


def read_clips(data: Path) -> list[Clip]:
    """The rows of `labels.csv` whose emotion is one of the model's."""
    with (data / "labels.csv").open(encoding="utf-8", newline="") as lines:
        return [
            Clip(data / row["path"], SPEC.labels.index(row["emotion"]), row["speaker"], row["split"])
            for row in csv.DictReader(lines)
            if row["emotion"] in SPEC.labels
        ]


def read_waveform(path: Path) -> NDArray[np.float32]:
    """Mono samples, float32 (samples,), at 16 kHz."""
    waveform, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE or waveform.ndim != 1:
        raise click.ClickException(f"{path} is not 16 kHz mono; convert it first")
    return np.asarray(waveform)


# Augmentation


def change_speed(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Play faster or slower by up to 16 %: another tempo and, with it, another vocal tract."""
    stretched = soxr.resample(waveform, SAMPLE_RATE, SAMPLE_RATE * random.uniform(0.86, 1.16))
    return np.asarray(stretched, dtype=np.float32)


def add_room(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Convolve with a direct sound and noise that decays by 60 dB in 0.1 to 0.6 s (Polack's room)."""
    samples = int(random.uniform(0.1, 0.6) * SAMPLE_RATE)
    tail = random.standard_normal(samples) * 10.0 ** (-3.0 * np.arange(samples) / samples)
    response = tail / np.linalg.norm(tail) * 10.0 ** (-random.uniform(0.0, 15.0) / 20.0)
    response[0] += 1.0
    return np.asarray(signal.fftconvolve(waveform, response)[: len(waveform)], dtype=np.float32)


def limit_band(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Band-pass from 40 to 300 Hz up to 3.2 to 7.2 kHz, from a good microphone to a telephone."""
    edges = [random.uniform(40.0, 300.0), random.uniform(3200.0, 7200.0)]
    sections = signal.butter(4, edges, "bandpass", fs=SAMPLE_RATE, output="sos")
    return np.asarray(signal.sosfilt(sections, waveform), dtype=np.float32)


def add_noise(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Add noise whose power falls as 1/f^a, a from 0 (white) to 2 (brown), 8 to 35 dB below the speech."""
    spectrum = np.fft.rfft(random.standard_normal(len(waveform)))
    slope = np.maximum(np.arange(len(spectrum)), 1) ** (random.uniform(0.0, 2.0) / 2.0)
    noise = np.fft.irfft(spectrum / slope, len(waveform))
    level = np.sqrt(np.mean(waveform**2) / np.mean(noise**2)) * 10.0 ** (-random.uniform(8.0, 35.0) / 20.0)
    return np.asarray(waveform + level * noise, dtype=np.float32)


def change_gain(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Scale the peak to between -20 and +3 dB of full scale, and clip what is above."""
    peak = 10.0 ** (random.uniform(-20.0, 3.0) / 20.0)
    return np.asarray(np.clip(waveform / np.abs(waveform).max() * peak, -1.0, 1.0), dtype=np.float32)


CODECS = (("mp3", "libmp3lame", 16e3, 48e3), ("ogg", "libopus", 8e3, 32e3))
"""Container, encoder, least and most bit/s."""


def pass_codec(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Encode and decode in memory: MP3 of 16 to 48 kbit/s or Opus of 8 to 32."""
    container, encoder, lowest, highest = CODECS[random.integers(len(CODECS))]
    encoded = io.BytesIO()
    with av.open(encoded, "w", format=container) as output:
        stream = cast(AudioStream, output.add_stream(encoder, rate=SAMPLE_RATE, layout="mono"))
        stream.bit_rate = int(random.uniform(lowest, highest))
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        to_encoder = av.AudioResampler(format=stream.format, layout="mono", rate=SAMPLE_RATE)
        for part in (*to_encoder.resample(frame), None):
            output.mux(stream.encode(part))
    encoded.seek(0)
    to_float = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    with av.open(encoded, "r") as source:
        decoded = [
            part.to_ndarray()[0] for frame in (*source.decode(audio=0), None) for part in to_float.resample(frame)
        ]
    return np.concatenate(decoded)[: len(waveform)]


AUGMENTATIONS = (
    (change_speed, 0.8),
    (add_room, 0.3),
    (limit_band, 0.3),
    (add_noise, 0.5),
    (change_gain, 1.0),
    (pass_codec, 0.4),
)
"""In the order in which sound meets them, each with its probability."""


def augment(waveform: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """One augmented copy."""
    for change, probability in AUGMENTATIONS:
        if random.random() < probability:
            waveform = change(waveform, random)
    return waveform


def make_example(position: int, clip: Clip) -> Example:
    """Spectrograms of a clip and its variants; its position seeds them, whatever process makes them."""
    original = read_waveform(clip.path)
    waveforms = [original] + [augment(original, np.random.default_rng([position, n])) for n in range(VARIANTS)]
    front = LogMel()
    return Example(
        clip,
        tuple(front(torch.from_numpy(w)[None], torch.tensor([len(w)]))[0][0].numpy() for w in waveforms),
    )


# Training


def draw_crop(example: Example, random: np.random.Generator, fill: NDArray[np.float32]) -> Tensor:
    """A stretch of a random variant, float32 (frames, 64), two bands and two gaps masked (SpecAugment)."""
    mels = example.variants[random.integers(len(example.variants))]
    length = min(int(random.integers(*CROP_FRAMES)), len(mels))
    start = random.integers(len(mels) - length + 1)
    mels = mels[start : start + length].copy()
    for _ in range(2):
        band, gap = random.integers(0, 10), random.integers(0, min(15, length // 3))
        lowest, first = random.integers(MELS - band), random.integers(length - gap)
        mels[:, lowest : lowest + band] = fill[lowest : lowest + band]
        mels[first : first + gap] = fill
    return torch.from_numpy(mels)


def pad(spectrograms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Batch (batch, frames, 64) and mask (batch, frames, 1)."""
    masks = [torch.ones(len(mels), 1) for mels in spectrograms]
    return (
        nn.utils.rnn.pad_sequence(list(spectrograms), batch_first=True),
        nn.utils.rnn.pad_sequence(masks, batch_first=True),
    )


def train(examples: Sequence[Example], seed: int) -> EmbeddedNetwork:
    """A network trained on the examples, classes drawn equally often; its weights are averaged over steps."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = EmbeddedNetwork(dropout=DROPOUT)
    every_frame = torch.from_numpy(np.concatenate([mels for example in examples for mels in example.variants]))
    network.mel_mean.copy_(every_frame.mean(dim=0))
    network.mel_deviation.copy_(every_frame.std(dim=0))
    fill = network.mel_mean.numpy().copy()

    labels = np.array([example.clip.label for example in examples])
    chances = 1.0 / np.bincount(labels)[labels]
    chances /= chances.sum()
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=STEPS, pct_start=0.15)
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)  # type: ignore[no-untyped-call]
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=decay)
    for _ in range(STEPS):
        drawn = random.choice(len(examples), BATCH, p=chances)
        log_mel, mask = pad([draw_crop(examples[i], random, fill) for i in drawn])
        logits = network(log_mel, mask).logits
        loss = functional.cross_entropy(logits, torch.from_numpy(labels[drawn]), label_smoothing=SMOOTHING)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
    return cast(EmbeddedNetwork, average.module).eval()


# Scores


def recalls(labels: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """Share of the clips of each class that occurs which were recognised; their mean is the UA."""
    true, right = np.asarray(labels), np.asarray(labels) == np.asarray(predicted)
    return {SPEC.labels[label]: float(right[true == label].mean()) for label in np.unique(true)}


def unweighted_accuracy(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """Mean of the recalls (UA, UAR)."""
    return float(np.mean(list(recalls(labels, predicted).values())))


def predict(network: EmbeddedNetwork, examples: Iterable[Example], variants: slice) -> tuple[list[int], list[int]]:
    """True and predicted labels of the chosen variants, one spectrogram at a time."""
    true, predicted = [], []
    with torch.inference_mode():
        for example in examples:
            for mels in example.variants[variants]:
                true.append(example.clip.label)
                predicted.append(int(network(*pad([torch.from_numpy(mels)])).logits.argmax()))
    return true, predicted


def leave_one_speaker_out(examples: Sequence[Example], workers: ProcessPoolExecutor) -> None:
    """Print the UA on each speaker of a model trained on the others, seed 0."""
    speakers = sorted({example.clip.speaker for example in examples})
    rest = [[example for example in examples if example.clip.speaker != speaker] for speaker in speakers]
    clean: tuple[list[int], list[int]] = ([], [])
    augmented: tuple[list[int], list[int]] = ([], [])
    for speaker, network in zip(speakers, workers.map(train, rest, [0] * len(rest)), strict=True):
        held_out = [example for example in examples if example.clip.speaker == speaker]
        here = predict(network, held_out, slice(0, 1))
        click.echo(f"dev, speaker {speaker} left out: UA {unweighted_accuracy(*here):.3f} on {len(here[0])} clips")
        for total, part in ((clean, here), (augmented, predict(network, held_out, slice(1, None)))):
            total[0].extend(part[0])
            total[1].extend(part[1])
    click.echo(f"dev, leave one speaker out: UA {unweighted_accuracy(*clean):.3f}")
    click.echo(f"dev, leave one speaker out, augmented clips: UA {unweighted_accuracy(*augmented):.3f}")


def score_once(directory: Path, clips: Sequence[Clip]) -> dict[str, float]:
    """Recalls on clips of saved weights, which are run as a user would run them."""
    model = load(SPEC, str(directory), device="cpu")
    outputs = model.forward([read_waveform(clip.path) for clip in clips], frames=False)
    return recalls([clip.label for clip in clips], outputs.logits.argmax(axis=1).tolist())


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder that gets the weights of seed 0.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(min=1), help="Models scored on `test`.")
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="Processes of one thread each.",
)
def main(data: Path, out: Path | None, seeds: int, workers: int) -> None:
    """Prepare, score the recipe, train, score once, keep seed 0."""
    began = time.monotonic()
    clips = read_clips(data)
    dev = [clip for clip in clips if clip.split == "dev"]
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        examples = list(pool.map(make_example, range(len(dev)), dev, chunksize=8))
        click.echo(f"dev: {len(dev)} clips, {VARIANTS} augmented variants of each")
        leave_one_speaker_out(examples, pool)
        test = [clip for clip in clips if clip.split == "test"]
        scores = []
        for seed, network in enumerate(pool.map(train, [examples] * seeds, range(seeds))):
            with tempfile.TemporaryDirectory() as scratch:
                directory = out if out is not None and seed == 0 else Path(scratch)
                directory.mkdir(parents=True, exist_ok=True)
                (directory / WEIGHTS).write_bytes(save(network.state_dict()))
                found = score_once(directory, test)
            scores.append(float(np.mean(list(found.values()))))
            each = ", ".join(f"{label} {recall:.2f}" for label, recall in found.items())
            click.echo(f"test, seed {seed}: UA {scores[-1]:.3f} on {len(test)} clips ({each})")
    spread = f", standard deviation {np.std(scores, ddof=1):.3f}" if seeds > 1 else ""
    click.echo(f"test, mean of {seeds} seeds: UA {np.mean(scores):.3f}{spread}")
    click.echo(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
