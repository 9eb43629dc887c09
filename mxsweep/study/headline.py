"""Choose the runs of a group that its headline names, and say how.

    baseline             nothing quantized; what the others are compared with
    most accurate        the best main metric among the quantized runs
    smallest             the fewest bytes of parameters; of equals the most accurate
    best trade-off       the knee of the Pareto front of effective bits per weight and loss, see `knee`
    fastest to simulate  the most examples per second on the computer that simulated the format

A run whose loss is NaN or infinite is named only where there is no other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mxsweep.results.groups import Group
from mxsweep.results.metrics import betterness, is_loss, is_margin, short_title
from mxsweep.results.rows import Row

KNEE = (
    "the knee of the Pareto front: with bits per weight (without keys and values) and {loss} both scaled to 0…1 over "
    "the front, the run with the smallest sum"
)
SHORT_FRONT = (
    "of the Pareto front of bits per weight (without keys and values) and {loss}, which has {count} here, the most "
    "accurate"
)


@dataclass(frozen=True)
class Pick:
    """Hold a run that the headline names, the baseline that it is compared with, and how it was chosen."""

    title: str
    row: Row
    baseline: Row | None
    chosen: str = ""


def choose_headline(group: Group) -> list[Pick]:
    """Choose the baselines, and of a group's quantized runs those that the module's table names, where there is one."""
    quantized = [row for row in group.rows if not row.is_baseline]
    picks = [
        pick
        for pick in (
            _best(group, quantized),
            _trade_off(group),
            _smallest(group, quantized),
            _fastest(group, quantized),
        )
        if pick is not None
    ]
    references = [pick.baseline for pick in picks] or [row for row in group.rows if row.is_baseline][:1]
    baselines = {
        row.run.path: Pick("baseline", row, None, "the same model and task with nothing quantized")
        for row in references
        if row is not None
    }
    return [*baselines.values(), *picks]


def loss_metric(group: Group) -> str | None:
    """Return the metric that the trade-off is drawn with: a perplexity or margin if any, which tell more runs apart."""
    known = [name for name in group.metric_names() if betterness(name)]
    continuous = (name for name in known if betterness(name) < 0 or is_margin(name))
    return next(continuous, known[0] if known else None)


def loss(row: Row, metric: str) -> float:
    """Return what is lower the better a run is; NaN if that is not known.

    The log of a perplexity (nats), a loss (nats), minus a margin (nats), or 1 minus an accuracy.
    """
    value = row.metrics.get(metric, math.nan)
    if is_margin(metric):
        return -value
    if is_loss(metric):
        return value
    if betterness(metric) > 0:
        return 1 - value
    return math.log(value) if 0 < value < math.inf else math.nan


def loss_name(metric: str) -> str:
    """Name `loss` as a sentence does."""
    if is_margin(metric):
        return f"−{metric}"
    if is_loss(metric):
        return metric
    return f"1 − {metric}" if betterness(metric) > 0 else f"log {short_title(metric)}"


def pareto_front(group: Group) -> list[Row]:
    """List the quantized runs that no other beats in effective bits per weight and in loss, from few bits to many.

    Of runs that are equal in both, the first stands for all.
    """
    metric = loss_metric(group)
    if metric is None:
        return []
    front: list[Row] = []
    candidates = [(row.bits_per_weight, loss(row, metric), row) for row in group.rows if not row.is_baseline]
    for _bits, cost, row in sorted(
        ((bits, cost, row) for bits, cost, row in candidates if bits is not None and math.isfinite(cost)),
        key=lambda point: point[:2],
    ):
        if not front or cost < loss(front[-1], metric):
            front.append(row)
    return front


def knee(front: Sequence[Row], metric: str) -> Row:
    """Find the run of a front of three or more with the smallest sum of bits and loss, each scaled to 0…1 over it.

    It is the one farthest below the straight line between the front's ends.
    """
    costs = [loss(row, metric) for row in front]
    bits = [row.bits_per_weight or 0.0 for row in front]

    def place(index: int) -> float:
        return (bits[index] - bits[0]) / (bits[-1] - bits[0]) + (costs[index] - costs[-1]) / (costs[0] - costs[-1])

    return front[min(range(len(front)), key=place)]


def _best(group: Group, rows: Sequence[Row]) -> Pick | None:
    metric = group.main_metric()
    measured = [row for row in rows if math.isfinite(row.metrics.get(metric or "", math.nan))]
    if metric is None or not measured:
        return None
    if is_loss(metric) and all(group.baseline_for(row) for row in measured):
        return _least_lost(group, metric, measured)
    best = max(measured, key=lambda row: betterness(metric) * row.metrics[metric])
    title = "most accurate" if betterness(metric) > 0 else f"lowest {short_title(metric)}"
    equals = sum(row.metrics[metric] == best.metrics[metric] for row in measured) - 1
    title += f" ({equals} more equal it)" if equals else ""
    return Pick(title, best, group.baseline_for(best), f"the best {metric} of the quantized runs, the first of equals")


def _least_lost(group: Group, metric: str, rows: Sequence[Row]) -> Pick:
    """Return the run that loses least to its own baseline, which has the same seed: some seeds are luckier."""

    def lost(row: Row) -> float:
        baseline = group.baseline_for(row)
        change = row.metrics[metric] - (baseline.metrics.get(metric, math.nan) if baseline else math.nan)
        return math.inf if math.isnan(change) else change

    best = min(rows, key=lost)
    chosen = f"of the quantized runs the lowest {metric} against the baseline of the same seed, the first of equals"
    return Pick(f"lowest {metric}", best, group.baseline_for(best), chosen)


def _trade_off(group: Group) -> Pick | None:
    front, metric = pareto_front(group), loss_metric(group)
    if not front or metric is None:
        return None
    if len(front) > 2:
        row, chosen = knee(front, metric), KNEE.format(loss=loss_name(metric))
    else:
        count = "one run" if len(front) == 1 else "two runs"
        row, chosen = front[-1], SHORT_FRONT.format(loss=loss_name(metric), count=count)
    return Pick("best trade-off", row, group.baseline_for(row), chosen)


def _smallest(group: Group, rows: Sequence[Row]) -> Pick | None:
    sized = [(row.parameter_bytes, row) for row in _sound(group, rows) if row.parameter_bytes is not None]
    if not sized:
        return None
    metric = loss_metric(group)

    def cost(row: Row) -> float:
        value = loss(row, metric) if metric else math.nan
        return math.inf if math.isnan(value) else value

    _, row = min(sized, key=lambda pair: (pair[0], cost(pair[1])))
    return Pick(
        "smallest", row, group.baseline_for(row), "the fewest bytes of parameters, scales included; of equals the best"
    )


def _sound(group: Group, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows with a finite loss; all, if none has one."""
    metric = loss_metric(group)
    return [row for row in rows if metric and math.isfinite(loss(row, metric))] or rows


def _fastest(group: Group, rows: Sequence[Row]) -> Pick | None:
    timed = [row for row in rows if row.examples_per_sec is not None and math.isfinite(row.examples_per_sec)]
    if not timed:
        return None
    row = max(_sound(group, timed), key=lambda row: row.examples_per_sec or 0.0)
    chosen = "the most examples per second on this computer, which says nothing of hardware that has the format"
    return Pick("fastest to simulate", row, group.baseline_for(row), chosen)
