"""Define a figure: one Vega-Lite chart, drawn in the page and as files from the same layers.

In the page it is as wide as its place, and has a legend of buttons beside it. A file has its title and its legend in
the picture.

Charts are written as the mappings that Vega-Lite reads: the same one for the page, which vl-convert's scripts draw, and
for the files, which vl-convert draws. A test checks them all against Vega-Lite's schema.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.files.digests import json_digest
from mxsweep.report.figures.draw import draw_charts
from mxsweep.report.figures.look import FILE_INK, INK, Look, config

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name: nothing is fetched from there
Spec = dict[str, Any]
WIDTH, HEIGHT = 460, 300  # pixels, of the axes in a file
TITLE_CHARACTERS = 90
LEGEND_ROW = 19  # pixels
MOST_BYTES = 200  # of a file's name, which has 255 at most with what is put around it
CHARACTER = 6.6  # pixels, at most, of a letter in the legend


@dataclass(frozen=True)
class LegendEntry:
    """Describe a line of the legend: a look, or the `dash` of a rule."""

    name: str
    look: Look | None = None
    dash: tuple[float, ...] | None = None
    note: str = ""  # said after the name
    joined: bool = True  # by a line


@dataclass(frozen=True)
class Figure:
    """Describe one figure: what is drawn and said.

    `build(ink)` makes the chart, with what is no data drawn in that colour: layers (or a mark), their `datasets` and
    `params`. `columns` and `cells` are the same data for who cannot see them or wants the numbers.
    """

    stem: str  # of the file names, and the page's id
    title: str
    subtitle: str
    caption: str
    build: Callable[[str], Spec]
    entries: Sequence[LegendEntry] = ()
    columns: Sequence[str] = ()
    cells: Sequence[Sequence[str]] = ()
    about: str = ""  # which quantity, to set figures of one beside each other
    height: int = HEIGHT
    in_page: bool = True
    wide: bool = False  # in the page
    notes: Sequence[str] = ()  # listed below it
    files: list[Path] = field(default_factory=list)
    unwritten: dict[str, str] = field(default_factory=dict)  # why files are missing, by their name without the end

    def page_spec(self) -> Spec:
        """Return the chart for the page: without title and legend, and as wide as its place."""
        return {
            "$schema": SCHEMA,
            **self.build(INK),
            "width": "container",
            "height": self.height,
            "config": config(INK),
            "autosize": {"type": "fit-x", "contains": "padding"},
        }

    def file_spec(self) -> Spec:
        """Return the chart for a file: with title and legend."""
        chart = {"width": WIDTH, "height": max(self.height, LEGEND_ROW * len(self.entries)), **self.build(FILE_INK)}
        top = {
            "$schema": SCHEMA,
            "config": config(FILE_INK),
            "title": {"text": self.title, "subtitle": textwrap.wrap(self.subtitle, TITLE_CHARACTERS)},
        }
        if not self.entries:
            return top | chart
        # What names data and parameters stands at the top.
        for name in ("datasets", "params"):
            top[name] = chart.pop(name)
        return top | {"hconcat": [chart, _legend(self.entries)], "spacing": 10}


def write_chart(spec: Spec, folder: Path, stem: str) -> list[Path]:
    """Draw a chart into `folder` as PNG, SVG and PDF, and return the files.

    Raises:
        OSError: it cannot be written, or not be drawn.
    """
    name = file_name(stem)
    drawn = draw_charts([(name, spec)], folder)
    for why in (*drawn.unwritten.values(), *drawn.undrawn.values()):
        raise OSError(why)
    return drawn.files[name]


def file_name(text: str) -> str:
    """Return a text as part of a file's name: itself, where it can be one; else what can be, and a digest of it.

    It comes of a record, so that it may be a path that leads elsewhere, a line, or too long for a name.
    """
    kept = "".join(c if c.isalnum() or c in "._-,+=" else "-" for c in text)
    if kept == text and not text.startswith(".") and len(text.encode()) <= MOST_BYTES:
        return text
    return f"{kept[: MOST_BYTES // 4].lstrip('.')}-{json_digest(text)[:8]}"


def channel(field_name: str, kind: str = "nominal", **more: Any) -> Spec:
    """Return an encoding of a field; `kind` is nominal or quantitative."""
    return {"field": field_name, "type": kind, **more}


def tooltip(titles: dict[str, str]) -> list[Spec]:
    """Return an encoding that shows these fields under these titles."""
    return [channel(name, title=title) for name, title in titles.items()]


def finite(value: float | None) -> float | None:
    """Return a value that can be drawn; None otherwise."""
    return value if value is not None and math.isfinite(value) else None


def by_series(names: Sequence[str], values: Sequence[Any]) -> Spec:
    """Return an encoding of the field series: a value for each name."""
    return channel("series", scale={"domain": list(names), "range": list(values)}, legend=None)


def points(x: Spec, y: Spec, names: Sequence[str], looks: Sequence[Look], tips: dict[str, str]) -> Spec:
    """Return the layer of markers. A look's numbers are fields: scales from names to numbers would interpolate."""
    colours = by_series(names, [one.colour for one in looks])
    return {
        "mark": {"type": "point", "opacity": 1, "strokeWidth": 1.6},
        "encoding": {
            "x": x,
            "y": y,
            "stroke": colours,
            "fill": colours,
            "fillOpacity": channel("filled", "quantitative", scale=None),
            "shape": by_series(names, [one.shape for one in looks]),
            "size": channel("size", "quantitative", scale=None),
            "tooltip": tooltip(tips),
        },
    }


def error_bars(x: Spec, y: Spec, names: Sequence[str], looks: Sequence[Look]) -> Spec:
    """Return the layer of error bars, from the field low to the field high; `y` is the encoding of the values."""
    return {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "opacity": 0.8, "strokeWidth": 1.5},
        "encoding": {
            "x": x,
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "color": by_series(names, [one.colour for one in looks]),
        },
    }


def numbers_of(one: Look) -> dict[str, float]:
    """Return the numbers of a look, as fields of a datum."""
    return {"size": one.size**2, "width": one.width, "filled": float(one.filled)}


HIDDEN = [{"name": "hidden", "value": []}]  # the series that the page's legend has switched off
SHOWN = [{"filter": "indexof(hidden, datum.series) < 0"}]


def _legend(entries: Sequence[LegendEntry]) -> Spec:
    """Draw the legend of a file: Vega's own shows a line's dash and its marker in separate legends."""
    y: Spec = {"axis": None, "scale": {"domain": [-0.5, len(entries) - 0.5], "reverse": True, "nice": False}}
    x: Spec = {"axis": None, "scale": {"domain": [0, 1], "range": [0, 34], "nice": False}}
    marks: list[Spec] = []
    for row, entry in enumerate(entries):
        at = {"datum": row, "type": "quantitative", **y}
        if entry.joined:
            line: Spec = {"type": "rule", "strokeDash": list(entry.look.dash if entry.look else entry.dash or (1, 0))}
            line["color"] = entry.look.colour if entry.look else FILE_INK
            line["strokeWidth"] = entry.look.width if entry.look else 1.3
            ends = {"x": {"datum": 0, "type": "quantitative", **x}, "x2": {"datum": 1}}
            marks.append({"mark": line, "encoding": {**ends, "y": at}})
        if entry.look:
            point = {"type": "point", "shape": entry.look.shape, "size": entry.look.size**2, "strokeWidth": 1.4}
            point |= {"stroke": entry.look.colour, "opacity": 1}
            point["fill"] = entry.look.colour if entry.look.filled else "white"
            marks.append({"mark": point, "encoding": {"x": {"datum": 0.5, "type": "quantitative", **x}, "y": at}})
        text = {"type": "text", "align": "left", "dx": 8, "fontSize": 11, "text": entry.name + entry.note}
        marks.append({"mark": text, "encoding": {"x": {"datum": 1, "type": "quantitative", **x}, "y": at}})
    widest = max(len(entry.name + entry.note) for entry in entries)
    return {
        "data": {"values": [{}]},
        "layer": marks,
        "width": 40 + CHARACTER * widest,
        "height": LEGEND_ROW * len(entries),
    }
