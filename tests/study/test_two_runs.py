"""The paired test of two runs, as Python calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.made_runs import outcomes, put
from scipy import stats

from mxsweep import compare, load
from mxsweep.results.record import write_record
from mxsweep.study.two_runs import COLUMNS, MCNEMAR, T_TEST

DRAWN = np.random.default_rng(3)
A = DRAWN.normal(-1.0, 0.5, 80)
B = A - np.abs(DRAWN.normal(0.2, 0.4, 80)) + 0.1


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return put(tmp_path / "a", outcomes(list(A))), put(tmp_path / "b", outcomes(list(B)), block_size=64)


def test_tests_are_those_of_scipy(folders: tuple[Path, Path]) -> None:
    table = compare(*folders)
    assert list(table.columns) == list(COLUMNS)
    accuracy, perplexity = (table.iloc[i] for i in (0, 1))
    t = stats.ttest_rel(A, B)
    assert (perplexity.metric, perplexity.test, perplexity.n) == ("log-perplexity", T_TEST, 80)
    assert perplexity.statistic == pytest.approx(t.statistic) and perplexity.p == pytest.approx(t.pvalue)
    assert perplexity.difference == pytest.approx(np.mean(A - B))
    interval = t.confidence_interval(0.95)
    assert (perplexity.low, perplexity.high) == pytest.approx((interval.low, interval.high))
    only_a, only_b = np.sum((A > -1) & (B <= -1)), np.sum((B > -1) & (A <= -1))
    assert (accuracy.metric, accuracy.test) == ("acc", MCNEMAR)
    assert (accuracy.statistic, accuracy.discordant) == (only_b, only_a + only_b)
    assert accuracy.p == pytest.approx(stats.binomtest(int(only_b), int(only_a + only_b)).pvalue)
    assert accuracy.difference == pytest.approx((only_b - only_a) / 80)


def test_the_other_way_round_is_the_other_sign(folders: tuple[Path, Path]) -> None:
    there, back = compare(*folders), compare(*reversed(folders))
    assert list(there.difference) == pytest.approx(list(-back.difference))
    assert list(there.p) == pytest.approx(list(back.p))


def test_rows_of_a_table_are_runs(folders: tuple[Path, Path]) -> None:
    runs = load(folders)
    assert compare(runs.iloc[0], runs.iloc[1]).equals(compare(*folders))
    assert compare(runs.iloc[0], str(folders[1])).equals(compare(*folders))


def test_a_run_is_no_different_from_itself(folders: tuple[Path, Path]) -> None:
    table = compare(folders[0], folders[0])
    assert list(table.difference) == [0, 0] and list(table.p) == [1, 1]


def test_what_cannot_be_compared_says_why(folders: tuple[Path, Path], tmp_path: Path) -> None:
    cases = {
        "no such folder": tmp_path / "none",
        "holds 2 runs": tmp_path,
        r"differ in limit \(none, 5\)": put(tmp_path.parent / f"{tmp_path.name}_limit", outcomes(list(A)), limit=5),
        "has no samples.parquet": put(tmp_path.parent / f"{tmp_path.name}_bare"),
        "no task in common": put(tmp_path.parent / f"{tmp_path.name}_task", metrics={"other": {"acc": 1.0}}),
    }
    failed = tmp_path.parent / f"{tmp_path.name}_failed"
    error = {"type": "ConfigError", "message": "no GPU"}
    write_record(failed, {"status": "failed", "run_id": "f", "config": {}, "metrics": {}, "error": error})
    for why, other in {**cases, "the run is failed": failed}.items():
        with pytest.raises(ValueError, match=why):
            compare(folders[0], other)
    with pytest.raises(ValueError, match="is no run"):
        compare(folders[0], {"path": "x"})
