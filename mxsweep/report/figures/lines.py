"""Draw a metric against a knob: a line for each combination of the other knobs, and the baseline as a rule.

Lines that would lie on top of each other stand a little apart along x, and each point says which others share its
place. More than MOST_LINES lines tell nobody anything: they become one line for each value of the knob that explains
most of what differs, the median over the rest, with the range from the lowest to the highest run.
"""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mxsweep.report.figures.figure import (
    HIDDEN,
    SHOWN,
    Entry,
    Figure,
    Spec,
    by_series,
    channel,
    error_bars,
    numbers_of,
    points,
)
from mxsweep.report.figures.look import look
from mxsweep.report.figures.quantity import (
    Quantity,
    against_baseline,
    baseline_data,
    baseline_layers,
    finite,
    is_log,
    varying,
    y_axis,
)
from mxsweep.report.wording import format_value
from mxsweep.results.groups import value_order
from mxsweep.results.rows import Row, label
from mxsweep.study.group_study import Study

MOST_LINES = 24
APART = 0.36  # of the room between two places: how far the first and the last line stand apart
APART_ALONE = 0.8  # where there is one place only, points stand side by side
SLANT_FROM = 26  # characters of all labels along x, from which they are slanted


@dataclass(frozen=True)
class Point:
    """Hold what is drawn at one place of a line: a run, or the median of several."""

    place: float
    value: float
    low: float | None
    high: float | None
    rows: list[Row]
    segment: int  # points of one segment are joined


@dataclass(frozen=True)
class Line:
    """Hold a line: a combination of knobs, or a value of one knob over many combinations."""

    name: str
    points: list[Point]


def line_figure(study: Study, quantity: Quantity, knob: str, in_page: bool = True) -> Figure:
    """Return the figure of `quantity` against `knob`, of the group's quantized rows that have the knob."""
    group = study.group
    rows = [row for row in group.rows if knob in row.knobs and not row.is_baseline]
    places = places_of(knob, rows)
    others = varying([name for name in study.results.shown if name != knob], rows)
    members = _members(rows, others, knob)
    by_median = len(members) > MOST_LINES
    caption = f"{quantity.title.capitalize()} against {knob}"
    if by_median:
        quantity = replace(quantity, axis=f"{quantity.title} (median and range)")
        lines, told = _medians(rows, others, knob, places, quantity)
        caption += (
            f": of {len(members)} combinations of the other knobs the median and the range from lowest to highest run, "
            f"by {told}, which explains most of the difference. The table below has every run"
        )
    else:
        lines, told = _lines(members, knob, places, quantity), "line" if len(members) > 1 else ""
    baselines = baseline_data(study, quantity)
    entries = [Entry(line.name, look(i), note="" if line.points else ": no value") for i, line in enumerate(lines)] + [
        Entry(base["series"], dash=tuple(base["dash"])) for base in baselines
    ]
    if not by_median and len(lines) > 1:
        caption += ". Lines stand a little apart along x so that equal ones can be told apart"
    return Figure(
        stem="_".join(part for part in (f"{quantity.stem}_vs_{_stem(knob)}", group.slug) if part),
        title=f"{quantity.title.capitalize()} vs {knob.replace('_', ' ')}",
        subtitle=group.title,
        caption=caption + ".",
        build=lambda ink: _chart(ink, quantity, knob, places, lines, baselines, study),
        entries=entries,
        columns=[knob, *([told] if told else []), quantity.title, *(["runs"] if by_median else ["run"])],
        cells=_cells(lines, places, knob, quantity, bool(told)),
        about=quantity.title,
        in_page=in_page,
    )


def places_of(knob: str, rows: Sequence[Row]) -> dict[Any, float]:
    """Return each value's place on the x axis: block lengths at their log2, others right of them, else one by one."""
    values = list({label(row.knobs[knob]): row.knobs[knob] for row in rows}.values())
    lengths = sorted(value for value in values if knob == "block_size" and _is_length(value))
    places = {label(value): math.log2(value) for value in lengths}
    first = max(places.values(), default=0.0) + 1
    rest = sorted((value for value in values if label(value) not in places), key=lambda value: value_order(knob, value))
    return places | {label(value): first + index for index, value in enumerate(rest)}


def _is_length(block_size: Any) -> bool:
    """Return whether a block is a length: neither the whole axis (0) nor a tile ("16x16")."""
    return isinstance(block_size, int) and block_size > 0


def _place_name(knob: str, text: str) -> str:
    return "whole axis" if knob == "block_size" and text == "0" else text


def _members(rows: Sequence[Row], others: Sequence[str], knob: str) -> dict[str, list[Row]]:
    """Return the rows of each line, by the line's name: the combination of the other knobs."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        text = ", ".join(f"{name}={label(row.knobs[name])}" for name in others if name in row.knobs)
        if not text:  # knobs that are the same in all rows, or have no effect on this one
            text = f"format={label(row.knobs.get('format'))}" if knob != "format" else "all runs"
        members.setdefault(text, []).append(row)
    return members


def _lines(members: Mapping[str, list[Row]], knob: str, places: Mapping[Any, float], quantity: Quantity) -> list[Line]:
    count = len(members)
    lines = []
    for index, (name, some) in enumerate(members.items()):
        shift = _shift(index, count, places)
        points: list[Point] = []
        for row in sorted(some, key=lambda row: places[label(row.knobs[knob])]):
            value, error = finite(quantity.value(row)), finite(quantity.error(row))
            if value is None:
                continue
            low, high = (value - error, value + error) if error else (None, None)
            place = places[label(row.knobs[knob])] + shift
            points.append(Point(place, value, low, high, [row], _segment(knob, row.knobs[knob], len(points))))
        lines.append(Line(name, points))
    return lines


def _shift(index: int, count: int, places: Mapping[Any, float]) -> float:
    if count < 2:
        return 0.0
    if len(places) == 1:
        return APART_ALONE * ((index + 0.5) / count - 0.5)
    where = sorted(places.values())
    room = min(right - left for left, right in itertools.pairwise(where))
    # Two lines stand as close as the first two of a dozen would.
    return room * APART * (index - (count - 1) / 2) / max(count - 1, 6)


def _segment(knob: str, value: Any, index: int) -> int:
    """Return which segment of a line a value is in: no line leads from a block length to a tile."""
    return 0 if knob != "block_size" or _is_length(value) else index + 1


def _medians(
    rows: Sequence[Row], others: Sequence[str], knob: str, places: Mapping[Any, float], quantity: Quantity
) -> tuple[list[Line], str]:
    measured = [row for row in rows if finite(quantity.value(row)) is not None]

    def at(row: Row, name: str) -> tuple[str, str]:
        return label(row.knobs[knob]), label(row.knobs.get(name, ""))

    def spread(name: str) -> float:
        """Sum the absolute deviations from the median that are left where `name` is known."""
        alike: dict[tuple[str, str], list[float]] = {}
        for row in measured:
            alike.setdefault(at(row, name), []).append(quantity.value(row) or 0.0)
        return sum(abs(v - statistics.median(some)) for some in alike.values() for v in some)

    few = [name for name in others if len({label(row.knobs.get(name, "")) for row in rows}) <= MOST_LINES]
    told = min(few or others[:1], key=spread)
    alike: dict[str, dict[str, list[Row]]] = {}
    for row in measured:
        place, value = at(row, told)
        alike.setdefault(value, {}).setdefault(place, []).append(row)
    lines = []
    for index, (value, by_place) in enumerate(list(alike.items())[:MOST_LINES]):
        points = []
        for place in sorted(by_place, key=lambda text: places[text]):
            values = [quantity.value(row) or 0.0 for row in by_place[place]]
            low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
            x = places[place] + _shift(index, len(alike), places)
            points.append(Point(x, statistics.median(values), low, high, by_place[place], 0))
        lines.append(Line(f"{told}={value}", points))
    return lines, told


def _cells(
    lines: Sequence[Line], places: Mapping[Any, float], knob: str, quantity: Quantity, told: bool
) -> list[list[str]]:
    cells = []
    for line in lines:
        for point in line.points:
            own = _place_name(knob, label(point.rows[0].knobs[knob]))
            error = quantity.error(point.rows[0]) if len(point.rows) == 1 else None
            text = format_value(point.value, error, quantity.digits)
            if len(point.rows) > 1 and point.low is not None and point.high is not None:
                ends = (
                    format_value(point.low, digits=quantity.digits),
                    format_value(point.high, digits=quantity.digits),
                )
                text += f" ({ends[0]} to {ends[1]})"
            run = point.rows[0].run.run_id if len(point.rows) == 1 else str(len(point.rows))
            cells.append([own, *([line.name] if told else []), text, run])
    return cells


def _chart(
    ink: str,
    quantity: Quantity,
    knob: str,
    places: Mapping[Any, float],
    lines: Sequence[Line],
    baselines: Sequence[dict[str, Any]],
    study: Study,
) -> Spec:
    names = [line.name for line in lines]
    looks = [look(index) for index in range(len(names))]
    log = is_log(quantity, [point.value for line in lines for point in line.points] + [base["y"] for base in baselines])
    x = channel("x", "quantitative", **_x_axis(knob, places))
    y = channel("y", "quantitative", **y_axis(quantity, log))
    data = _data(lines, quantity, knob, study, log)
    line = {
        "mark": "line",
        "encoding": {
            "x": x,
            "y": y,
            "color": by_series(names, [one.colour for one in looks]),
            "strokeDash": by_series(names, [list(one.dash) for one in looks]),
            "strokeWidth": channel("width", "quantitative", scale=None),
            "detail": [channel("series"), channel("segment")],
        },
    }
    tips = {name: title for name, title in TIPS.items() if any(name in datum for datum in data)}
    tips["value"] = quantity.title
    bars = [error_bars(x, y, names, looks)] if any("low" in datum for datum in data) else []
    series: Spec = {
        "data": {"name": "points"},
        "transform": SHOWN,
        "layer": [line, *bars, points(x, y, names, looks, tips)],
    }
    return {
        "datasets": {"points": data, "baselines": list(baselines)},
        "params": HIDDEN,
        "layer": [*baseline_layers(ink, baselines, y, quantity), series],
    }


TIPS = {"run": "run", "config": "config", "difference": "against the baseline", "also": "same place"}


def _data(lines: Sequence[Line], quantity: Quantity, knob: str, study: Study, log: bool) -> list[dict[str, Any]]:
    at: dict[tuple[str, float], list[str]] = {}
    for line in lines:
        for point in line.points:
            at.setdefault((label(point.rows[0].knobs[knob]), point.value), []).append(line.name)
    least = min((point.value for line in lines for point in line.points if point.value > 0), default=1.0)
    data = []
    for index, line in enumerate(lines):
        for point in line.points:
            row, alone = point.rows[0], len(point.rows) == 1
            own = label(row.knobs[knob])
            datum: dict[str, Any] = {"x": point.place, "y": point.value, "series": line.name, "segment": point.segment}
            datum |= numbers_of(look(index))
            if point.low is not None:
                # A bar that reaches zero ends below the axis of logarithms.
                datum["low"] = max(point.low, least / 2) if log else point.low
                datum["high"] = point.high
            datum["run"] = row.run.run_id if alone else f"median of {len(point.rows)}"
            datum["config"] = study.config_text(row) if alone else f"{knob}={own}"
            if alone and quantity.metric and (text := against_baseline(study, row, quantity.metric)):
                datum["difference"] = text
            error = quantity.error(row) if alone else None
            datum["value"] = format_value(point.value, error, quantity.digits)
            others = [name for name in at[own, point.value] if name != line.name]
            if others:
                datum["also"] = "; ".join(others)
            data.append(datum)
    if any("also" in datum for datum in data):
        for datum in data:
            datum.setdefault("also", "none")
    return data


def _x_axis(knob: str, places: Mapping[Any, float]) -> Spec:
    """Return ticks at the places, labelled with the values: by an expression, since the scale is of positions."""
    where = list(places.values())
    names = [_place_name(knob, text) for text in places]
    slant = sum(map(len, names)) > SLANT_FROM
    axis = {
        "values": where,
        "labelExpr": f"{json.dumps(names)}[indexof({json.dumps(where)}, datum.value)]",
        "labelAngle": -35 if slant else 0,
        "labelAlign": "right" if slant else "center",
        "labelOverlap": False,
        "grid": True,
    }
    ends = [min(where, default=0.0) - 0.5, max(where, default=0.0) + 0.5]
    return {"title": knob, "axis": axis, "scale": {"domain": ends, "nice": False, "zero": False}}


def _stem(knob: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in knob)
