"""From figures to a page: templates, numbers for people, and a policy that lets the page ask for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import serpipe
from serpipe.redact import redact
from serpipe.report import palette


def render(content: dict[str, Any]) -> str:
    """The page as one text.

    Args:
        content: as `serpipe.report.build` gathers it; every text of it is escaped.
    """
    here = resources.files("serpipe.report") / "templates"
    script = (here / "report.js").read_text("utf-8")
    style = (here / "report.css").read_text("utf-8").replace("/* emotions */", palette.rules())
    heard = content.get("clips")
    return (
        _environment()
        .get_template("report.html")
        .render(
            **{"episode": None, "classes": [], "feeds": [], "groups": {}, "map": None, "time": None, "plane": None}
            | content,
            version=serpipe.__version__,
            script=Markup(script),
            style=Markup(style),
            policy=_policy(script),
            # Base64 and hexadecimal names alone: nothing in it can end the element.
            audio=Markup(json.dumps(heard.audio if heard else {})),
        )
    )


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; media-src data:; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("serpipe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda n: f"{n:,}",
        "share": share,
        "hours": hours,
        "clock": clock,
        "said": lambda text: redact(str(text)),
        "tail": lambda uri: tail(redact(str(uri))),
    }
    return environment


def share(value: float | None) -> str:
    """A share for people.

    Examples:
        >>> share(0.1234), share(0.0004), share(0.0), share(None)
        ('12 %', '< 0.1 %', '0 %', '–')
    """
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "< 0.1 %"
    return f"{value:.1%}".replace("%", " %") if 0 < value < 0.1 else f"{value:.0%}".replace("%", " %")


def hours(value: float) -> str:
    """Hours for people.

    Examples:
        >>> hours(0.007), hours(0.05), hours(3.14159), hours(12345.6)
        ('25 s', '3 min', '3.1 h', '12,346 h')
    """
    if value < 1 / 60:
        return f"{value * 3600:.0f} s"
    if value < 1:
        return f"{value * 60:.0f} min"
    return f"{value:,.1f} h" if value < 100 else f"{value:,.0f} h"


def clock(seconds: float) -> str:
    """A place in a recording.

    Examples:
        >>> clock(3.2), clock(3725)
        ('0:03', '1:02:05')
    """
    whole = int(seconds)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"


def tail(uri: str) -> str:
    """The last two steps of a path, which is what tells recordings apart.

    Examples:
        >>> tail("s3://archive/2030/feed/a.mp3")
        '…/feed/a.mp3'
    """
    steps = uri.rstrip("/").split("/")
    return uri if len(steps) < 4 else "…/" + os.path.join(*steps[-2:])
