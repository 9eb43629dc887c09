"""Test differences of two runs that answered the same examples: intervals and p values that need no simulation.

Arrays are of shape (n,), an element an example, in the same order in both runs; a difference is b minus a. Intervals
are 95 % and two-sided. Log-likelihoods and differences of log-perplexities are in nats. What cannot be computed (an
interval from one example, anything from NaN) is NaN, never a guess.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

ALPHA = 0.05  # a difference is significant whose p is below; intervals are of the rest, 95 %
_UPPER = 1 - ALPHA / 2
Z = 1.959963984540054  # the normal distribution's quantile of _UPPER


@dataclass(frozen=True)
class AccuracyDifference:
    """Hold how two runs' answers to the same examples differ.

    Attributes:
        n: examples.
        only_a, only_b: examples that only this run got right.
        difference: accuracy of b minus that of a.
        low, high: interval of the difference.
        p: of McNemar's exact test, two-sided, unadjusted.
    """

    n: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class MeanDifference:
    """Hold how the means of two runs' values of the same examples differ, as of margins.

    Attributes:
        n: examples.
        difference: mean of b minus that of a.
        low, high: interval of the difference.
        p: two-sided, of the paired t test, unadjusted.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float


class LogPerplexityDifference(MeanDifference):
    """Hold how two runs' log-likelihoods of the same examples differ.

    The difference is the log-perplexity of b minus that of a, nats a unit of the perplexity (example, word or byte);
    above 0 where b is worse. exp of it is the ratio of the perplexities.
    """


def compare_accuracy(a: np.ndarray, b: np.ndarray) -> AccuracyDifference:
    """Compare which examples two runs got right; ``a`` and ``b`` are bool.

    The test is McNemar's in its exact form: of the examples that one run alone got right, each is as likely either's
    (McNemar 1947; the exact form in Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodol. 13:91). The interval is
    Wald's with Bonett and Price's adjustment (2012, J. Educ. Behav. Stat. 37:479), which Fagerland, Lydersen and Laake
    (2014, Stat. Med. 33:2850) recommend: unlike the plain one it does not shrink to a point where runs agree
    everywhere. Test and interval are of different making, so that near 0.05 one may exclude 0 and the other not.

    Raises ValueError for arrays of different shape.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    n = _count(a, b)
    only_a, only_b = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
    if n == 0:
        return AccuracyDifference(0, 0, 0, math.nan, math.nan, math.nan, math.nan)
    adjusted_a, adjusted_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    center = adjusted_b - adjusted_a
    half = Z * math.sqrt((adjusted_a + adjusted_b - center**2) / (n + 2))
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return AccuracyDifference(n, only_a, only_b, (only_b - only_a) / n, low, high, mcnemar_p(only_a, only_b))


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Return the two-sided p value of McNemar's exact test: twice the smaller binomial tail, at most 1."""
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def compare_log_perplexity(a: np.ndarray, b: np.ndarray, weights: np.ndarray | None = None) -> LogPerplexityDifference:
    """Compare two runs' log-likelihoods of the examples, in nats.

    A log-perplexity is -sum(log-likelihood) / sum(weight), with the words (or bytes) of an example as its weight, or
    1 each. The difference is then a ratio of sums over examples, whose standard error is that of the linearized ratio
    (Cochran, Sampling Techniques, 3rd ed., eq. 6.9); with equal weights it is exactly that of the paired t test. The
    interval uses Student's t with n - 1 degrees of freedom.

    With one example, interval and p are NaN; with NaN or two infinities among the log-likelihoods all is; an infinite
    difference has no interval either. Where every example differs by the same (sd = 0), the interval is a point and p
    is 1 for no difference, else 0.

    Raises ValueError for arrays of different shape, and for weights that are negative, not finite or all 0.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n = _count(a, b)
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if n == 0:
        return LogPerplexityDifference(0, math.nan, math.nan, math.nan, math.nan)
    _count(a, w)
    total = float(w.sum())
    if not (math.isfinite(total) and total > 0 and (w >= 0).all()):
        raise ValueError("weights must be finite and at least 0, and one above 0")
    with np.errstate(invalid="ignore"):
        worse = a - b  # what b's log-perplexity has more, an example
    difference = float(worse.sum()) / total
    if n == 1 or not math.isfinite(difference):
        return LogPerplexityDifference(n, difference, math.nan, math.nan, math.nan)
    residuals = worse - difference * w
    stderr = math.sqrt(n / (n - 1) * float(np.dot(residuals, residuals))) / total
    return LogPerplexityDifference(n, difference, *_interval_and_p(difference, stderr, n - 1))


def _interval_and_p(difference: float, stderr: float, degrees: float) -> tuple[float, float, float]:
    """Return low, high and p of a difference with a standard error of these degrees of freedom."""
    if stderr == 0:
        return difference, difference, 1.0 if difference == 0 else 0.0
    half = t_quantile(degrees) * stderr
    return difference - half, difference + half, 2 * float(stdtr(degrees, -abs(difference) / stderr))


def compare_means(a: np.ndarray, b: np.ndarray) -> MeanDifference:
    """Compare the means of two runs' values of the examples, with the interval and p value of the paired t test.

    What cannot be computed is NaN, as in `compare_log_perplexity`, of which this is the case of equal weights: a
    log-perplexity is minus a mean. Raises ValueError for arrays of different shape.
    """
    return MeanDifference(**vars(compare_log_perplexity(b, a)))


@dataclass(frozen=True)
class Residual:
    """Hold what is left of values (k, n) of k treatments on n examples when both have been accounted for.

    Attributes:
        variance: of one value.
        degrees: of freedom; of k treatments in n blocks without a missing cell (k - 1) (n - 1).
    """

    variance: float
    degrees: int


def residual_of(values: np.ndarray) -> Residual | None:
    """Return the residual of a two-way layout without replication, (k, n), NaN where a cell is missing.

    It is what treatments and blocks, fitted by least squares to the cells that there are, leave; None where nothing is
    left to estimate it by. With few examples, as a handful of seeds, it says more of the spread of a difference than
    the two runs by themselves do, where all treatments spread alike (Montgomery, Design and Analysis of Experiments,
    8th ed., 4.1).
    """
    treatments, blocks = np.nonzero(~np.isnan(values))
    k, n = values.shape
    design = np.zeros((len(treatments), k + n))
    cells = np.arange(len(treatments))
    design[cells, treatments] = design[cells, k + blocks] = 1.0
    known = values[treatments, blocks]
    known = known - known.mean() if len(known) else known
    fitted, _, rank, _ = np.linalg.lstsq(design, known, rcond=None)
    degrees = len(known) - int(rank)
    if degrees < 1:
        return None
    return Residual(float(np.square(known - design @ fitted).sum()) / degrees, degrees)


def contrast_given(values: np.ndarray, coefficients: Sequence[float], residual: Residual) -> MeanDifference:
    """Test a contrast of the means of treatments, values (m, n) in the same n blocks, of which the residual is known.

    Coefficients, m of them, sum to 0: -1 and 1 of a difference, four of a difference of two.
    """
    n = values.shape[1]
    of_treatments = np.asarray(coefficients, dtype=np.float64)
    stderr = math.sqrt(residual.variance * float(np.square(of_treatments).sum()) / n)
    difference = float(of_treatments @ values.mean(1))
    return MeanDifference(n, difference, *_interval_and_p(difference, stderr, residual.degrees))


@dataclass(frozen=True)
class ShareClosed:
    """Hold the share that a remedy closes of the gap that quantization opens, in log-perplexity.

    Attributes:
        n: examples.
        share: 1 closes all of it, 0 nothing, below 0 widens it.
        low, high: interval of the share.
    """

    n: int
    share: float
    low: float
    high: float


def estimate_share_closed(
    base: np.ndarray, plain: np.ndarray, remedy: np.ndarray, weights: np.ndarray | None = None
) -> ShareClosed | None:
    """Estimate 1 - (L_remedy - L_base) / (L_plain - L_base), L the log-perplexities of three runs, examples the same.

    Arguments are log-likelihoods, (n,), in nats, and the examples' weights as `compare_log_perplexity` takes them,
    which cancel in the share. It is one minus a ratio of two sums over the examples, and its interval that of the
    linearized ratio (the delta method; Cochran, Sampling Techniques, 3rd ed., eq. 6.9), with Student's t. That holds
    where the denominator is well away from 0, and without a gap there is nothing to close: None unless the whole
    interval of the gap is above 0.
    """
    gap = compare_log_perplexity(base, plain, weights)
    if not gap.low > 0:
        return None
    lost, left = (np.asarray(base, dtype=np.float64) - np.asarray(each, dtype=np.float64) for each in (plain, remedy))
    total = float(lost.sum())
    ratio = float(left.sum()) / total
    if not math.isfinite(ratio):
        return None
    residuals = left - ratio * lost
    n = gap.n
    half = t_quantile(n - 1) * math.sqrt(n / (n - 1) * float(np.dot(residuals, residuals))) / total
    return ShareClosed(n, 1 - ratio, 1 - ratio - half, 1 - ratio + half)


def t_quantile(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t: half a 95 % interval, in standard errors."""
    return float(stdtrit(degrees, _UPPER))


def holm(p: Sequence[float]) -> list[float]:
    """Return adjusted p values, in the order given (Holm 1979, Scand. J. Stat. 6:65).

    Rejecting those below 0.05 keeps the probability of any false one below 5 %, however the tests depend on each other.
    A NaN stays NaN and is not counted in the family.
    """
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    adjusted = [math.nan] * len(p)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def _count(a: np.ndarray, b: np.ndarray) -> int:
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}: both must be (n,)")
    return len(a)
