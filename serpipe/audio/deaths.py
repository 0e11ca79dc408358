"""How a decoder's process ended on a file, and what is said of the file once it happened twice.

Once proves nothing: a machine short of memory kills, a scheduler stops, a mount stalls. A file is to blame when a fresh
process, with nothing else to do, ended on it too, and neither was ended from outside.
"""

from __future__ import annotations

import os
import signal

from serpipe.errors import AudioError

FROM_OUTSIDE = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
"""Signals that people and schedulers send, and no codec."""

IDLE_SHARE = 0.01
"""Of the seconds for which it gave nothing. A process that computed for less of them was waiting, not decoding."""


class DeathError(Exception):
    """A decoder's process ended on a file.

    Attributes:
        verdict: what to say of the file if the next one ends so too; transient where something else was to blame.
    """

    def __init__(self, verdict: AudioError) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def died(status: int) -> DeathError:
    """A process that ended by itself, or was ended by a signal; the status as `subprocess` has it."""
    if status == -signal.SIGKILL:
        return DeathError(
            AudioError(
                "AUDIO_DECODER_KILLED",
                "the decoder was killed on this file, and so was a fresh one; decoding it probably takes more memory "
                "than the machine has",
            )
        )
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    if -status in FROM_OUTSIDE:
        return DeathError(
            AudioError(
                "AUDIO_DECODER_STOPPED",
                f"something stopped the decoder from outside ({how}); the next run tries the file again",
                transient=True,
            )
        )
    return DeathError(
        AudioError(
            "AUDIO_DECODER_CRASHED",
            f"the codec died of {how}, the second one to end on this file; it is damaged or hostile",
        )
    )


def silent(stall_s: float, *, waiting: bool) -> DeathError:
    """A process that gave nothing for so many seconds; whether it only waited for an ordinary file's bytes."""
    if waiting:
        return DeathError(
            AudioError(
                "RECORDING_UNREACHABLE",
                f"the decoder waited {stall_s:.0f} s for the file; look at the disk or network file system it lies on",
                transient=True,
            )
        )
    return DeathError(
        AudioError(
            "AUDIO_DECODER_HUNG",
            f"the codec gave nothing for {stall_s:.0f} s, the second one to end on this file; it is damaged or hostile",
        )
    )


def judged(first: DeathError, second: DeathError) -> AudioError:
    """What two deaths on one file say of it.

    Examples:
        >>> judged(died(-11), died(-6)).code, judged(died(-11), died(-15)).transient
        ('AUDIO_DECODER_CRASHED', True)
    """
    both = (first.verdict, second.verdict)
    for verdict in both:
        if verdict.transient:
            return verdict
    if sum(verdict.code == "AUDIO_DECODER_KILLED" for verdict in both) == 1:
        # That one may have been the machine's doing.
        return AudioError(
            "AUDIO_DECODER_STOPPED",
            f"two decoders ended on this file, in two ways ({both[0].code}, {both[1].code}); the next run tries it "
            "again",
            transient=True,
        )
    return second.verdict


def computed(pid: int) -> float:
    """Seconds of processor time that a process has had; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
