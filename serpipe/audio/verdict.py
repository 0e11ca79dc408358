"""What to think of a decoded recording: does it hold what its header and its manifest claim?"""

from __future__ import annotations

from serpipe.audio.decode import Outcome

VERDICTS = {
    "ok": "decoded to its end, as long as claimed",
    "damaged": "decoding stopped early, or parts inside could not be decoded",
    "shorter_than_header": "the header claims more than the file holds: an aborted download, or an estimate",
    "longer_than_header": "the file holds more than the header claims",
    "differs_from_manifest": "the manifest claims another duration",
    "silent": "every sample is zero",
    "in_part": "only what its given segments need was read; nothing is known of the rest",
}
"""Verdicts on recordings, with what each means."""


def agree(decoded_s: float, claimed_s: float) -> bool:
    """Whether two durations in seconds are the same but for codec padding: within 0.5 s or 2 %.

    Examples:
        >>> agree(14.0, 14.03), agree(6.7, 14.0)
        (True, False)
    """
    return abs(decoded_s - claimed_s) <= max(0.5, 0.02 * claimed_s)


def verdict(outcome: Outcome, *, header_s: float | None, claimed_s: float | None, peak: float | None) -> str:
    """The gravest thing that is true of a recording.

    Args:
        outcome: how decoding ended.
        header_s: seconds by the file's header; None where it states none.
        claimed_s: seconds by the manifest; None where it states none.
        peak: largest absolute sample; None where not all were read.

    Returns:
        A key of `VERDICTS`.

    Examples:
        >>> verdict(Outcome(samples=16_000), header_s=14.0, claimed_s=None, peak=0.3)
        'shorter_than_header'
    """
    decoded = outcome.duration_s
    if outcome.error or outcome.undecoded_s:
        return "damaged"
    # Behind the end of a recording that was read in part may lie what was not read either.
    held = decoded if peak is None else decoded + outcome.beyond_s
    if header_s is not None and not agree(held, header_s):
        return "shorter_than_header" if held < header_s else "longer_than_header"
    if peak == 0.0:
        return "silent"
    if claimed_s is not None and not agree(decoded, claimed_s):
        return "differs_from_manifest"
    return "in_part" if peak is None else "ok"
