"""Paired statistics: against scipy, statsmodels and closed forms, and against what chance does."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from mxsweep.statistics.paired_tests import (
    compare_accuracy,
    compare_log_perplexity,
    estimate_share_closed,
    holm,
    mcnemar_p,
    t_quantile,
)

statsmodels = pytest.importorskip("statsmodels")
from statsmodels.stats.contingency_tables import mcnemar  # noqa: E402
from statsmodels.stats.multitest import multipletests  # noqa: E402


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runs' answers with so many examples of each kind, shuffled."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], b[order]


# The second is the table of the British Prime Minister's approval in Agresti, Categorical Data Analysis.
KNOWN = [(101, 59, 121, 33), (794, 150, 86, 570), (10, 0, 0, 5), (0, 0, 0, 1), (5, 1, 0, 0), (3000, 40, 13, 2100)]


@pytest.mark.parametrize(("both", "only_a", "only_b", "neither"), KNOWN)
def test_mcnemar_of_known_tables(both: int, only_a: int, only_b: int, neither: int) -> None:
    found = compare_accuracy(*answers(both, only_a, only_b, neither))
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True)
    assert (found.only_a, found.only_b, found.n) == (only_a, only_b, both + only_a + only_b + neither)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.difference == pytest.approx((only_b - only_a) / found.n)


def test_mcnemar_of_random_tables() -> None:
    rng = np.random.default_rng(1)
    for most in (4, 40, 1000):
        for only_a, only_b in rng.integers(0, most, (100, 2)):
            if only_a or only_b:
                expected = mcnemar([[7, only_a], [only_b, 9]], exact=True).pvalue
                assert mcnemar_p(int(only_a), int(only_b)) == pytest.approx(expected, rel=1e-9)


def test_runs_that_agree_everywhere_are_no_evidence() -> None:
    found = compare_accuracy(*answers(30, 0, 0, 20))
    assert (found.p, found.difference) == (1.0, 0.0)
    assert found.low == -found.high < 0  # 50 examples do not show that there is no difference at all


def test_the_interval_of_accuracies_by_hand() -> None:
    # Bonett and Price's formula for n = 100, 2 and 12: center 10/102, variance (3/102 + 13/102 - (10/102)^2) / 102.
    found = compare_accuracy(*answers(50, 2, 12, 36))
    half = 1.959963984540054 * math.sqrt((16 / 102 - (10 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((10 / 102 - half, 10 / 102 + half))


@pytest.mark.parametrize(
    ("n", "both", "only_a", "only_b"), [(200, 0.5, 0.1, 0.1), (1000, 0.5, 0.02, 0.05), (60, 0.6, 0.1, 0.02)]
)
def test_the_interval_of_accuracies_covers_the_truth(n: int, both: float, only_a: float, only_b: float) -> None:
    rng = np.random.default_rng(2)
    counts = rng.multinomial(n, [both, only_a, only_b, 1 - both - only_a - only_b], 2000)
    found = [compare_accuracy(*answers(*row)) for row in counts]
    covered = np.mean([each.low <= only_b - only_a <= each.high for each in found])
    assert 0.94 <= covered <= 0.985  # 2000 draws: 0.95 has a standard error of 0.005; the method is a little careful


def test_one_example_and_none() -> None:
    found = compare_accuracy(np.array([True]), np.array([False]))
    assert (found.n, found.difference, found.p) == (1, -1.0, 1.0)
    assert -1 <= found.low < found.high <= 1
    nothing = compare_accuracy(np.array([], bool), np.array([], bool))
    assert nothing.n == 0 and math.isnan(nothing.p) and math.isnan(nothing.difference)


@pytest.mark.parametrize("n", [2, 3, 50, 5153])
def test_log_perplexities_are_compared_as_by_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a = -rng.gamma(0.5, 3, n)
    b = a - rng.normal(0.1, 0.5, n)
    found = compare_log_perplexity(a, b)
    expected = stats.ttest_rel(a, b)  # log-perplexity is minus the mean, so that b minus a is the mean of a - b
    interval = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx(-b.mean() + a.mean(), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)


def test_equal_weights_are_no_weights() -> None:
    rng = np.random.default_rng(3)
    a, b = -rng.gamma(2, 20, (2, 62))
    plain, weighted = compare_log_perplexity(a, b), compare_log_perplexity(a, b, np.full(62, 250.0))
    for name in ("difference", "low", "high"):
        assert getattr(weighted, name) * 250 == pytest.approx(getattr(plain, name), rel=1e-12)
    assert weighted.p == pytest.approx(plain.p, rel=1e-12)


def documents(rng: np.random.Generator, n: int, effect: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-likelihoods of n documents in two runs, and their words: longer ones vary more, and all worsen by effect."""
    words = np.rint(rng.gamma(4, 60, n) + 20)
    hardness = rng.normal(3.5, 0.4, n)
    a = -words * hardness
    b = a - words * rng.normal(effect, 0.05, n) - np.sqrt(words) * rng.normal(0, 0.5, n)
    return a, b, words


def test_the_ratio_is_a_ratio_of_sums() -> None:
    a, b, words = documents(np.random.default_rng(4), 300, 0.02)
    found = compare_log_perplexity(a, b, words)
    assert found.difference == pytest.approx(-b.sum() / words.sum() + a.sum() / words.sum(), rel=1e-10)


def test_the_ratio_agrees_with_a_jackknife() -> None:
    a, b, words = documents(np.random.default_rng(5), 2000, 0.02)
    found = compare_log_perplexity(a, b, words)
    worse, n = a - b, len(a)
    without = (worse.sum() - worse) / (words.sum() - words)
    stderr = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    assert (found.high - found.low) / 2 / t_quantile(n - 1) == pytest.approx(stderr, rel=0.005)


def test_the_ratio_agrees_with_robust_regression_through_the_origin() -> None:
    """sum(d)/sum(w) is the weighted least squares of d on w with weights 1/w, its robust error ours but for n/(n-1)."""
    from statsmodels.regression.linear_model import WLS

    a, b, words = documents(np.random.default_rng(6), 400, 0.02)
    found = compare_log_perplexity(a, b, words)
    fit = WLS(a - b, words, weights=1 / words).fit(cov_type="HC1")
    assert found.difference == pytest.approx(fit.params[0], rel=1e-9)
    assert (found.high - found.low) / 2 / t_quantile(399) == pytest.approx(fit.bse[0], rel=1e-9)


@pytest.mark.parametrize(("n", "least"), [(60, 0.93), (1000, 0.94)])
def test_the_interval_of_the_ratio_covers_the_truth(n: int, least: float) -> None:
    rng = np.random.default_rng(7)
    found = [compare_log_perplexity(*documents(rng, n, 0.02)) for _ in range(2000)]
    covered = np.mean([each.low <= 0.02 <= each.high for each in found])
    assert least <= covered <= 0.965


def test_differences_of_nothing_are_rarely_significant() -> None:
    rng = np.random.default_rng(8)
    p = [compare_log_perplexity(*documents(rng, 62, 0.0)).p for _ in range(2000)]
    assert 0.035 <= np.mean(np.array(p) < 0.05) <= 0.07


def test_equal_runs_and_constant_differences() -> None:
    a = np.array([-1.0, -2.0, -4.0])
    same = compare_log_perplexity(a, a)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    worse = compare_log_perplexity(a, a - 0.5)
    assert (worse.difference, worse.low, worse.high, worse.p) == (0.5, 0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        ([-1.0], [-2.0], 1.0),
        ([-1.0, math.nan], [-1.0, -1.0], math.nan),
        ([-1.0, -1.0], [-1.0, -math.inf], math.inf),
        ([-1.0, -math.inf], [-1.0, -math.inf], math.nan),
        ([], [], math.nan),
    ],
)
def test_what_cannot_be_known_is_nan(a: Sequence[float], b: Sequence[float], difference: float) -> None:
    found = compare_log_perplexity(np.array(a), np.array(b))
    assert found.n == len(a)
    assert found.difference == pytest.approx(difference, nan_ok=True)
    assert all(map(math.isnan, (found.low, found.high, found.p)))


def test_arrays_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        compare_accuracy(np.zeros(2, bool), np.zeros(3, bool))
    with pytest.raises(ValueError, match="shapes"):
        compare_log_perplexity(np.zeros(2), np.zeros(2), np.ones(3))
    for weights in ([0, 0], [1, -1], [1, math.nan], [1, math.inf]):
        with pytest.raises(ValueError, match="weights must be"):
            compare_log_perplexity(np.zeros(2), np.zeros(2), np.array(weights))


def test_holm_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(9)
    for n in (1, 2, 12, 200):
        p = rng.beta(0.3, 2, n).round(3).tolist()  # rounded: some are equal
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_holm_leaves_nan_out() -> None:
    p = [0.04, math.nan, 0.01, 0.9]
    found = holm(p)
    assert math.isnan(found[1])
    assert [found[0], *found[2:]] == pytest.approx([0.08, 0.03, 0.9])
    assert holm([]) == [] and math.isnan(holm([math.nan])[0])


def made_gap(seed: int, n: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-likelihoods of a baseline, of a plain run, and of a remedy that closes a share of their gap on average."""
    rng = np.random.default_rng(seed)
    base, lost = -rng.gamma(1, 2, n), rng.gamma(2, 0.2, n)
    return base, base - lost, base - lost * (1 - share) - rng.normal(0, 0.15, n)


def test_the_share_closed_is_of_log_perplexities() -> None:
    base, plain, remedy = made_gap(0, 500, 0.6)
    weights = np.random.default_rng(1).integers(1, 50, 500).astype(float)
    found = estimate_share_closed(base, plain, remedy, weights)
    assert found is not None and found.n == 500
    logs = [-x.sum() / weights.sum() for x in (base, plain, remedy)]
    assert found.share == pytest.approx(1 - (logs[2] - logs[0]) / (logs[1] - logs[0]), rel=1e-12)
    unweighted = estimate_share_closed(base, plain, remedy)
    assert unweighted == found  # the weights cancel


def test_the_interval_of_a_share_is_the_jackknife_s() -> None:
    base, plain, remedy = made_gap(2, 400, 0.4)
    found = estimate_share_closed(base, plain, remedy)
    assert found is not None
    left, lost = (base - remedy), (base - plain)
    without = 1 - (left.sum() - left) / (lost.sum() - lost)
    stderr = math.sqrt(399 / 400 * ((without - without.mean()) ** 2).sum())
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 399) * stderr, rel=0.01)
    assert found.low + found.high == pytest.approx(2 * found.share)


def test_the_interval_of_a_share_holds_the_truth() -> None:
    found = [estimate_share_closed(*made_gap(seed, 80, 0.5)) for seed in range(1000)]
    held = sum(one.low < 0.5 < one.high for one in found if one is not None)
    assert 925 <= held <= 975  # of 1,000: 950 expected, 6.9 the standard deviation


def test_shares_at_the_ends() -> None:
    base, plain, _ = made_gap(3, 100, 0.5)
    for remedy, share in ((plain, 0.0), (base, 1.0), (2 * plain - base, -1.0)):
        found = estimate_share_closed(base, plain, remedy)
        assert found is not None
        assert (found.share, found.low, found.high) == pytest.approx((share, share, share), abs=1e-12)


def test_no_share_of_a_gap_that_is_none() -> None:
    base, plain, remedy = made_gap(4, 100, 0.5)
    assert estimate_share_closed(base, base, remedy) is None
    assert estimate_share_closed(plain, base, remedy) is None  # quantizing made it better
    assert estimate_share_closed(base, base + np.random.default_rng(0).normal(0, 1, 100), remedy) is None
    assert estimate_share_closed(base, plain, np.full(100, np.nan)) is None
    assert estimate_share_closed(base[:1], plain[:1], remedy[:1]) is None
