"""Draw a metric against a knob: a line for each combination of the other knobs, and the baseline as a rule.

Which lines there are is decided in line_points.py. Each point says which others share its place.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mxsweep.report.figures.figure import (
    HIDDEN,
    SHOWN,
    Figure,
    LegendEntry,
    Spec,
    by_series,
    channel,
    error_bars,
    numbers_of,
    points,
)
from mxsweep.report.figures.line_points import (
    MOST_LINES,
    Line,
    combinations,
    lines_of_runs,
    median_lines,
    place_name,
    places_of,
)
from mxsweep.report.figures.look import look
from mxsweep.report.figures.quantity import (
    Quantity,
    baseline_data,
    baseline_layers,
    describe_difference,
    is_log,
    varying,
    y_axis,
)
from mxsweep.report.wording import format_value
from mxsweep.results.rows import label
from mxsweep.study.group_study import Study

SLANT_FROM = 26  # characters of all labels along x, from which they are slanted


def line_figure(study: Study, quantity: Quantity, knob: str, in_page: bool = True) -> Figure:
    """Return the figure of `quantity` against `knob`, of the group's quantized rows that have the knob."""
    group = study.group
    rows = [row for row in group.rows if knob in row.knobs and not row.is_baseline]
    places = places_of(knob, rows)
    others = varying([name for name in study.results.shown if name != knob], rows)
    members = combinations(rows, others, knob)
    by_median = len(members) > MOST_LINES
    caption = f"{quantity.title.capitalize()} against {knob}"
    if by_median:
        quantity = replace(quantity, axis=f"{quantity.title} (median and range)")
        lines, explaining = median_lines(rows, others, knob, places, quantity)
        caption += (
            f": of {len(members)} combinations of the other knobs the median and the range from lowest to highest run, "
            f"by {explaining}, which explains most of the difference. The table below has every run"
        )
    else:
        lines, explaining = lines_of_runs(members, knob, places, quantity), "line" if len(members) > 1 else ""
    baselines = baseline_data(study, quantity)
    entries = [
        LegendEntry(line.name, look(i), note="" if line.points else ": no value") for i, line in enumerate(lines)
    ] + [LegendEntry(base["series"], dash=tuple(base["dash"])) for base in baselines]
    if not by_median and len(lines) > 1:
        caption += ". Lines stand a little apart along x so that equal ones can be told apart"
    return Figure(
        stem="_".join(part for part in (f"{quantity.stem}_vs_{_stem(knob)}", group.slug) if part),
        title=f"{quantity.title.capitalize()} vs {knob.replace('_', ' ')}",
        subtitle=group.title,
        caption=caption + ".",
        build=lambda ink: _chart(ink, quantity, knob, places, lines, baselines, study),
        entries=entries,
        columns=[knob, *([explaining] if explaining else []), quantity.title, *(["runs"] if by_median else ["run"])],
        cells=_cells(lines, places, knob, quantity, bool(explaining)),
        about=quantity.title,
        in_page=in_page,
    )


def _cells(
    lines: Sequence[Line], places: Mapping[Any, float], knob: str, quantity: Quantity, named: bool
) -> list[list[str]]:
    cells = []
    for line in lines:
        for point in line.points:
            value = place_name(knob, label(point.rows[0].knobs[knob]))
            error = quantity.error(point.rows[0]) if len(point.rows) == 1 else None
            text = format_value(point.value, error, quantity.digits)
            if len(point.rows) > 1 and point.low is not None and point.high is not None:
                ends = (
                    format_value(point.low, digits=quantity.digits),
                    format_value(point.high, digits=quantity.digits),
                )
                text += f" ({ends[0]} to {ends[1]})"
            run = point.rows[0].run.run_id if len(point.rows) == 1 else str(len(point.rows))
            cells.append([value, *([line.name] if named else []), text, run])
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
            value = label(row.knobs[knob])
            datum: dict[str, Any] = {"x": point.place, "y": point.value, "series": line.name, "segment": point.segment}
            datum |= numbers_of(look(index))
            if point.low is not None:
                # A bar that reaches zero ends below the axis of logarithms.
                datum["low"] = max(point.low, least / 2) if log else point.low
                datum["high"] = point.high
            datum["run"] = row.run.run_id if alone else f"median of {len(point.rows)}"
            datum["config"] = study.config_text(row) if alone else f"{knob}={value}"
            if alone and quantity.metric and (text := describe_difference(study, row, quantity.metric)):
                datum["difference"] = text
            error = quantity.error(row) if alone else None
            datum["value"] = format_value(point.value, error, quantity.digits)
            others = [name for name in at[value, point.value] if name != line.name]
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
    names = [place_name(knob, text) for text in places]
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
