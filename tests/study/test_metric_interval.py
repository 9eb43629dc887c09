"""The interval of a metric of a run by itself, beside statsmodels' and the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from mxsweep.evaluate.standard_errors import ENOUGH_FOR_CLOSED_FORM, perplexity_stderr
from mxsweep.study.metric_interval import metric_interval, wilson


def stderr_of(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / (n - 1))  # as lm-eval has it


@pytest.mark.parametrize(("right", "n"), [(0, 4), (4, 4), (1, 4), (7, 16), (5000, 5153)])
def test_a_share_has_wilsons(right: int, n: int) -> None:
    expected = proportion_confint(right, n, method="wilson")
    share = right / n
    for metric in ("acc", "acc_norm,none", "exact_match"):
        assert metric_interval(metric, share, stderr_of(share, n), n) == pytest.approx(expected, abs=1e-12)
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1 and low < high
    if 0 < right < n:  # of which the standard error alone says as much
        assert metric_interval("acc", share, stderr_of(share, n), None) == pytest.approx(expected, abs=1e-12)


def test_where_all_or_none_are_right_the_interval_ends_there() -> None:
    for n in range(1, 1001):
        assert wilson(0.0, n)[0] == 0.0 and wilson(1.0, n)[1] == 1.0


def test_of_no_examples_and_no_error_nothing_is_said() -> None:
    assert metric_interval("acc", 1.0, 0.0, None) is None
    assert metric_interval("acc", 0.5, math.nan, 4) is None


def test_a_perplexity_has_the_interval_of_its_logarithm() -> None:
    logs = np.random.default_rng(0).normal(-3, 40, 2 * ENOUGH_FOR_CLOSED_FORM)  # whose mean varies by 1.3
    value, s = math.exp(-logs.mean()), logs.std(ddof=1) / math.sqrt(len(logs))
    found = metric_interval("perplexity", value, perplexity_stderr(list(logs)), len(logs))
    assert found == pytest.approx((value * math.exp(-1.96 * s), value * math.exp(1.96 * s)), rel=2e-3)
    assert metric_interval("perplexity", math.inf, math.inf, 4) is None
    assert metric_interval("perplexity", 5.0, 0.0, 4) == (5.0, 5.0)


def test_others_have_the_normal_one() -> None:
    assert metric_interval("margin", -0.5, 1.0, 4) == pytest.approx((-2.46, 1.46), abs=1e-4)
