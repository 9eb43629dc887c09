"""Describe what is drawn along y: a metric's change with its paired interval or, unpaired, the metric itself.

The change is that from the baseline or, without one, from the first value of the knob. Only where nothing is known of
single examples is the metric itself drawn, with its standard error, which says nothing of differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.report.figures.figure import Spec, by_series, finite, tooltip
from mxsweep.report.figures.look import BASELINE_DASHES
from mxsweep.report.wording import format_value, metric_cell
from mxsweep.results.knob_words import name_rows, value_text
from mxsweep.results.metrics import decimals, is_perplexity, long_title
from mxsweep.results.rows import Row, label
from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference
from mxsweep.study.change_words import format_change, format_interval, metric_noun
from mxsweep.study.compared_metric import metric_test
from mxsweep.study.comparison import Comparison, compare_pairs
from mxsweep.study.configs_to_use import outcome_of
from mxsweep.study.group_study import Study
from mxsweep.study.knob_effects import runs_by_value

LOG_SCALE_FROM = 20.0  # a perplexity that varies by this factor is drawn on a log axis
FEW_POWERS = 200.0  # a range from which an axis of logarithms has powers of ten alone
FIRST = "first"  # the outcome of every run that is the first of its line, where changes are from that


@dataclass(frozen=True)
class Estimate:
    """Hold what is drawn of one run, or of several together: a value, its interval, and both in words."""

    value: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Quantity:
    """Describe what is drawn on the y axis.

    Attributes:
        metric: its name.
        axis: the axis's title.
        said: what is drawn, as a caption says it.
        estimate: what is drawn of these runs, averaged over them; None where nothing can be.
        outcome: equal for runs that came out the same.
        nothing: where there is no change; None of a metric itself.
        is_log: whether the axis is of logarithms, as that of a ratio is.
    """

    metric: str
    axis: str
    said: str
    estimate: Callable[[Sequence[Row]], Estimate | None]
    outcome: Callable[[Row], Hashable]
    nothing: float | None = None
    is_log: bool = False

    @property
    def noun(self) -> str:
        """Return what a sentence calls the metric."""
        return metric_noun(self.metric)

    @property
    def stem(self) -> str:
        """Return what the names of files call the metric."""
        return long_title(self.metric).replace(",", "_")


def change_quantity(study: Study, metric: str, knob: str | None = None) -> Quantity:
    """Describe a metric's change from the baseline, or from the knob's first value, or the metric itself.

    The first of these that is known of any quantized run.
    """
    from_baseline = _change(study, metric, study.comparisons, "the baseline")
    if from_baseline is not None:
        return from_baseline
    pairs = _firsts(study, knob) if knob else {}
    compared = {each.row.run.path: each for each in compare_pairs(study.group, list(pairs.values()))}
    values = {label(first.knobs[knob]) for _, first in pairs.values()} if knob else set()
    first = value_text(knob, values) if knob and len(values) == 1 else "the first of its line"
    firsts = {other.run.path for _, other in pairs.values()}
    return _change(study, metric, compared, first, firsts) or _itself(study, metric)


def _firsts(study: Study, knob: str) -> dict[Path, tuple[Row, Row]]:
    """Return, by its folder, each quantized run with the one of the knob's first value that it shares all else with."""
    rows = [row for row in study.rows if not row.is_baseline]
    others = [name for name in study.results.shown if name != knob]
    return {
        row.run.path: (row, alike[0]) for alike in runs_by_value(rows, knob, others) for row in alike[1:] if alike[1:]
    }


def _change(
    study: Study,
    metric: str,
    compared: Mapping[Path, Comparison],
    other: str,
    firsts: frozenset[Path] | set[Path] = frozenset(),
) -> Quantity | None:
    """Describe a change from the runs that others were compared with; None where none was, in this metric."""
    paired = {path: test for path, each in compared.items() if (test := metric_test(each, metric).paired)}
    if not any(math.isfinite(one.difference) for one in paired.values()):
        return None
    is_ratio = is_perplexity(metric)
    nothing = 1.0 if is_ratio else 0.0

    def estimate(rows: Sequence[Row]) -> Estimate | None:
        if len(rows) == 1 and rows[0].run.path in firsts:
            return Estimate(nothing, None, None, "what others are compared with")
        pairs = [(compared[row.run.path].other, row) for row in rows if row.run.path in paired]
        if len(pairs) < len(rows):
            return None
        if len(rows) == 1:
            return _drawn(metric, paired[rows[0].run.path])
        averaged = study.examples.test(pairs, metric)
        return None if averaged is None else _drawn(metric, averaged.measured)

    def outcome(row: Row) -> Hashable:
        return FIRST if row.run.path in firsts else outcome_of(row, compared.get(row.run.path))

    noun = metric_noun(metric)
    axis = f"{noun}, ratio to {other}" if is_ratio else f"change of {noun} from {other}"
    said = f"Change of {noun} from {other} with its 95 % interval, paired over the same examples"
    return Quantity(metric, axis, said, estimate, outcome, nothing, is_ratio)


def _drawn(metric: str, measured: AccuracyDifference | MeanDifference) -> Estimate | None:
    form = _ratio if is_perplexity(metric) else finite
    value, low, high = form(measured.difference), form(measured.low), form(measured.high)
    if value is None:
        return None
    change = format_change(metric, measured.difference, measured.low, measured.high)
    text = f"{change} {format_interval(metric, measured)}".rstrip()
    return Estimate(value, low, high, text)


def _ratio(log_ratio: float) -> float | None:
    """Return the ratio; None where it is no number that can be drawn."""
    try:
        return finite(math.exp(log_ratio)) or None
    except OverflowError:
        return None


def _itself(study: Study, metric: str) -> Quantity:
    """Describe a metric with its standard error; of several runs the median, and the range."""
    noun = metric_noun(metric)

    def estimate(rows: Sequence[Row]) -> Estimate | None:
        values = [value for row in rows if (value := finite(row.metrics.get(metric))) is not None]
        if not values:
            return None
        if len(values) == 1:
            error = finite(rows[0].metrics.get(f"{metric}_stderr"))
            low, high = (values[0] - error, values[0] + error) if error else (None, None)
            return Estimate(values[0], low, high, metric_cell(rows[0], metric))
        drawn = statistics.median(values), min(values), max(values)
        median, least, most = (format_value(each, digits=decimals(metric)) for each in drawn)
        return Estimate(*drawn, f"{median} ({least} to {most})")

    def outcome(row: Row) -> Hashable:
        # Perplexities that are equal to the last digit are of equal runs; accuracies may be so by chance.
        continuous = any(is_perplexity(name) for name in row.metrics)
        return tuple(sorted(row.metrics.items())) if continuous else row.run.path

    values = [value for row in study.rows if (value := finite(row.metrics.get(metric))) is not None]
    is_log = is_perplexity(metric) and bool(values) and max(values) > LOG_SCALE_FROM * min(values) > 0
    said = f"{noun[0].upper()}{noun[1:]} with its standard error, unpaired: nothing is known of single examples"
    return Quantity(metric, noun, said, estimate, outcome, None, is_log)


def y_axis(quantity: Quantity, data: Sequence[Mapping[str, Any]]) -> Spec:
    """Return scale, axis and title of a quantity, with room for the values and intervals of these data."""
    values = [datum[name] for datum in data for name in ("y", "low", "high") if name in datum]
    scale: Spec = {"nice": False} if quantity.is_log else {"nice": False, "zero": False}
    if values:
        scale["domain"] = list(widened(min(values), max(values), quantity.is_log))
    if not quantity.is_log:
        return {"title": quantity.axis, "scale": scale}
    return {"title": quantity.axis, "scale": {**scale, "type": "log"}, "axis": log_axis(*scale.get("domain", (1, 10)))}


def log_axis(low: float, high: float) -> Spec:
    """Return an axis of logarithms: of many powers of ten with those alone, which Vega would put all others between."""
    if high < FEW_POWERS * low:
        return {"format": "~g", "tickCount": 6}
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    step = 1 + len(powers) // 8
    return {"format": ",~g" if powers[-1] < 7 else "~e", "values": [10.0**power for power in powers[::step]]}


def widened(low: float, high: float, is_log: bool) -> tuple[float, float]:
    """Return the ends of an axis, a little room outside these values."""
    if is_log:
        room = (high / low) ** 0.04
        return low / max(room, 1.001), high * max(room, 1.001)
    room = 0.04 * (high - low) or 0.001
    return low - room, high + room


def baseline_data(study: Study, quantity: Quantity) -> list[dict[str, Any]]:
    """Return the rules that runs are measured by: one where there is no change or, of a metric itself, the baselines.

    Baselines of the same config stand once.
    """
    if quantity.nothing is not None:
        said = "baseline" if study.has_baseline else "no change"
        return [{"series": said, "y": quantity.nothing, "dash": list(BASELINE_DASHES[0]), "value": "no change"}]
    rows = [row for row in study.rows if row.is_baseline and quantity.estimate([row])]
    names = varying(study.results.shown, rows)
    drawn: dict[str, dict[str, Any]] = {}
    for row in rows:
        text = f"baseline, {name_rows([row], names)}" if names else "baseline"
        estimate = quantity.estimate([row])
        if estimate is None or text in drawn:  # a repetition
            continue
        dash = list(BASELINE_DASHES[len(drawn) % len(BASELINE_DASHES)])
        drawn[text] = {"series": text, "y": estimate.value, "dash": dash, "value": estimate.text}
        if estimate.low is not None:
            drawn[text] |= {"low": estimate.low, "high": estimate.high}
    return list(drawn.values())


def baseline_layers(ink: str, baselines: Sequence[dict[str, Any]], y: Spec) -> list[Spec]:
    """Return a rule for each baseline, and a band of one standard error about it; their data are named baselines."""
    if not baselines:
        return []
    band = {"type": "rect", "color": ink, "opacity": 0.1}
    rule = {"type": "rule", "color": ink, "strokeWidth": 1.3}
    dashes = by_series([base["series"] for base in baselines], [base["dash"] for base in baselines])
    tips = tooltip({"series": "line", "value": "value"})
    layers: list[Spec] = [{"mark": rule, "encoding": {"y": y, "strokeDash": dashes, "tooltip": tips}}]
    if any("low" in base for base in baselines):
        layers.insert(0, {"mark": band, "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}}})
    return [{"data": {"name": "baselines"}, "layer": layers, "resolve": {"scale": {"strokeDash": "independent"}}}]


def ends_of(estimate: Estimate, is_log: bool, least: float) -> dict[str, float]:
    """Return the ends of an interval as fields of a datum; one that reaches zero ends below the axis of logarithms."""
    if estimate.low is None or estimate.high is None:
        return {}
    return {"low": max(estimate.low, least / 2) if is_log else estimate.low, "high": estimate.high}


def varying(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the knobs that differ among these rows; one that varies elsewhere would only lengthen every label."""
    return [name for name in names if len({label(row.knobs.get(name, "")) for row in rows}) > 1]
