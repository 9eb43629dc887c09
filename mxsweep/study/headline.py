"""Say by which metric runs are ranked."""

import math

from mxsweep.results.groups import Group
from mxsweep.results.metrics import betterness, is_loss, is_margin
from mxsweep.results.rows import Row


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
