"""The page a person looks at before training on the labels of a store: one HTML file that needs no network."""

from __future__ import annotations

from serpipe.report.build import build

__all__ = ["build"]
