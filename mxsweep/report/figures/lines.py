"""Draw a metric's change against a knob: a line for each combination of the other knobs, and the baseline as a rule.

What is drawn of a run is decided in quantity.py, which lines there are in line_points.py.
"""

import json
from collections.abc import Mapping, Sequence
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
from mxsweep.report.figures.line_points import Lines, Point, lines_against, place_name
from mxsweep.report.figures.look import look
from mxsweep.report.figures.quantity import (
    Quantity,
    baseline_data,
    baseline_layers,
    change_quantity,
    ends_of,
    varying,
    y_axis,
)
from mxsweep.report.study_title import measured_text
from mxsweep.report.wording import metric_cell, significance
from mxsweep.results.knob_words import goes_with_format, knob_title, name_rows
from mxsweep.results.rows import label
from mxsweep.study.finding import join_with_and
from mxsweep.study.group_study import Study

SLANT_FROM = 26  # characters of all labels along x, from which they are slanted
KNOB = "knob: "  # what a figure is about, before the knob's name
TIPS = {"run": "run", "config": "config", "change": "change", "said": "verdict", "value": "value"}


def line_figure(study: Study, metric: str, knob: str) -> Figure:
    """Return the figure of `metric` against `knob`, of the group's quantized rows that have the knob.

    It is in the page where a line has more than one value of the knob, of runs that differ in nothing else.
    """
    quantity = change_quantity(study, metric, knob)
    rows = [row for row in study.rows if knob in row.knobs and not row.is_baseline]
    others = varying([name for name in study.results.shown if name != knob], rows)
    bound = goes_with_format(others, rows) if knob == "format" or "format" in others else []
    drawn = lines_against(knob, rows, [name for name in others if name not in bound], quantity)
    baselines = baseline_data(study, quantity)
    entries = [
        LegendEntry(line.name, look(i), note="" if line.points else ": no value") for i, line in enumerate(drawn.lines)
    ] + [LegendEntry(base["series"], dash=tuple(base["dash"])) for base in baselines]
    return Figure(
        stem="_".join(part for part in (f"{quantity.stem}_vs_{_stem(knob)}", study.group.slug) if part),
        title=f"{quantity.noun[0].upper()}{quantity.noun[1:]} against {knob_title(knob)}",
        subtitle=measured_text(study.group),
        caption=_caption(drawn, quantity, bound if knob == "format" else []),
        build=lambda ink: _chart(ink, quantity, knob, drawn, baselines, study),
        entries=entries,
        columns=[knob_title(knob), "line", quantity.axis, "runs"],
        cells=_cells(drawn, knob),
        about=f"{KNOB}{knob}",
        in_page=any(
            line.is_balanced and len({label(point.rows[0].knobs[knob]) for point in line.points}) > 1
            for line in drawn.lines
        ),
    )


def _caption(drawn: Lines, quantity: Quantity, bound: Sequence[str]) -> str:
    caption = quantity.said
    if bound:
        verb = "goes" if len(bound) == 1 else "go"
        caption += f"; {join_with_and([knob_title(name) for name in bound])} {verb} with the format"
    if drawn.is_averaged:
        over = "the others" if drawn.explaining is None else f"all but {knob_title(drawn.explaining)}"
        how = "averaged over" if quantity.nothing is not None else "the median and the range over"
        caption += f": of {drawn.combinations} combinations of the other knobs {how} {over}"
        if not drawn.is_balanced:
            caption += ", which are not the same at all values"
    if quantity.nothing is not None and len(drawn.lines) > 0:
        caption += ". Whether two values differ stands in the table below"
    if drawn.left_out:
        caption += f". Not drawn: {drawn.left_out} combinations that were run at one value only"
    return f"{caption}."


def _cells(drawn: Lines, knob: str) -> list[list[str]]:
    return [
        [
            place_name(knob, label(point.rows[0].knobs[knob])),
            line.name,
            point.estimate.text,
            point.rows[0].run.run_id if len(point.rows) == 1 else str(len(point.rows)),
        ]
        for line in drawn.lines
        for point in line.points
    ]


def _chart(
    ink: str,
    quantity: Quantity,
    knob: str,
    drawn: Lines,
    baselines: Sequence[dict[str, Any]],
    study: Study,
) -> Spec:
    names = [line.name for line in drawn.lines]
    looks = [look(index) for index in range(len(names))]
    x = channel("x", "quantitative", **_x_axis(knob, drawn.places))
    data = _data(drawn, quantity, knob, study)
    y = channel("y", "quantitative", **y_axis(quantity, [*data, *baselines]))
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
    tips |= {"value": quantity.noun} if "value" in tips else {}
    bars = [error_bars(x, y, names, looks)] if any("low" in datum for datum in data) else []
    series: Spec = {
        "data": {"name": "points"},
        "transform": SHOWN,
        "layer": [line, *bars, points(x, y, names, looks, tips)],
    }
    return {
        "datasets": {"points": data, "baselines": list(baselines)},
        "params": HIDDEN,
        "layer": [*baseline_layers(ink, baselines, y), series],
    }


def _data(drawn: Lines, quantity: Quantity, knob: str, study: Study) -> list[dict[str, Any]]:
    values = [point.estimate.value for line in drawn.lines for point in line.points]
    least = min((value for value in values if value > 0), default=1.0)
    return [
        {"x": point.place, "y": point.estimate.value, "series": line.name, "segment": point.segment}
        | numbers_of(look(index))
        | ends_of(point.estimate, quantity.is_log, least)
        | _tips(point, quantity, knob, drawn, study)
        for index, line in enumerate(drawn.lines)
        for point in line.points
    ]


def _tips(point: Point, quantity: Quantity, knob: str, drawn: Lines, study: Study) -> dict[str, str]:
    row = point.rows[0]
    if drawn.is_averaged:
        return {
            "run": f"{len(point.rows)} runs",
            "config": name_rows([row], [knob]),
            "change" if quantity.nothing is not None else "value": point.estimate.text,
            "said": "",
        }
    tips = {
        "run": ", ".join(each.run.run_id for each in point.rows),
        "config": name_rows(point.rows, study.swept),
        "value": metric_cell(row, quantity.metric),
    }
    if quantity.nothing is not None:
        said = significance(study.comparisons.get(row.run.path), quantity.metric)
        tips |= {"change": point.estimate.text, "said": said}
    return tips


def _x_axis(knob: str, places: Mapping[str, float]) -> Spec:
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
    return {"title": knob_title(knob), "axis": axis, "scale": {"domain": ends, "nice": False, "zero": False}}


def _stem(knob: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in knob)
