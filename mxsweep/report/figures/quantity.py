"""Describe a metric along y: its axis, its baselines, and its difference from them in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.report.figures.figure import Spec, by_series, finite, tooltip
from mxsweep.report.figures.look import BASELINE_DASHES
from mxsweep.report.wording import ABSENT, difference, format_value, interval, significance
from mxsweep.results.metrics import decimals, long_title
from mxsweep.results.rows import Row, label
from mxsweep.study.group_study import Study

LOG_SCALE_FROM = 20.0  # a perplexity that varies by this factor is drawn on a log axis


@dataclass(frozen=True)
class Quantity:
    """Describe what is drawn on the y axis."""

    stem: str  # of the file name
    axis: str
    value: Callable[[Row], float | None]
    error: Callable[[Row], float | None]
    digits: int | None = None
    metric: str | None = None

    @property
    def title(self) -> str:
        """Return the name in captions."""
        return self.stem.replace("_", " ")


def metric_quantity(name: str, rows: Sequence[Row]) -> Quantity:
    """Describe a metric with its standard error."""
    stem = long_title(name).replace(",", "_")
    has_error = any(finite(row.metrics.get(f"{name}_stderr")) is not None for row in rows)
    return Quantity(
        stem,
        stem.replace("_", " ") + (" (± 1 standard error)" if has_error else ""),
        lambda row: row.metrics.get(name),
        lambda row: row.metrics.get(f"{name}_stderr"),
        digits=decimals(name),
        metric=name,
    )


def y_axis(quantity: Quantity, log: bool) -> Spec:
    """Return scale, axis and title of a quantity."""
    if log:
        return {
            "title": quantity.axis,
            "scale": {"type": "log", "nice": False},
            "axis": {"format": "~g", "tickCount": 6},
        }
    return {"title": quantity.axis, "scale": {"zero": False}}


def is_log(quantity: Quantity, values: Sequence[float]) -> bool:
    """Return whether values vary so much that a perplexity's axis is of logarithms."""
    named = quantity.stem.endswith("perplexity")
    return named and bool(values) and max(values) > LOG_SCALE_FROM * min(values) > 0


def baseline_data(study: Study, quantity: Quantity) -> list[dict[str, Any]]:
    """Return the group's baselines as data, those of the same config once."""
    rows = [row for row in study.rows if row.is_baseline and finite(quantity.value(row)) is not None]
    names = varying(study.results.shown, rows)
    drawn: dict[str, dict[str, Any]] = {}
    for row in rows:
        text = ", ".join(["baseline", *(f"{name}={label(row.knobs[name])}" for name in names if name in row.knobs)])
        if text in drawn:  # a repetition
            continue
        value, error = finite(quantity.value(row)) or 0.0, finite(quantity.error(row)) or 0.0
        drawn[text] = {
            "series": text,
            "y": value,
            "low": value - error,
            "high": value + error,
            "dash": list(BASELINE_DASHES[len(drawn) % len(BASELINE_DASHES)]),
            "run": row.run.run_id,
            "value": format_value(value, error or None, quantity.digits),
        }
    return list(drawn.values())


def baseline_layers(ink: str, baselines: Sequence[dict[str, Any]], y: Spec, quantity: Quantity) -> list[Spec]:
    """Return a rule for each baseline, and a band of one standard error about it; their data are named baselines."""
    if not baselines:
        return []
    band = {"type": "rect", "color": ink, "opacity": 0.1}
    rule = {"type": "rule", "color": ink, "strokeWidth": 1.3}
    dashes = by_series([base["series"] for base in baselines], [base["dash"] for base in baselines])
    tips = tooltip({"series": "line", "run": "run", "value": quantity.title})
    layers = [
        {"mark": band, "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}}},
        {"mark": rule, "encoding": {"y": y, "strokeDash": dashes, "tooltip": tips}},
    ]
    return [{"data": {"name": "baselines"}, "layer": layers, "resolve": {"scale": {"strokeDash": "independent"}}}]


def describe_difference(study: Study, row: Row, metric: str) -> str:
    """Say a metric's difference from the baseline's, its interval, and whether it is significant; empty without one."""
    comparison = study.comparisons.get(row.run.path)
    text = difference(row, study.baselines[row.run.path], metric)
    more = [interval(comparison, metric), significance(comparison, metric)]
    return "" if text == ABSENT else " ".join([text, *filter(None, more)])


def varying(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the knobs that differ among these rows; one that varies elsewhere would only lengthen every label."""
    return [name for name in names if len({label(row.knobs.get(name, "")) for row in rows}) > 1]
