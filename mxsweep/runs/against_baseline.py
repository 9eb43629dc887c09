"""Compare a run with the baseline that lies beside it in its sweep, example by example, as the report does."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mxsweep.results.groups import Group
from mxsweep.results.identity import is_own_baseline
from mxsweep.results.record import RECORD_NAME, RunFolder, find_runs
from mxsweep.results.rows import Row, read_rows
from mxsweep.results.studies import has_environment_of
from mxsweep.study.change_words import format_measured
from mxsweep.study.comparison import Comparison, compare_pairs


def against_baseline(record: dict[str, Any], folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return how a run's metrics differ from those of its own baseline, for ``export.json``.

    Args:
        record: of the run, done, whether or not it is written yet.
        folder: the run's, with its outcomes by example. Its baseline is looked for in the folders beside it.
        overrides: that the run was given.

    Returns:
        ``run_id`` of the baseline, with its ``metrics``, and ``differences``: for each task and metric the ``change``,
        with its paired 95 % interval, and the two-sided ``p``; or ``missing``, which says why there are none.
    """
    own = read_rows(RunFolder(folder, "done", record))
    beside = _baselines(folder)
    differences, metrics, named = [], {}, None
    for row in own:
        of_task = (other for other in beside if other.task == row.task and is_own_baseline(other, row))
        baseline = next((other for other in of_task if has_environment_of(row, other.run.record or {})), None)
        if baseline is None:
            return {"missing": _missing(overrides)}
        (comparison,) = compare_pairs(Group("", "", [baseline, row]), [(row, baseline)])
        if comparison.why_not:
            return {"missing": f"It cannot be compared with its baseline: {comparison.why_not}"}
        differences += _differences(str(row.task), comparison)
        metrics[str(row.task)] = dict(baseline.metrics)
        named = baseline.run.run_id
    return {"run_id": named, "metrics": metrics, "differences": differences}


def _baselines(folder: Path) -> list[Row]:
    """Return the rows of finished baselines in the folders beside a run's; not of folders below these."""
    folders = [each.parent for each in sorted(folder.resolve().parent.glob(f"*/{RECORD_NAME}"))]
    runs = [run for run in find_runs(folders) if run.status == "done"] if folders else []
    return [row for run in runs for row in read_rows(run) if row.is_baseline]


def _differences(task: str, comparison: Comparison) -> list[dict[str, Any]]:
    found: Mapping[str, Any] = {
        "acc": comparison.accuracy,
        "perplexity": comparison.perplexity,
        "margin": comparison.margin,
    }
    return [
        {"task": task, "metric": metric, "change": format_measured(metric, measured), "p": measured.p, "n": measured.n}
        for metric, measured in found.items()
        if measured is not None
    ]


def _missing(overrides: Sequence[str]) -> str:
    command = shlex.join(["python", "-m", "mxsweep", "-m", *overrides])
    return (
        "Its baseline was not evaluated beside it in the same environment. This evaluates both, for an export that "
        f"compares them: `{command}`"
    )
