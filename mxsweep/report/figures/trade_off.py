"""Draw what bits buy: effective bits per weight against perplexity, and the runs that no other beats in both."""

import math
from collections.abc import Sequence
from typing import Any

from mxsweep.report.figures.figure import (
    HIDDEN,
    SHOWN,
    Figure,
    LegendEntry,
    Spec,
    channel,
    error_bars,
    numbers_of,
    points,
)
from mxsweep.report.figures.line_points import MOST_LINES
from mxsweep.report.figures.look import look
from mxsweep.report.figures.quantity import (
    baseline_data,
    baseline_layers,
    describe_difference,
    is_log,
    metric_quantity,
    y_axis,
)
from mxsweep.report.wording import format_value, metric_cell, size
from mxsweep.results.metrics import betterness
from mxsweep.results.remedies import is_remedy, remedy_text
from mxsweep.results.rows import Row, label
from mxsweep.study.group_study import Study

# Knobs that move a point along one curve; the others tell curves apart.
MARGIN = 0.06  # of the range of bits, left and right of it
MOST_NUMBERED = 12  # runs of the front that are told apart by numbers in the figure
ALONG = ("block_size", "scale_bits")
TIPS = {
    "run": "run",
    "config": "config",
    "bits_text": "bits per weight",
    "difference": "against the baseline",
    "also": "same place",
}
FEW_LINES = 8  # combinations of knobs, remedies among them, that are told apart one by one
FRONT_DASH = (1.0, 0.0)


def trade_off_figure(study: Study) -> Figure | None:
    """Return the figure; None where no quantized run says how many bits its weights take, or has a known metric."""
    metric = study.loss_metric
    rows = [
        row
        for row in study.rows
        if not row.is_baseline
        and row.bits_per_weight is not None
        and math.isfinite(row.metrics.get(metric or "", math.nan))
    ]
    if metric is None or not rows:
        return None
    quantity = metric_quantity(metric, study.rows)
    series = _series(study, rows)
    names = list(dict.fromkeys(series))
    baselines = baseline_data(study, quantity)
    better = "low" if betterness(metric) < 0 else "high"
    entries = [LegendEntry(name, look(index), joined=False) for index, name in enumerate(names)]
    if len(study.front) > 1:
        entries.append(LegendEntry("Pareto front", dash=FRONT_DASH))
    entries += [LegendEntry(base["series"], dash=tuple(base["dash"])) for base in baselines]
    front = [row.run.path for row in study.front]
    notes = [
        f"{index}: {study.config_text(row)}: {format_value(row.bits_per_weight)} bits, "
        f"{quantity.title} {metric_cell(row, metric)}"
        for index, row in enumerate(study.front, 1)
    ]
    return Figure(
        stem="_".join(part for part in ("tradeoff", study.group.slug) if part),
        title=f"Effective bits per weight vs {quantity.title}",
        subtitle=study.group.title,
        caption=(
            f"Effective bits per weight, scales included, keys and values not counted, against {quantity.title}: "
            f"{better} and left is better. No run beats one of the Pareto front in both; its runs, from few bits to "
            "many, are listed below."
            f"{_baseline_bits(study)}"
        ),
        build=lambda ink: _chart(ink, study, metric, rows, series, names, baselines),
        entries=entries,
        columns=["run", "config", "bits per weight", "parameters, MB", quantity.title, "on the front"],
        cells=[
            [
                row.run.run_id,
                study.config_text(row),
                format_value(row.bits_per_weight),
                size(row.parameter_bytes),
                metric_cell(row, metric),
                str(front.index(row.run.path) + 1) if row.run.path in front else "no",
            ]
            for row in rows
        ],
        about="trade-off",
        notes=notes,
        wide=True,
    )


def _series(study: Study, rows: Sequence[Row]) -> list[str]:
    """Name each row's curve: by the knobs but for ALONG or, with too many combinations, by its remedies or format.

    Where remedies were swept, they are what the figure is about, and few combinations are many.
    """
    names = [name for name in study.swept if name not in ALONG]
    most = FEW_LINES if any(map(is_remedy, names)) else MOST_LINES

    def texts(choice: Sequence[str]) -> list[str]:
        return [", ".join(f"{name}={label(row.knobs[name])}" for name in choice if name in row.knobs) for row in rows]

    choices = [(texts(names), most)]
    if any(map(is_remedy, names)):
        choices.append(([remedy_text(row.knobs) for row in rows], MOST_LINES))
    choices += [(texts(["format", "kv_quant"]), MOST_LINES), (texts(["format"]), MOST_LINES)]
    chosen = next((series for series, most in choices if len(set(series)) <= most), [""] * len(rows))
    return [text or "quantized" for text in chosen]


def _baseline_bits(study: Study) -> str:
    bits = {format_value(row.bits_per_weight) for row in study.rows if row.is_baseline and row.bits_per_weight}
    return f" The baseline, whose weights take {' or '.join(sorted(bits))} bits, is a rule." if bits else ""


def _chart(
    ink: str,
    study: Study,
    metric: str,
    rows: Sequence[Row],
    series: Sequence[str],
    names: Sequence[str],
    baselines: Sequence[dict[str, Any]],
) -> Spec:
    quantity = metric_quantity(metric, study.rows)
    log = is_log(quantity, [row.metrics[metric] for row in rows] + [base["y"] for base in baselines])
    bits = [row.bits_per_weight or 0.0 for row in rows]
    room = MARGIN * (max(bits) - min(bits)) or MARGIN
    scale = {"domain": [min(bits) - room, max(bits) + room], "zero": False, "nice": False}
    x = channel("bits", "quantitative", scale=scale, axis={"tickCount": 10}, title="effective bits per weight")
    y = channel("y", "quantitative", **y_axis(quantity, log))
    looks = [look(index) for index in range(len(names))]
    data = _data(study, metric, rows, series, names, log)
    front = [
        {"bits": row.bits_per_weight, "y": row.metrics[metric], "number": str(index)}
        for index, row in enumerate(study.front, 1)
    ]
    numbered = len(front) <= MOST_NUMBERED
    step = {"type": "line", "color": ink, "strokeWidth": 1.2, "interpolate": "step-after"}
    # Below a point and left of it nothing else can be: the front's other runs are above, or right.
    number = {"type": "text", "color": ink, "align": "right", "baseline": "top", "dx": -7, "dy": 6, "fontSize": 11}
    text = {"x": x, "y": y, "text": channel("number")}
    bars = [error_bars(x, y, names, looks)] if any("low" in datum for datum in data) else []
    marks = points(x, y, names, looks, TIPS | {"value": quantity.title})
    return {
        "datasets": {"points": data, "baselines": list(baselines), "front": front},
        "params": HIDDEN,
        "layer": [
            *baseline_layers(ink, baselines, y, quantity),
            {"data": {"name": "front"}, "mark": step, "encoding": {"x": x, "y": y}},
            {"data": {"name": "points"}, "transform": SHOWN, "layer": [*bars, marks]},
            *([{"data": {"name": "front"}, "mark": number, "encoding": text}] if numbered else []),
        ],
    }


def _data(
    study: Study, metric: str, rows: Sequence[Row], series: Sequence[str], names: Sequence[str], log: bool
) -> list[dict[str, Any]]:
    at: dict[tuple[Any, float], list[Row]] = {}
    for row in rows:
        at.setdefault((row.bits_per_weight, row.metrics[metric]), []).append(row)
    least = min((row.metrics[metric] for row in rows if row.metrics[metric] > 0), default=1.0)
    data = []
    for row, name in zip(rows, series, strict=True):
        value, error = row.metrics[metric], row.metrics.get(f"{metric}_stderr", math.nan)
        others = [study.config_text(other) for other in at[row.bits_per_weight, value] if other is not row]
        datum: dict[str, Any] = {
            "bits": row.bits_per_weight,
            "y": value,
            "series": name,
            "run": row.run.run_id,
            "config": study.config_text(row),
            "bits_text": format_value(row.bits_per_weight),
            "value": metric_cell(row, metric),
            "difference": describe_difference(study, row, metric) or "unknown",
            "also": "; ".join(others) or "none",
        } | numbers_of(look(names.index(name)))
        if math.isfinite(error) and error > 0:
            datum |= {"low": max(value - error, least / 2) if log else value - error, "high": value + error}
        data.append(datum)
    return data
