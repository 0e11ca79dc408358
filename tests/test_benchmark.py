"""Figures held against those that are checked in: what is worse is told, what may differ is not; pages show them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from click.testing import CliRunner
from numpy.typing import NDArray

from serpipe import read_manifest
from serpipe.engine.spread import LARGE_PACK_S
from serpipe.manifest.claim import claim_seconds
from serpipe.plan import MOST_DECODERS, Plan, cut, share_s
from serpipe.testing import write_speech
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "jobs"))

import benchmark
from benchmarks import bare, decode, material, reference, resources, voice
from benchmarks.figures import Figure, figure, take_turns

HERE = "2 cores of a processor"


def ratio(name: str, value: float, *, unit: str = "audio s/s") -> Figure:
    return Figure(name=name, ratio=value, median=300.0, spread=0.1, unit=unit)


WAS = reference.Reference(
    machine=HERE,
    date="2026-01-31",
    quick=True,
    parts={
        "decode": [ratio("decode/bare", 0.9), ratio("vad-x-realtime", 600.0, unit="x real time")],
        "resources": [ratio("start-up/ray", 4.0, unit="s"), ratio("memory/model", 500.0, unit="MB")],
    },
)


def among(**values: float) -> list[Figure]:
    names = {"bare": "decode/bare", "vad": "vad-x-realtime", "ray": "start-up/ray", "model": "memory/model"}
    return [
        replace(figure, ratio=values.get(key, figure.ratio))
        for key, name in names.items()
        for figure in [WAS.figures[name]]
    ]


def test_a_tenth_less_is_no_regression() -> None:
    assert reference.regressions(among(bare=0.811, vad=541.0), WAS, machine=HERE) == []


def test_more_than_a_tenth_less_is_told_with_both_figures() -> None:
    assert reference.regressions(among(bare=0.6), WAS, machine=HERE) == [
        "decode/bare is 0.6 and was 0.9 on 2026-01-31: 33% less, more than 10%"
    ]


def test_what_is_no_ratio_is_held_on_the_same_machine_alone() -> None:
    assert len(reference.regressions(among(vad=300.0), WAS, machine=HERE)) == 1
    assert reference.regressions(among(vad=300.0), WAS, machine="another") == []
    assert len(reference.regressions(among(bare=0.5), WAS, machine="another")) == 1


def test_seconds_and_megabytes_are_not_held() -> None:
    assert reference.regressions(among(ray=1.0, model=1.0), WAS, machine=HERE) == []


def test_a_figure_that_is_gone_is_worse() -> None:
    assert reference.regressions(among()[1:], WAS, machine=HERE) == ["decode/bare was 0.9 and is not measured any more"]


def test_figures_come_back_from_their_text() -> None:
    assert reference.of(WAS.text()) == WAS


def test_a_page_takes_the_table_and_nothing_else_of_it_changes() -> None:
    page = f"before\n{reference.BEGIN}\nold\n{reference.END}\nafter\n"
    table = reference.table(WAS, names=["decode/bare"])
    assert reference.put(page, table) == f"before\n{reference.BEGIN}\n{table}\n{reference.END}\nafter\n"
    assert table.splitlines()[-1] == (
        "| decode/bare | 0.9 | ≥ 0.9 | 10% | 300 audio s/s | `python jobs/benchmark.py --quick --part decode` |"
    )
    short = Figure(name="peer/transformers:float32", ratio=1.4999, median=5.0, spread=None, unit="audio s/s")
    assert reference.cells(short)[1:3] == ["1.5", "≥ 1.5, not reached"]


@pytest.mark.parametrize(("page", "names"), [("README.md", [*reference.SHOWN]), ("docs/performance.md", None)])
def test_pages_show_what_is_checked_in(page: str, names: list[str] | None) -> None:
    text = (ROOT / page).read_text()
    held = reference.of((ROOT / "infra/benchmark.json").read_text())
    assert reference.put(text, reference.table(held, names=names)) == text


def test_the_command_compares_two_files(tmp_path: Path) -> None:
    """Exit 0 with the figures that are checked in, 1 with worse ones; the list is what is written."""
    held = reference.of((ROOT / "infra/benchmark.json").read_text())
    same, worse, out = tmp_path / "same.json", tmp_path / "worse.json", tmp_path / "out.json"
    rows = [asdict(figure) for figure in held.figures.values()]
    same.write_text(json.dumps(rows))
    worse.write_text(json.dumps([row | {"ratio": row["ratio"] * 0.8} for row in rows]))
    assert check(same, "--json", str(out)).returncode == 0
    assert json.loads(out.read_text()) == rows
    refused = check(worse)
    assert refused.returncode == 1
    assert "20% less, more than 10%" in refused.stderr


@pytest.mark.parametrize(("second", "told"), [(0.89, 0), (0.6, 1)])
def test_what_is_worse_is_worse_each_time(second: float, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part in doubt is measured again, and no other."""
    asked: list[tuple[str, ...]] = []

    def again(parts: tuple[str, ...], *, quick: bool) -> dict[str, list[Figure]]:
        asked.append((*parts, str(quick)))
        return {"decode": among(bare=second)[:2]}

    monkeypatch.setattr(benchmark, "measured", again)
    parts = ("decode", "resources")
    assert len(benchmark.worse_each_time(among(bare=0.5), WAS, parts, quick=True, again=True)) == told
    assert asked == [("decode", "True")] * (2 if told else 1)
    assert len(benchmark.worse_each_time(among(bare=0.5), WAS, parts, quick=True, again=False)) == 1
    assert benchmark.worse_each_time(among(), WAS, parts, quick=True, again=True) == []
    assert len(asked) == (2 if told else 1)


def test_a_figure_that_is_as_it_was_the_third_time_is_not_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    later = iter([among(bare=0.5)[:2], among()[:2]])
    monkeypatch.setattr(benchmark, "measured", lambda *_, **__: {"decode": next(later)})
    assert benchmark.worse_each_time(among(bare=0.5), WAS, ("decode",), quick=True, again=True) == []
    assert next(later, None) is None


def test_another_figure_of_the_part_may_be_below_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measured", lambda *_, **__: {"decode": among(bare=0.5)[:2]})
    monkeypatch.setattr(reference, "machine", lambda: HERE)
    assert benchmark.worse_each_time(among(vad=100.0), WAS, ("decode",), quick=True, again=True) == []
    assert len(benchmark.worse_each_time(among(bare=0.6), WAS, ("decode",), quick=True, again=True)) == 1


@pytest.mark.parametrize("more", [["--part", "decode"], ["--figures", "infra/benchmark.json"]])
def test_what_is_kept_is_one_whole_measurement(more: list[str]) -> None:
    """Or old figures would be given today's date."""
    command = [sys.executable, str(ROOT / "jobs/benchmark.py"), "--save", *more]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    assert done.returncode == 2
    assert "leave --part and --figures out" in done.stderr


def check(figures: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs/benchmark.py"), "--figures", str(figures), "--check", *more]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


REQUIRED = (
    "decode/bare",
    "decode-isolated/bare",
    "vad-x-realtime",
    "adapter/model",
    "end-to-end/parts:hubert-large",
    "end-to-end/parts:embedded",
    "peer/transformers",
    "peer/funasr",
    "peer/ray-data",
)
"""Names that others read `--json` by."""


@pytest.mark.parametrize("name", REQUIRED)
def test_every_figure_that_others_read_is_wanted_and_checked_in(name: str) -> None:
    held = reference.of((ROOT / "infra/benchmark.json").read_text())
    assert reference.WANTED[name] > 0
    found = held.figures[name]
    assert found.ratio > 0 < found.median
    assert set(asdict(found)) == {"name", "ratio", "median", "spread", "unit"}


def test_arms_take_turns_and_each_round_gives_a_ratio() -> None:
    order: list[str] = []

    def arm(name: str, speeds: list[float]) -> float:
        order.append(name)
        return speeds.pop(0)

    ours, theirs = [3.0, 4.0, 8.0], [2.0, 2.0, 2.0]
    speeds = take_turns({"ours": lambda: arm("ours", ours), "theirs": lambda: arm("theirs", theirs)}, rounds=3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert figure("ours/theirs", speeds["ours"], speeds["theirs"]) == Figure(
        name="ours/theirs", ratio=2.0, median=4.0, spread=1.25, unit="audio s/s"
    )


def test_one_round_has_no_spread() -> None:
    """Or a table would show as steady what was measured once."""
    once = figure("a/b", [3.0], [2.0])
    assert once.spread is None
    assert reference.cells(once)[3] == ""
    assert reference.cells(figure("a/b", [3.0, 3.0], [2.0, 2.0]))[3] == "0%"


def test_what_a_thousand_hours_cost_is_a_figure_and_is_not_held() -> None:
    rows = [ratio("decode/bare", 0.9), ratio("end-to-end/parts:embedded", 0.9)]
    (cost,) = benchmark.costs(rows, 0.08)
    assert (cost.name, cost.ratio, cost.spread) == ("cost/1000-hours:embedded", pytest.approx(1000 / 300 * 0.08), None)
    was = replace(WAS, parts={"pipeline:embedded": [cost]})
    assert reference.regressions([], was, machine=HERE) == []


def test_memory_of_a_process_that_nobody_saw_is_not_nothing() -> None:
    """Where Ray gives its workers other names, 0 MB would be told."""
    assert resources.memory("memory/model", {"memory/model": 3 << 20}, "memory/model").ratio == 3.0
    with pytest.raises(RuntimeError, match="'_Predict' in its command line was seen"):
        resources.memory("memory/model", {"memory/driver": 3 << 20}, "memory/model")


def test_every_format_is_decoded_against_its_bare_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part `decode` at its smallest: each figure that the table promises, and none that is not of this world."""
    monkeypatch.setattr(decode, "LEAST_S", 0.01)
    found = {one.name: one for one in decode.measured(seconds=2.0, rounds=1)}
    wanted = {f"{title}/bare" for title in ("decode", "decode-isolated", "decode-stage")}
    wanted |= {f"{title}:{name}" for title in wanted for name in decode.FORMATS}
    assert set(found) == wanted | {"decode/bare-pyav:opus", "vad-x-realtime"}
    assert all(one.ratio > 0 and one.median > 10 for one in found.values())
    assert found["decode/bare"].ratio < 3


@pytest.mark.slow
def test_the_whole_and_what_it_takes_are_measured() -> None:
    """The parts `pipeline` and `resources` at their smallest."""
    code = (
        "import sys, tempfile; sys.path[:0] = sys.argv[1:]\n"
        "from dataclasses import asdict, replace\n"
        "from pathlib import Path\n"
        "import json\n"
        "from benchmarks import material, pipeline, resources\n"
        "from serpipe.engine.cluster import joined\n"
        "work = replace(pipeline.work_of('embedded', quick=True), seconds=600.0)\n"
        "with joined(None), tempfile.TemporaryDirectory() as place:\n"
        "    found = pipeline.figures_of(work, Path(place), rounds=1, both_dtypes=False)\n"
        "print(json.dumps([asdict(one) for one in [*found, *resources.measured(files=1)]]))\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "jobs"), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout.splitlines()[-1])}
    parts = {"end-to-end/parts:embedded", "end-to-end/parts-libopus:embedded"}
    wanted = parts | {"start-up:embedded", "memory/model:embedded"}
    assert set(found) == wanted | {
        *resources.ROLES,
        "start-up/help",
        "start-up/import",
        "start-up/ray",
        "start-up/one-file",
    }
    assert all(one["ratio"] > 0 for name, one in found.items() if not name.startswith("start-up:"))
    assert all(5 < one["ratio"] < 5_000 for name, one in found.items() if name.startswith("memory/"))
    assert all(one["spread"] is None for one in found.values())


def test_utterances_are_together_as_long_as_was_asked() -> None:
    drawn = material.lengths(600.0, seed=3)
    assert sum(drawn) == pytest.approx(600.0)
    assert max(drawn) <= material.LONGEST_S


def test_even_utterances_fill_packs_of_like_lengths(tmp_path: Path) -> None:
    material.write_even_clips(tmp_path, 2 * material.SET_S)
    names = sorted(tmp_path.iterdir())
    seconds = [len(soundfile.read(name)[0]) / 16_000 for name in names]
    assert material.PACK_S == LARGE_PACK_S
    assert sum(seconds) == 2 * material.SET_S
    assert seconds != sorted(seconds)
    ends = set(np.cumsum(sorted(seconds)))
    assert ends.issuperset(np.arange(material.PACK_S, sum(seconds), material.PACK_S))


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("times", [1, 4])
def test_read_tasks_of_even_utterances_are_whole_packs(
    cores: int, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one core would end with a part of a pack while the others wait, which a run of seconds would not outweigh."""
    monkeypatch.setattr(voice, "heard", Silence())
    seconds = times * material.SET_S * max(1, cores // 2)
    assert material.write_even_clips(tmp_path / "archive", seconds) == seconds
    manifest = str(material.write_manifest(tmp_path / "archive"))
    work = -np.sort(-claim_seconds(read_manifest(manifest)))
    groups = cut(work, share_s(work.sum(), MOST_DECODERS))
    seconds = np.add.reduceat(work, np.cumsum([0, *groups[:-1]]))
    tasks = Plan(groups=groups, work_s=seconds.tolist(), queries={}, left=len(work), done=0).tasks(max(1, cores // 8))
    assert not np.any(np.add.reduceat(seconds, [task.start for task in tasks]) % material.PACK_S)


class Silence(voice.Voice):
    def speech(self, seconds: float, *, rate: int, seed: int) -> NDArray[np.float32]:
        return np.zeros(round(seconds * rate), np.float32)


def test_pieces_of_a_recording_are_heard_instead_of_made_speech(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Path(write_speech(tmp_path / "episode.wav", seconds=60.0, sample_rate=24_000, channels=2))
    monkeypatch.setattr(voice, "heard", None)
    monkeypatch.setattr(material, "kept", lambda: tmp_path / "kept")
    voice.listen_to(recording)
    whole, _ = soundfile.read(recording, dtype="float32")
    np.testing.assert_array_equal(voice.heard.speech(4.0, rate=24_000, seed=1), whole[37 * 24_000 : 41 * 24_000, 0])
    resampled = soxr.resample(whole[: 4 * 24_000, 0], 24_000, 16_000)
    np.testing.assert_array_equal(voice.heard.speech(4.0, rate=16_000, seed=0), resampled)
    assert len(voice.heard.speech(90.0, rate=16_000, seed=3)) == 90 * 16_000
    podcast = material.podcast(5.0)
    assert soundfile.info(podcast).samplerate == 24_000
    assert podcast == material.podcast(5.0) != tmp_path / "kept" / "podcast-made-5.opus"


def test_a_podcast_of_a_recording_has_a_rate_that_opus_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "heard", None)
    monkeypatch.setattr(material, "kept", lambda: tmp_path / "kept")
    for rate, known in ((44_100, 48_000), (22_050, 24_000), (96_000, 48_000)):
        voice.listen_to(Path(write_speech(tmp_path / f"{rate}.wav", seconds=8.0, sample_rate=rate)))
        assert soundfile.info(material.podcast(5.0)).samplerate == known
        assert soundfile.info(material.podcast(5.0)).duration == pytest.approx(5.0, abs=0.02)


def test_a_recording_of_ones_own_is_no_reference(tmp_path: Path) -> None:
    recording = write_speech(tmp_path / "episode.wav", seconds=1.0)
    for other in ("--check", "--save"):
        done = CliRunner().invoke(benchmark.main, ["--audio", recording, other])
        assert done.exit_code == 2, done.output
        assert "--audio measures on a recording of yours" in done.output


def test_only_as_much_audio_is_held_against_the_reference() -> None:
    assert reference.of((ROOT / "infra/benchmark.json").read_text()).quick
    done = CliRunner().invoke(benchmark.main, ["--check", "--part", "resources"])
    assert done.exit_code == 2, done.output
    assert "benchmark.json was taken with --quick" in done.output


def test_an_archive_says_how_long_it_is(tmp_path: Path) -> None:
    told = material.write_even_clips(tmp_path, 21.0)
    assert told > 21.0
    assert told == sum(soundfile.info(name).duration for name in tmp_path.iterdir())


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_bare_loops_share_files_by_their_audio(processes: int, tmp_path: Path) -> None:
    total = material.write_even_clips(tmp_path, 3 * material.SET_S)
    files = [str(name) for name in tmp_path.iterdir()]
    shares = bare.dealt(files, processes)
    assert sorted(path for share in shares for path in share) == sorted(files)
    lengths = [sum(soundfile.info(path).duration for path in share) for share in shares]
    assert max(lengths) - min(lengths) <= min(material.EVEN_S)
    assert sum(lengths) == total


def test_bare_codecs_decode_alike(tmp_path: Path) -> None:
    path = write_speech(tmp_path / "a.opus", seconds=3.0, sample_rate=48_000)
    samples = [bare.decoded(path, codec) for codec in ("soundfile", "libopus")]
    assert len(samples[0]) == 3 * bare.SAMPLE_RATE
    np.testing.assert_allclose(samples[0], samples[1], rtol=0, atol=1e-6)


def test_the_bare_loop_labels_every_sample_once_in_rows_of_equal_length(tmp_path: Path) -> None:
    files = [write_speech(tmp_path / f"{i}.wav", seconds=length, seed=i) for i, length in enumerate((7.0, 21.5, 3.2))]
    shapes: list[tuple[int, ...]] = []
    seconds = bare.label(lambda rows: shapes.append(rows.shape), files, 10.0, "soundfile")
    assert seconds == pytest.approx(31.7)
    assert sum(rows * samples for rows, samples in shapes) == round(31.7 * 16_000)
    assert shapes[:2] == [(2, 80_000), (2, 80_000)]
