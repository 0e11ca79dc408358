"""A store keeps one passport a model, though several shards look at the model at the same time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from serpipe.engine import label, request
from serpipe.models.passport import Passport, issue
from serpipe.models.registry import ModelRef, resolve
from serpipe.store.storage import Storage


@pytest.mark.parametrize("exclusive", [True, False])
def test_what_another_shard_has_put_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool
) -> None:
    storage = Storage(str(tmp_path))
    storage.__dict__["exclusive"] = exclusive
    model = resolve("embedded")
    first = replace(issue(model), checks={"change": 0.5})

    def slowly(asked: ModelRef) -> Passport:
        storage.put(request.passport(asked), first.text().encode())
        return issue(asked)

    monkeypatch.setattr(label, "issue", slowly)
    assert label._passport(storage, model) == first.sha256()
    assert hashlib.sha256(storage.get(request.passport(model))).hexdigest() == first.sha256()
