"""Read what a comparison of two runs says of one metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mxsweep.results.metrics import LOSS, betterness, is_loss, is_margin, is_perplexity

if TYPE_CHECKING:  # comparing takes scipy, and who only writes numbers does without it
    from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference
    from mxsweep.study.comparison import Comparison

    Paired = AccuracyDifference | MeanDifference


@dataclass(frozen=True)
class MetricTest:
    """Hold what a comparison says of one metric.

    Attributes:
        paired: the difference example by example; None where it was not compared.
        p: adjusted by Holm's method.
        significant: whether p is below 0.05.
        above_floor: whether the difference exceeds the numerical noise; None where that was not measured.
    """

    paired: Paired | None = None
    p: float | None = None
    significant: bool | None = None
    above_floor: bool | None = None

    @property
    def tells_apart(self) -> bool:
        """Return whether the two differ by more than chance, and more than the numerical noise where it is known."""
        return bool(self.significant) and self.above_floor is not False


def metric_test(comparison: Comparison | None, name: str) -> MetricTest:
    """Return what a comparison says of a metric; nothing of one that was not compared example by example."""
    if comparison is None:
        return MetricTest()
    c = comparison
    if is_perplexity(name) or is_loss(name):
        known = MetricTest(c.perplexity, c.perplexity_p, c.perplexity_significant, c.perplexity_above_floor)
        return known if name in (c.row.ppl_name, LOSS) else MetricTest()
    if is_margin(name):
        return MetricTest(c.margin, c.margin_p, c.margin_significant, c.margin_above_floor)
    known = MetricTest(c.accuracy, c.accuracy_p, c.accuracy_significant, c.accuracy_above_floor)
    return known if name == c.row.accuracy_name else MetricTest()


def as_cost(metric: str, difference: float) -> float:
    """Return a difference as it costs: above 0 where the run is worse."""
    more_is_better = betterness(metric) > 0 and not (is_perplexity(metric) or is_loss(metric))
    return -difference if more_is_better else difference
