"""Declare the metrics that mxsweep knows: titles, whether more or less is better, and which matters most.

Every other metric that a task reports is shown under its own name, and nothing is concluded from it. lm-eval writes the
name of a filter behind a comma (`exact_match,strict`); a metric with a filter is the metric before the comma.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Metric:
    """Describe one metric.

    Attributes:
        name: as lm-eval reports it.
        rank: above 0 if more is better, below 0 if less is, 0 if nothing is concluded; the greatest matters most.
        short: the title in tables.
        long: the title on axes and in the names of files.
        counts: an example's value says whether it was answered right.
        is_perplexity: an exponential of a mean log-likelihood, compared by ratio.
        is_margin: a mean of differences of log-likelihoods, in nats.
        is_loss: minus a mean log-likelihood of a token, in nats, compared by difference.
        help: what it is, where lm-eval does not define it.
    """

    name: str
    rank: int = 0
    short: str = ""
    long: str = ""
    counts: bool = False
    is_perplexity: bool = False
    is_margin: bool = False
    is_loss: bool = False
    help: str = "the metric, as lm-eval defines it"


MARGIN = "margin"
LOSS = "loss"
METRICS = (
    Metric("acc", 5, long="accuracy", counts=True),
    Metric("acc_norm", 4, counts=True),
    Metric("exact_match", 3, counts=True),
    Metric("f1", 2),
    Metric(
        MARGIN,
        1,
        is_margin=True,
        help="of multiple choice: log-likelihood of the right choice minus the largest of the others', nats, mean",
    ),
    Metric(
        "margin_norm",
        help="the same of log-likelihoods divided by the choices' lengths in characters, as acc_norm has it",
    ),
    Metric("perplexity", -1, short="ppl", is_perplexity=True),
    Metric("word_perplexity", -2, short="word ppl", is_perplexity=True),
    Metric("byte_perplexity", is_perplexity=True),
    Metric(
        LOSS,
        -3,
        is_loss=True,
        help="of a trained model: minus the mean log-likelihood of a token of the held-out sequences, nats",
    ),
)
_BY_NAME = {metric.name: metric for metric in METRICS}
COUNTED = tuple(metric.name for metric in METRICS if metric.counts)  # by rank, the highest first


@lru_cache(maxsize=1024)
def known_metric(name: str) -> Metric:
    """Return a metric's declaration, its filter ignored; an unknown metric gets one that concludes nothing."""
    bare = name.split(",")[0]
    return _BY_NAME.get(bare) or Metric(bare)


def betterness(name: str) -> int:
    """Return a metric's rank; see :class:`Metric`."""
    return known_metric(name).rank


def short_title(name: str) -> str:
    """Return what tables call a metric: a title where one is declared without a filter, or the name itself."""
    known = _BY_NAME.get(name)
    return known.short or name if known else name


def long_title(name: str) -> str:
    """Return what axes and names of files call a metric."""
    known = _BY_NAME.get(name)
    return known.long or name if known else name


def is_perplexity(name: str) -> bool:
    """Return whether a metric is an exponential of a mean log-likelihood."""
    return known_metric(name).is_perplexity


def is_margin(name: str) -> bool:
    """Return whether a metric is a mean of differences of log-likelihoods."""
    return known_metric(name).is_margin


def is_loss(name: str) -> bool:
    """Return whether a metric is minus a mean log-likelihood of a token."""
    return known_metric(name).is_loss


def decimals(name: str) -> int | None:
    """Return to how many decimals a metric is written; None for what its standard error makes meaningful."""
    return 4 if betterness(name) > 0 or is_loss(name) else None


def main_metric(names: Iterable[str]) -> str | None:
    """Return the one of these metrics that matters most, the first by name of equals; None if none is known."""
    return max(filter(betterness, sorted(names)), key=betterness, default=None)


def accuracy_metric(names: Iterable[str]) -> str | None:
    """Return the one of these metrics that counts right answers, the first by name of equals; None if none does."""
    return main_metric(name for name in names if known_metric(name).counts)
