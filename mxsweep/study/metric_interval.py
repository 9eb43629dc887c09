"""Say how well a run by itself tells a metric: the 95 % interval of its value, not of a difference to another run."""

import math

from mxsweep.results.metrics import is_perplexity, known_metric
from mxsweep.statistics.paired_tests import Z

Interval = tuple[float, float]


def metric_interval(metric: str, value: float, stderr: float, examples: int | None) -> Interval | None:
    """Return the two-sided 95 % interval (low, high) of a metric's value; None where that or the error is not finite.

    Of a share of right answers Wilson's, of a perplexity that of its logarithm, of others the normal one.

    Args:
        metric: its name, as a record has it.
        stderr: its standard error.
        examples: that it was measured on; None where only the standard error is known, as of a group of tasks.
    """
    if not (math.isfinite(value) and math.isfinite(stderr)):
        return None
    if is_perplexity(metric):
        return _of_perplexity(value, stderr)
    if known_metric(metric).counts and 0 <= value <= 1:
        n = examples or _examples_with(value, stderr)
        return None if n is None else wilson(value, n)
    return value - Z * stderr, value + Z * stderr


def wilson(share: float, n: float) -> Interval:
    """Return the interval of a share of n that does not leave 0 to 1, and has a width where all or none are right.

    Wilson (1927, J. Am. Stat. Assoc. 22:209), which Brown, Cai and DasGupta (2001, Stat. Sci. 16:101) recommend.
    """
    center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # At the ends it is exact, where center and half differ by rounding.
    return 0.0 if share == 0 else max(0.0, center - half), 1.0 if share == 1 else min(1.0, center + half)


def _examples_with(share: float, stderr: float) -> float | None:
    """Return how many examples give a share this standard error, lm-eval's; None where it is 0."""
    return 1 + share * (1 - share) / stderr**2 if stderr > 0 else None


def _of_perplexity(value: float, stderr: float) -> Interval:
    """Return the interval of the logarithm, as values of the perplexity.

    The logarithm's standard error s is the one of which a log-normal has the standard error that is recorded:
    value e^(s²/2) √(e^(s²) - 1).
    """
    log_stderr = math.sqrt(math.log((1 + math.hypot(1, 2 * stderr / value)) / 2))
    return value * math.exp(-Z * log_stderr), value * math.exp(Z * log_stderr)
