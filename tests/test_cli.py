"""The command line: examples in every help, sentences instead of tracebacks, exit codes a job can act on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from serpipe.cli import main
from serpipe.store import version
from serpipe.store.lease import Lease
from serpipe.store.storage import Storage
from serpipe.testing import write_speech


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group below a group, with its words."""
    for name, command in sorted(group.commands.items()):
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = dict(commands(main))


def example(*command: str) -> list[str]:
    result = run(*command, "--help")
    assert result.exit_code == 0
    _, _, text = result.output.partition("  Example:\n")
    program, *words = text.split("\n", 1)[0].split()
    assert program == "serpipe"
    return words


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_every_help_shows_an_example_of_this_command(command: tuple[str, ...]) -> None:
    words = example(*command)
    assert tuple(words[: len(command)]) == command
    assert words[0] in main.commands


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_example_can_be_parsed(command: tuple[str, ...]) -> None:
    """Every option and argument of the example exists; nothing is run."""
    arguments = example(*command)[len(command) :]
    COMMANDS[command].make_context(
        command[-1], arguments, parent=click.Context(main, help_option_names=main.context_settings["help_option_names"])
    )


def test_models_lists_labels_and_licence() -> None:
    result = run("models")
    assert result.exit_code == 0
    assert "embedded: anger, happiness, neutral, sadness" in result.output
    assert "ships with serpipe" in result.output
    assert "Apache-2.0" in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("status", "{0}/nowhere"), "STORE_NOT_FOUND"),
        (("failures", "{0}/nowhere"), "STORE_NOT_FOUND"),
        (("label", "{0}/nowhere", "{0}/store"), "MANIFEST_NOT_FOUND"),
        (("label", "{0}", "{0}/store", "--model", "embeded"), "MODEL_UNKNOWN"),
        (("label", "{0}", "{0}/store", "--model", "embedded", "--model", "embedded"), "MODEL_TWICE"),
        (("label", "{0}", "{0}/store", "--segment", "window:0/3"), "SEGMENTATION_"),
        (("label", "{0}", "gopher://store"), "STORE_UNSUPPORTED"),
        (("label", "{0}", "{0}/store", "--column", "uri"), "COLUMN_INVALID"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_two(tmp_path: Path, arguments: tuple[str, ...], code: str) -> None:
    write_speech(tmp_path / "a.wav", seconds=1.0)
    result = run(*(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"serpipe: {code}")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [("label",), ("label", "a", "b", "--channels", "three"), ("nothing",)])
def test_what_click_refuses_is_two_as_well(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_held_store_is_one(tmp_path: Path) -> None:
    write_speech(tmp_path / "a.wav", seconds=1.0)
    store = str(tmp_path / "store")
    version.check(Storage(store))
    with Lease(Storage(store), "run-of-somebody"):
        result = run("label", str(tmp_path), store)
    assert result.exit_code == 1
    assert result.stderr.startswith("serpipe: STORE_HELD: ")
    assert "run-of-somebody" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "archive"
    for seed in range(3):
        write_speech(folder / f"{seed}.wav", seconds=4.0, seed=seed)
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("not audio")
    return folder


@pytest.fixture(scope="module")
def first(archive: Path, ray_session: None) -> Result:
    return run("label", str(archive), str(archive.parent / "store"), "--segment", "window:2/2", "--max-failed", "0.2")


def test_label_says_what_it_did_and_exits_three_above_the_share(archive: Path, first: Result) -> None:
    """One recording in four is broken, one in five is allowed."""
    assert first.exit_code == 3
    assert "4 recordings, 0.00 h of audio, 6 segments, 6 predictions in " in first.stdout
    assert (
        "3 recordings are labelled whole; 1 recordings (AUDIO_UNDECODABLE 1) and 0 manifest rows are in quarantine: "
        f"`serpipe failures {archive.parent}/store` says why and what to do\n"
    ) in first.stdout
    assert "not settled" not in first.stdout
    assert "1 files of the folder were left out: their endings are not audio" in first.stdout
    assert f"tables: {archive.parent}/store" in first.stdout


def test_nothing_new_is_success(archive: Path, first: Result) -> None:
    again = run("label", str(archive), str(archive.parent / "store"), "--segment", "window:2/2", "--max-failed", "0.2")
    assert again.exit_code == 0
    assert "nothing new: 4 recordings are labelled already in " in again.stdout


def test_what_would_be_other_labels_today_is_told_and_left(archive: Path, first: Result) -> None:
    store = str(archive.parent / "store")
    result = run("label", str(archive), store, "--segment", "window:3/3", "--channels", "first")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1:] == [
        "embedded: 4 recordings keep the labels of segmentation window:2/2 (today: window:3/3) and channels mix "
        f"(today: first); --relabel labels them again, `serpipe gc {store}` then drops the old labels",
        f"nothing new: 4 recordings are labelled already in {store}",
    ]


@pytest.mark.usefixtures("ray_session")
def test_as_many_failures_as_are_allowed_are_success(archive: Path) -> None:
    store = str(archive.parent / "lenient")
    result = run("label", str(archive), store, "--segment", "whole", "--max-failed", "0.25", "--no-speech-share")
    assert result.exit_code == 0, result.output


def test_status_and_failures_of_a_real_store(archive: Path, first: Result) -> None:
    store = str(archive.parent / "store")
    lines = run("status", store).stdout.splitlines()
    assert lines[0] == "3 recordings, 0.00 h of audio"
    assert lines[1].startswith("model embedded fp ")
    assert "6 segments of 3 recordings (0.00 h) labelled, 0 recordings (0.00 h) left, 1 recordings and 0" in lines[1]
    assert any(": finished, started 20" in line and line.endswith(str(archive)) for line in lines)
    lines = run("failures", store).stdout.splitlines()
    assert lines[0] == (
        f"AUDIO_UNDECODABLE (decode): 1 of 1 recordings; `serpipe retry {store} --code AUDIO_UNDECODABLE` makes them "
        "work for the next run"
    )
    assert lines[1] == f"by feed: {archive} 1"
    assert lines[2].startswith(f"  AUDIO_UNDECODABLE {archive}/broken.wav: ")
    for nothing in (("--code", "WORK_LOST"), ("--stage", "model"), ("--feed", str(archive.parent / "other"))):
        assert run("failures", store, *nothing).stdout == "nothing fails\n"
    assert run("failures", store, "--stage", "gut").exit_code == 2


def test_status_and_failures_for_programs(archive: Path, first: Result) -> None:
    store = str(archive.parent / "store")
    status = json.loads(run("status", store, "--json").stdout)
    assert (status["recordings"], status["running"]) == (3, [])
    assert (status["models"][0]["segments"], status["models"][0]["failed_recordings"]) == (6, 1)
    assert [record["state"] for record in status["runs"]] == ["finished"]
    failing = json.loads(run("failures", store, "--json", "--feed", str(archive)).stdout)
    assert (failing["groups"][0]["code"], failing["feeds"], failing["more"]) == (
        "AUDIO_UNDECODABLE",
        {str(archive): 1},
        0,
    )
    assert failing["examples"][0]["uri"] == f"{archive}/broken.wav"
