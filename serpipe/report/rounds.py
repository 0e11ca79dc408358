"""The generations of a store as a report shows them: what each stage dropped, what calibration did, what gates said."""

from __future__ import annotations

from typing import Any

from serpipe.pseudolabel import generation, student
from serpipe.store.storage import Storage

STAGES = {
    "teachers": "not every teacher labelled it",
    "gold": "it is gold, or sounds or speaks like it",
    "length": "too short or too long",
    "snr": "too noisy",
    "clipping": "clipped",
    "speech": "too little speech",
    "abstain": "outside the classes",
    "agree": "the teachers disagree",
    "margin": "two classes are equally likely",
    "dimensions": "arousal or valence contradict it",
    "text": "the words contradict it",
    "overlap": "a surer one shares its audio",
    "threshold": "below its class's threshold",
    "duplicate": "the same audio again",
    "speaker": "its speaker has enough",
    "feed": "its feed has enough",
    "balance": "its class has enough",
    "budget": "beyond the budget",
}
"""Why a stage drops a segment."""


def read(storage: Storage, number: int | None) -> dict[str, Any] | None:
    """A generation's record, with what the gates said of each of its students under `promotions`.

    Args:
        storage: the store.
        number: of the generation; the newest where left out.

    Returns:
        None where there is no generation and none was asked for.

    Raises:
        UsageError: `GENERATION_UNKNOWN`.
    """
    if number is None:
        number = max(generation.numbers(storage), default=None)
        if number is None:
            return None
    record = generation.load(storage, number)
    considered = max(record["considered"]["segments"], 1)
    funnel = [
        step | {"why": STAGES.get(step["stage"], ""), "share": step["kept"] / considered}
        for step in record["funnel"]
        if step["dropped"]
    ]
    return record | {"funnel": funnel, "promotions": student.promotions(storage, number)}
