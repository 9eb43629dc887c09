"""Take what several runs answered to the same examples, one quantity of it, to be compared as sums and shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mxsweep.results.outcomes import Outcomes
from mxsweep.results.rows import Row
from mxsweep.statistics.paired_tests import ShareClosed, estimate_share_closed
from mxsweep.study.comparison import align_outcomes

LOG_PERPLEXITY, MARGIN, ACCURACY = "log-perplexity", "margin", "accuracy"


@dataclass(frozen=True, eq=False)
class PairedValues:
    """Hold what several runs answered to the same examples, which differ from one another.

    Attributes:
        values: of each run, (n,) float64, finite, more is better: log-likelihoods (nats), margins (nats), or 1 for a
            right answer and 0 for a wrong one.
        weights: (n,) of the examples; None for 1 each.
    """

    values: list[np.ndarray]
    weights: np.ndarray | None


def paired_values(rows: Sequence[Row], quantity: str = LOG_PERPLEXITY) -> PairedValues | None:
    """Return the runs' values of a quantity on the same examples; None unless all are known, and finite."""
    outcomes = align_outcomes(rows)
    if any(row.run.path not in outcomes for row in rows):
        return None
    values = [_values(outcomes[row.run.path], quantity) for row in rows]
    known = [each for each in values if each is not None and np.isfinite(each).all()]
    weights = outcomes[rows[0].run.path].weights if quantity == LOG_PERPLEXITY else None
    if len(known) < len(values) or not _make_sense(weights):
        return None
    return PairedValues(known, weights)


def compare_share_closed(row: Row, plain: Row, baseline: Row) -> ShareClosed | None:
    """Estimate which share of the gap in log-perplexity from `plain` to its baseline `row` closes; None if unknown."""
    paired = paired_values([baseline, plain, row])
    if paired is None:
        return None
    base, rounded, remedied = paired.values
    return estimate_share_closed(base, rounded, remedied, paired.weights)


def _values(outcomes: Outcomes, quantity: str) -> np.ndarray | None:
    if quantity == ACCURACY:
        return None if outcomes.correct is None else outcomes.correct.astype(np.float64)
    return outcomes.margin if quantity == MARGIN else outcomes.loglikelihood


def _make_sense(weights: np.ndarray | None) -> bool:
    """Return whether weights of examples can be those of a mean."""
    return weights is None or bool(0 < weights.sum() < np.inf and (weights >= 0).all())
