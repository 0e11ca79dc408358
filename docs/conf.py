"""Sphinx: `make docs`, or `sphinx-build -W docs dist/docs`."""

from __future__ import annotations

import serpipe

project = "serpipe"
version = release = serpipe.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "serpipe"
html_static_path: list[str] = []

# Docstrings mark code by single backticks.
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
myst_heading_anchors = 3
# Transcripts of a terminal are no language that could be wrong.
highlight_language = "none"
