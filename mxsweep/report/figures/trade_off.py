"""Draw what memory buys: all the memory that a run takes against its cost, and the runs that no other beats in both.

Memory is that of the parameters and of the keys and values of one sequence, as in the table beside it. Where no run
says what its model caches, it is bits per weight instead, and the figure says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.report.figures.figure import (
    HIDDEN,
    SHOWN,
    Figure,
    LegendEntry,
    Spec,
    channel,
    error_bars,
    finite,
    numbers_of,
    points,
)
from mxsweep.report.figures.line_points import MOST_LINES
from mxsweep.report.figures.look import look
from mxsweep.report.figures.quantity import (
    Estimate,
    Quantity,
    baseline_data,
    baseline_layers,
    change_quantity,
    ends_of,
    y_axis,
)
from mxsweep.report.study_title import measured_text
from mxsweep.report.wording import MEGA, metric_cell, size
from mxsweep.results.knob_words import name_rows
from mxsweep.results.memory_taken import tokens_held
from mxsweep.results.metrics import is_perplexity
from mxsweep.results.remedies import is_remedy, remedy_text
from mxsweep.results.rows import Row
from mxsweep.study.change_words import format_bits
from mxsweep.study.compared_metric import as_cost
from mxsweep.study.finding import format_runs
from mxsweep.study.group_study import Study
from mxsweep.study.memory_front import memory_of, unbeaten
from mxsweep.study.memory_terms import Terms
from mxsweep.study.silent_tasks import has_no_pairs

ABOUT = "trade-off"
ROOM = 0.1  # of the range of memory, left and right of it
MOST_NUMBERED = 12  # runs of the front that are told apart by numbers in the figure
ALONG = ("block_size", "scale_bits")  # knobs that move a point along one curve; the others tell curves apart
FEW_LINES = 8  # combinations of knobs, remedies among them, that are told apart one by one
FRONT_DASH, WITHIN_DASH = (1.0, 0.0), (2.0, 3.0)
TIPS = {"run": "run", "config": "config", "change": "change", "value": "value", "memory": "memory"}


@dataclass(frozen=True)
class _Point:
    """Hold runs that came out the same and take the same memory, and the name of their curve."""

    rows: list[Row]
    at: float
    estimate: Estimate
    series: str


@dataclass(frozen=True)
class _Axis:
    """Describe the memory: its title, in lines that a phone has room for, and what is said of it.

    Attributes:
        place: of a run; None where it is not known.
    """

    lines: tuple[str, ...]
    said: str
    place: Callable[[Row], float | None]
    text: Callable[[float], str]

    @property
    def title(self) -> str:
        """Return the title as one line."""
        return " ".join(self.lines)


def trade_off_figure(study: Study, terms: Terms) -> Figure | None:
    """Return the figure; None where no quantized run says how much memory it takes, or has a known metric.

    None of trainings with several seeds, nor where a task tells nothing of the runs: there is no front of them.
    """
    if study.loss_metric is None or has_no_pairs(study.group):
        return None
    quantity = change_quantity(study, study.loss_metric)
    rows = [row for row in study.rows if not row.is_baseline]
    axis = _axis(rows, tokens_held(study.rows, terms.context))
    drawn = _points(study, quantity, rows, axis)
    if not drawn:
        return None
    front = unbeaten(drawn, lambda one: (one.at, as_cost(quantity.metric, one.estimate.value)))
    names = list(dict.fromkeys(one.series for one in drawn))
    baselines = baseline_data(study, quantity) + _within(quantity, terms)
    entries = [LegendEntry(name, look(index), joined=False) for index, name in enumerate(names)]
    if len(front) > 1:
        entries.append(LegendEntry("Pareto front", dash=FRONT_DASH))
    entries += [LegendEntry(base["series"], dash=tuple(base["dash"])) for base in baselines]
    better = "low" if as_cost(quantity.metric, 1.0) > 0 else "high"
    missing = len(rows) - sum(len(one.rows) for one in drawn)
    less = f" Left out, since memory or change is not known: {format_runs(missing)}." if missing else ""
    return Figure(
        stem="_".join(part for part in ("tradeoff", study.group.slug) if part),
        title=f"What memory buys in {quantity.noun}",
        subtitle=measured_text(study.group),
        caption=f"{quantity.said}, against {axis.said}: {better} and left is better. No run beats one of the Pareto "
        f"front in both; its runs, from the least memory on, are listed below.{less}",
        build=lambda ink: _chart(ink, study, quantity, axis, drawn, front, baselines),
        entries=entries,
        columns=["config", axis.title, quantity.axis, "on the front", "runs"],
        cells=[
            [
                name_rows(one.rows, study.naming, study.usual),
                axis.text(one.at),
                one.estimate.text,
                str(front.index(one) + 1) if one in front else "no",
                ", ".join(row.run.run_id for row in one.rows),
            ]
            for one in drawn
        ],
        about=ABOUT,
        notes=[
            f"{index}: {name_rows(one.rows, study.naming, study.usual)}: {axis.text(one.at)}, {quantity.noun} "
            f"{one.estimate.text}"
            for index, one in enumerate(front, 1)
        ],
        wide=True,
    )


def _axis(rows: Sequence[Row], context: int) -> _Axis:
    """Return total memory, at a context, where any run says what it takes, else bits per weight."""

    def total(row: Row) -> float | None:
        sizes = memory_of(row, context)
        return None if sizes is None else sum(sizes) / MEGA

    if any(total(row) is not None for row in rows):
        tokens = f"keys and values of {context:,} tokens"
        return _Axis(
            ("memory, MB: parameters,", f"and {tokens}"),
            f"the memory of all parameters and of the {tokens}, scales included",
            total,
            lambda value: f"{size(value * MEGA)} MB",
        )
    return _Axis(
        ("bits per weight",),
        "bits per weight, scales included (what these models cache is not known, so keys and values do not count)",
        lambda row: row.bits_per_weight,
        lambda value: f"{format_bits(value)} bits a weight",
    )


def _points(study: Study, quantity: Quantity, rows: Sequence[Row], axis: _Axis) -> list[_Point]:
    alike: dict[tuple[float, Hashable], list[Row]] = {}
    for row in rows:
        at = finite(axis.place(row))
        if at is not None and quantity.estimate([row]) is not None:
            alike.setdefault((at, quantity.outcome(row)), []).append(row)
    series = _series(study, [some[0] for some in alike.values()])
    return [
        _Point(some, at, estimate, name)
        for ((at, _), some), name in zip(alike.items(), series, strict=True)
        if (estimate := quantity.estimate(some[:1])) is not None
    ]


def _series(study: Study, rows: Sequence[Row]) -> list[str]:
    """Name each row's curve: by the knobs but for ALONG or, with too many combinations, by its remedies or format.

    Where remedies were swept, they are what the figure is about, and few combinations are many.
    """
    names = [name for name in study.naming if name not in ALONG]
    has_remedies = any(map(is_remedy, names))

    def texts(choice: Sequence[str]) -> list[str]:
        known = [[name for name in choice if name in row.knobs] for row in rows]
        return [name_rows([row], some) if some else "" for row, some in zip(rows, known, strict=True)]

    choices = [(texts(names), FEW_LINES if has_remedies else MOST_LINES)]
    if has_remedies:
        choices.append(([remedy_text(row.knobs) for row in rows], MOST_LINES))
    choices += [(texts(["format", "kv_quant"]), MOST_LINES), (texts(["format"]), MOST_LINES)]
    chosen = next((series for series, most in choices if len(set(series)) <= most), [""] * len(rows))
    return [text or "quantized" for text in chosen]


def _within(quantity: Quantity, terms: Terms) -> list[dict[str, Any]]:
    """Return the rule that says how much worse than the baseline a run may be, where perplexities are compared."""
    if quantity.nothing is None or not is_perplexity(quantity.metric):
        return []
    text = f"{terms.within * 100:g} % above the baseline"
    return [{"series": text, "y": 1 + terms.within, "dash": list(WITHIN_DASH), "value": text}]


def _chart(
    ink: str,
    study: Study,
    quantity: Quantity,
    axis: _Axis,
    drawn: Sequence[_Point],
    front: Sequence[_Point],
    baselines: Sequence[dict[str, Any]],
) -> Spec:
    names = list(dict.fromkeys(one.series for one in drawn))
    ends = [one.at for one in drawn]
    room = ROOM * (max(ends) - min(ends)) or ROOM * max(ends)
    scale = {"domain": [min(ends) - room, max(ends) + room], "zero": False, "nice": False}
    x = channel("x", "quantitative", scale=scale, axis={"tickCount": 8, "format": "~g"}, title=list(axis.lines))
    looks = [look(index) for index in range(len(names))]
    least = min((one.estimate.value for one in drawn if one.estimate.value > 0), default=1.0)
    data = [
        {"x": one.at, "y": one.estimate.value, "series": one.series}
        | numbers_of(look(names.index(one.series)))
        | ends_of(one.estimate, quantity.is_log, least)
        | _tips(one, study, quantity, axis)
        for one in drawn
    ]
    y = channel("y", "quantitative", **y_axis(quantity, [*data, *baselines]))
    on_front = [{"x": one.at, "y": one.estimate.value, "number": str(index)} for index, one in enumerate(front, 1)]
    step = {"type": "line", "color": ink, "strokeWidth": 1.2, "interpolate": "step-after"}
    # Below a point and left of it nothing else can be: the front's other runs are above, or right.
    number = {"type": "text", "color": ink, "align": "right", "baseline": "top", "dx": -7, "dy": 6, "fontSize": 11}
    text = {"x": x, "y": y, "text": channel("number")}
    bars = [error_bars(x, y, names, looks)] if any("low" in datum for datum in data) else []
    tips = {name: title for name, title in TIPS.items() if name in data[0]} | {"value": quantity.noun}
    numbered = [{"data": {"name": "front"}, "mark": number, "encoding": text}] if len(front) <= MOST_NUMBERED else []
    return {
        "datasets": {"points": data, "baselines": list(baselines), "front": on_front},
        "params": HIDDEN,
        "layer": [
            *baseline_layers(ink, baselines, y),
            {"data": {"name": "front"}, "mark": step, "encoding": {"x": x, "y": y}},
            {"data": {"name": "points"}, "transform": SHOWN, "layer": [*bars, points(x, y, names, looks, tips)]},
            *numbered,
        ],
    }


def _tips(one: _Point, study: Study, quantity: Quantity, axis: _Axis) -> dict[str, str]:
    tips = {
        "run": ", ".join(row.run.run_id for row in one.rows),
        "config": name_rows(one.rows, study.naming, study.usual),
        "value": metric_cell(one.rows[0], quantity.metric),
        "memory": axis.text(one.at),
    }
    return tips | ({"change": one.estimate.text} if quantity.nothing is not None else {})
