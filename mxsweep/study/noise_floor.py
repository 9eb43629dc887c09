"""Estimate the noise floor: how far two runs differ because rounding went another way somewhere, for no other reason.

It is measured by runs that repeated their evaluation under perturbations of the size of a rounding (`noise=n`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mxsweep.results.groups import Group
from mxsweep.results.metrics import MARGIN
from mxsweep.results.rows import Row
from mxsweep.statistics.paired_tests import t_quantile


@dataclass(frozen=True)
class Floor:
    """Hold the largest difference between two runs that numerical noise makes by itself in 95 of 100 cases.

    Attributes:
        accuracy: of accuracies; None where it was not measured.
        log_perplexity: of log-perplexities, nats; None where it was not measured.
        margin: of mean margins, nats; None where it was not measured.
        repeats: perturbed repeats that it was estimated from.
        source: a sentence that says whose repeats these were.
    """

    accuracy: float | None
    log_perplexity: float | None
    repeats: int
    source: str
    margin: float | None = None


@dataclass(frozen=True)
class _Spread:
    """Hold the variance of a metric under perturbation, and its degrees of freedom: one for each repeat."""

    variance: float
    degrees: int
    pooled: bool = False

    @staticmethod
    def from_values(values: Sequence[float]) -> "_Spread | None":
        """Estimate a spread; None from fewer than two values, or where one is not finite."""
        if len(values) < 2 or not all(map(math.isfinite, values)):
            return None
        return _Spread(float(np.var(values, ddof=1)), len(values) - 1)


_EXACT = _Spread(0.0, 0)
_METRICS: dict[str, Callable[[Row], str | None]] = {
    "accuracy": lambda row: row.accuracy_name,
    "log_perplexity": lambda row: row.ppl_name,
    "margin": lambda row: MARGIN,
}


@dataclass(frozen=True)
class Noise:
    """Hold the spreads that a group's repeats show: pooled ones by metric and whether of baselines."""

    pools: dict[tuple[str, bool], _Spread]
    _known: dict[tuple[Path, str | None, str], _Spread | None] = field(default_factory=dict)

    @staticmethod
    def from_group(group: Group) -> "Noise":
        """Pool the spreads of a group's runs."""
        # By their values: repeats that came out the same, of knobs that change nothing, were measured once.
        spreads: dict[tuple[str, bool], dict[tuple[float, ...], _Spread]] = {}
        for row in group.rows:
            for metric in _METRICS:
                values = _values(row, metric)
                if (spread := _Spread.from_values(values)) is not None:
                    spreads.setdefault((metric, row.is_baseline), {})[tuple(values)] = spread
        return Noise({key: _pooled(list(each.values())) for key, each in spreads.items()})

    def spread(self, row: Row, metric: str) -> _Spread | None:
        """Return a metric's spread, the row's own or the pool's; None where neither was measured."""
        key = row.run.path, row.task, metric
        if key not in self._known:  # each run is in many pairs
            self._known[key] = self._spread(row, metric)
        return self._known[key]

    def _spread(self, row: Row, metric: str) -> _Spread | None:
        of_row, pool = _Spread.from_values(_values(row, metric)), self.pools.get((metric, row.is_baseline))
        # Repeats that happen to agree do not say that there is no noise.
        spread = pool if of_row is None or (of_row.variance == 0 and pool is not None) else of_row
        return _EXACT if spread is None and row.is_baseline else spread

    def floor(self, row: Row, other: Row) -> Floor | None:
        """Estimate the noise floor of the difference of two runs of the group; None if no repeat of either was made.

        The standard deviation of a metric comes from a run's own perturbed repeats and its unperturbed result (k + 1
        values), or where it has none, or they happen to agree, from those of the group's runs, pooled; quantized runs
        and baselines apart, since they differ in it by orders of magnitude. A baseline with no repeats anywhere counts
        as exact. The floor is t sqrt(sd_a^2 + sd_b^2), with the 97.5 % quantile of Student's t for as many degrees of
        freedom as there are repeats behind it (of two runs with their own, Welch's), and of accuracies at least one
        example.
        """
        pairs = {metric: (self.spread(row, metric), self.spread(other, metric)) for metric in _METRICS}
        floors = {metric: _floor(*pair) for metric, pair in pairs.items()}
        measured = next((pairs[metric] for metric, floor in floors.items() if floor is not None), None)
        if measured is None:
            return None
        ours, theirs = (spread for spread in measured if spread is not None)
        repeats = ours.degrees + theirs.degrees
        if ours.pooled and theirs.pooled and row.is_baseline == other.is_baseline:
            repeats = ours.degrees
            source = f"{_repeats(repeats)} of the {_kind(row)} runs of this group, pooled."
        else:
            source = f"{_whose(ours, row)}; {_whose(theirs, other)}."
        accuracy = floors["accuracy"]
        if accuracy is not None and row.n:
            accuracy = max(accuracy, 1 / row.n)  # one example is the least that noise can change
        said = source[0].upper() + source[1:]
        return Floor(accuracy, floors["log_perplexity"], repeats, said, floors["margin"])


def _values(row: Row, metric: str) -> list[float]:
    """Return the unperturbed metric and its repeats, of a perplexity the logarithms; empty where there is no repeat."""
    name = _METRICS[metric](row)
    repeats = row.noise.get(name or "", [])
    if not repeats or name not in row.metrics:
        return []
    values = [row.metrics[name], *repeats]
    if metric == "log_perplexity":
        return [math.log(value) for value in values] if all(value > 0 for value in values) else []
    return values


def _pooled(spreads: Sequence[_Spread]) -> _Spread:
    degrees = sum(spread.degrees for spread in spreads)
    return _Spread(sum(spread.variance * spread.degrees for spread in spreads) / degrees, degrees, pooled=True)


def _floor(a: _Spread | None, b: _Spread | None) -> float | None:
    if a is None or b is None or a.degrees + b.degrees == 0:
        return None
    variance = a.variance + b.variance
    return t_quantile(_degrees(a, b)) * math.sqrt(variance) if variance else 0.0


def _degrees(a: _Spread, b: _Spread) -> float:
    """Return a sum's degrees of freedom: Welch's of independent variances, else the smaller number of those above 0."""
    if a.pooled or b.pooled:
        return min(spread.degrees for spread in (a, b) if spread.variance)
    squares = sum(spread.variance**2 / spread.degrees for spread in (a, b) if spread.degrees)
    return (a.variance + b.variance) ** 2 / squares


def _whose(spread: _Spread, row: Row) -> str:
    if spread.degrees == 0:
        return f"the baseline {row.run.run_id} has no repeats and counts as exact"
    if spread.pooled:
        return f"{_repeats(spread.degrees)} of the {_kind(row)} runs of this group, pooled, for {row.run.run_id}"
    return f"{_repeats(spread.degrees)} of {row.run.run_id}"


def _repeats(count: int) -> str:
    return f"{count} perturbed repeat{'s' * (count != 1)}"


def _kind(row: Row) -> str:
    return "unquantized" if row.is_baseline else "quantized"
