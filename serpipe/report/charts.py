"""Charts as SVG: Vega-Lite draws, the page's style sheet colours, so that one drawing serves both themes and paper."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from serpipe.report.embedding_map import Map
from serpipe.report.palette import Colours

WIDTH, HEIGHT = 400, 230
"""Of a plot. A page shows it about as large, a phone a little smaller, so letters keep their size."""

_INK, _LINE, _ACCENT = "var(--soft)", "var(--line)", "var(--accent)"

_CONFIG: dict[str, Any] = {
    # The picture as a whole has a sentence and a table; thousands of spoken marks would hide them.
    "aria": False,
    "font": "system-ui, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": _INK,
        "titleColor": _INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": _LINE,
        "domainColor": _LINE,
        "tickColor": _LINE,
        "titlePadding": 8,
    },
    "text": {"color": "var(--ink)", "fontSize": 12},
}

_PLACES = {
    "x": {"field": "valence", "type": "quantitative", "scale": {"domain": [0, 1]}},
    "y": {"field": "arousal", "type": "quantitative", "scale": {"domain": [0, 1]}},
}


def histogram(name: str, bins: list[dict[str, Any]], title: str) -> Markup:
    """Bars from 0 to 1.

    Args:
        name: of the drawing, unique in the page.
        bins: `low`, `high`, `share`.
        title: of the horizontal axis.
    """
    encoding = {
        "x": {
            "field": "low",
            "bin": {"binned": True, "step": 1 / max(len(bins), 1)},
            "type": "quantitative",
            "title": title,
            "axis": {"values": [0, 0.2, 0.4, 0.6, 0.8, 1], "format": ".1f"},
            "scale": {"domain": [0, 1]},
        },
        "x2": {"field": "high"},
        "y": {
            "field": "share",
            "type": "quantitative",
            "stack": None,
            "title": "share of segments",
            "axis": {"format": "%", "tickCount": 5},
        },
    }
    mark = {"type": "bar", "fill": _ACCENT, "binSpacing": 1.5}
    return _drawn(name, {"mark": mark, "encoding": encoding, "data": {"values": bins}})


def over_time(name: str, rows: list[dict[str, Any]], colours: Colours, title: str) -> Markup:
    """Stacked shares, a column a moment.

    Args:
        name: of the drawing, unique in the page.
        rows: `moment`, `said`, `share`.
        colours: by class, in the order they are stacked.
        title: of the horizontal axis.
    """
    order = {said: place for place, said in enumerate(colours)}
    moments = sorted({row["moment"] for row in rows})
    every = -(-len(moments) // 6)
    values = [row | {"order": order[row["said"]]} for row in rows]
    encoding = {
        "x": {
            "field": "moment",
            "type": "ordinal",
            "title": title,
            "axis": {"labelAngle": 0, "values": moments[::every], "grid": False, "labelOverlap": "greedy"},
        },
        "y": {
            "field": "share",
            "type": "quantitative",
            "title": "share of segments",
            "axis": {"format": "%", "tickCount": 5},
            "stack": "zero",
            "scale": {"domain": [0, 1]},
        },
        "color": _scale(colours),
        "order": {"field": "order"},
    }
    return _drawn(
        name, {"mark": {"type": "bar", "clip": True}, "encoding": encoding, "data": {"values": values}}, wide=True
    )


def plane(
    name: str, cells: list[dict[str, Any]], classes: list[dict[str, Any]], step: float, colours: Colours
) -> Markup:
    """How many segments lie where between valence and arousal, and the middle of each class.

    Args:
        name: of the drawing, unique in the page.
        cells: `valence`, `arousal` (middles), `n`.
        classes: `said`, `valence`, `arousal`.
        step: width of a cell.
        colours: by class.
    """
    half = step / 2
    values = [
        {
            "x": cell["valence"] - half,
            "x2": cell["valence"] + half,
            "y": cell["arousal"] - half,
            "y2": cell["arousal"] + half,
            "n": cell["n"] ** 0.5,
        }
        for cell in cells
    ]
    heat = {
        "data": {"values": values},
        "mark": {"type": "rect", "fill": _ACCENT},
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "title": "valence: unpleasant → pleasant",
                "axis": {"grid": False, "tickCount": 5},
                "scale": {"domain": [0, 1]},
            },
            "x2": {"field": "x2"},
            "y": {
                "field": "y",
                "type": "quantitative",
                "title": "arousal: calm → excited",
                "axis": {"grid": False, "tickCount": 5},
                "scale": {"domain": [0, 1]},
            },
            "y2": {"field": "y2"},
            "fillOpacity": {"field": "n", "type": "quantitative", "scale": {"range": [0.04, 0.75]}, "legend": None},
        },
    }
    middles = {
        "data": {"values": classes},
        "encoding": _PLACES,
        "layer": [
            {
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 110,
                    "stroke": "var(--paper)",
                    "strokeWidth": 2,
                    "opacity": 1,
                },
                "encoding": {"fill": _scale(colours)},
            },
            # A halo keeps the names readable on the heat.
            {
                "mark": {
                    "type": "text",
                    "dx": 9,
                    "align": "left",
                    "fontWeight": 600,
                    "stroke": "var(--paper)",
                    "strokeWidth": 4,
                    "strokeJoin": "round",
                    "fill": "var(--paper)",
                },
                "encoding": {"text": {"field": "said"}},
            },
            {
                "mark": {"type": "text", "dx": 9, "align": "left", "fontWeight": 600},
                "encoding": {"text": {"field": "said"}},
            },
        ],
    }
    return _drawn(name, {"layer": [heat, middles] if classes else [heat]}, height=WIDTH - 60)


def scatter(name: str, drawn: Map, colours: Colours) -> Markup:
    """A point a segment, its colour and shape its class.

    Args:
        name: of the drawing, unique in the page.
        drawn: the map.
        colours: by class.
    """
    shapes = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
    axis = {"labels": False, "ticks": False, "grid": False, "domain": False}
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": "first component", "axis": axis},
        "y": {"field": "y", "type": "quantitative", "title": "second component", "axis": axis},
        "color": _scale(colours),
        "shape": {
            "field": "said",
            "type": "nominal",
            "scale": {"domain": list(colours), "range": [shapes[place % len(shapes)] for place in range(len(colours))]},
            "legend": None,
        },
    }
    values = [point | {"x": round(point["x"], 3), "y": round(point["y"], 3)} for point in drawn.points]
    mark = {"type": "point", "filled": True, "size": 26, "opacity": 0.65}
    return _drawn(name, {"mark": mark, "encoding": encoding, "data": {"values": values}}, height=WIDTH - 60)


def _scale(colours: Colours) -> dict[str, Any]:
    scale = {"domain": list(colours), "range": list(colours.values())}
    return {"field": "said", "type": "nominal", "scale": scale, "legend": None}


def _drawn(name: str, spec: dict[str, Any], *, height: int = HEIGHT, wide: bool = False) -> Markup:
    import vl_convert

    whole = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 2 * WIDTH if wide else WIDTH,
        "height": height,
        "padding": 4,
        "config": _CONFIG,
        **spec,
    }
    # What it draws is of a fixed vocabulary, with texts escaped, so it may enter the page as it is.
    svg = vl_convert.vegalite_to_svg(whole, allowed_base_urls=[])
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r' width="[\d.]+" height="[\d.]+"(?= viewBox)', ' aria-hidden="true" focusable="false"', svg, count=1)
    return Markup(re.sub(r"(\.\d\d\d)\d+", r"\1", svg))
