"""Test how two runs differ, example by example, from Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxsweep.results.groups import COMPARABLE, CONDITIONS, Group, comparable_rows
from mxsweep.results.identity import with_identities
from mxsweep.results.record import find_runs
from mxsweep.results.rows import Row, label, read_rows
from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference, t_quantile
from mxsweep.study.comparison import Comparison, compare_pairs

if TYPE_CHECKING:
    import pandas as pd

MCNEMAR, T_TEST = "McNemar, exact", "paired t"
COLUMNS = ("task", "metric", "n", "difference", "low", "high", "p", "test", "statistic", "discordant")


def compare(a: str | PathLike[str] | Mapping[str, Any], b: str | PathLike[str] | Mapping[str, Any]) -> pd.DataFrame:
    """Compare two finished runs on the examples that both answered, and return a row for each task and metric.

    Args:
        a, b: a run's folder, or its row of what :func:`mxsweep.load` returns.

    Returns:
        The columns COLUMNS: the difference is b's minus a's, with its 95 % interval from ``low`` to ``high``. The
        metrics are "acc" (whichever counts right answers), "log-perplexity" and "margin", the last two in nats; ``p``
        is two-sided, and adjusted for nothing. ``statistic`` is the t of the paired t test, with n - 1 degrees of
        freedom (NaN where all examples differ by the same), and of McNemar's exact test the number of examples that b
        alone got right, of the ``discordant`` ones that one of the two did.

    Raises:
        ValueError: a folder that holds no finished run, or several; runs of different models, tasks or data, or without
            outcomes by example; the message says which.
    """
    import pandas as pd  # here, since it takes a while

    ours, theirs = ({row.task: row for row in _rows(_folder(run))} for run in (a, b))
    tasks = [task for task in ours if task in theirs]
    if not tasks:
        raise ValueError(f"the runs have no task in common: {_listed(ours)}, and {_listed(theirs)}")
    tests: list[dict[str, Any]] = []
    for task in tasks:
        comparison = _compared(ours[task], theirs[task])
        tests += _tests(str(task), comparison)
    return pd.DataFrame(tests, columns=list(COLUMNS)).astype({"discordant": "Int64"})


def _folder(run: str | PathLike[str] | Mapping[str, Any]) -> Path:
    if isinstance(run, str | PathLike):
        return Path(run)
    folder = run.get("folder")  # a row of a table is a pandas.Series, which has get, too
    if not isinstance(folder, str):
        raise ValueError(f"{type(run).__name__}: is no run; give its folder, or its row of what mxsweep.load returns")
    return Path(folder)


def _rows(folder: Path) -> list[Row]:
    try:
        runs = find_runs(folder)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    if len(runs) != 1:
        raise ValueError(f"{folder}: holds {len(runs)} runs; give the folder of one")
    (run,) = runs
    if run.status != "done":
        raise ValueError(f"{folder}: the run is {run.status}{f' ({run.reason})' if run.reason else ''}")
    return read_rows(run)


def _compared(a: Row, b: Row) -> Comparison:
    rows = with_identities([a, b])
    if len(comparable_rows(rows)) > 1:
        one, other = rows
        different = [
            f"{name} ({label(one.knobs.get(name))}, {label(other.knobs.get(name))})"
            for name in (*COMPARABLE, *CONDITIONS)
            if label(one.knobs.get(name)) != label(other.knobs.get(name))
        ]
        raise ValueError(f"the runs cannot be compared, as they differ in {', '.join(different)}")
    (comparison,) = compare_pairs(Group("", "", rows), [(rows[1], rows[0])])
    if comparison.why_not:
        raise ValueError(f"the runs cannot be compared: {comparison.why_not}")
    return comparison


def _tests(task: str, comparison: Comparison) -> list[dict[str, Any]]:
    tests = []
    if (accuracy := comparison.accuracy) is not None:
        discordant = accuracy.only_a + accuracy.only_b
        tests.append(_test(task, "acc", accuracy, MCNEMAR, accuracy.only_b, discordant))
    for metric, measured in (("log-perplexity", comparison.perplexity), ("margin", comparison.margin)):
        if measured is not None:
            tests.append(_test(task, metric, measured, T_TEST, _t(measured), None))
    return tests


def _test(
    task: str,
    metric: str,
    measured: AccuracyDifference | MeanDifference,
    test: str,
    statistic: float,
    discordant: int | None,
) -> dict[str, Any]:
    interval = (measured.difference, measured.low, measured.high, measured.p)
    return dict(zip(COLUMNS, (task, metric, measured.n, *interval, test, statistic, discordant), strict=True))


def _t(measured: MeanDifference) -> float:
    """Return the difference in standard errors, of which the interval is some to either side."""
    half = (measured.high - measured.low) / 2
    return measured.difference * t_quantile(measured.n - 1) / half if half > 0 else math.nan


def _listed(rows: Mapping[str | None, Row]) -> str:
    return ", ".join(map(str, rows)) or "none"
