"""Compare a run with its baseline, where one is found, example by example, as the report does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxsweep.results.baselines import baseline_command, baselines_of
from mxsweep.results.groups import Group
from mxsweep.results.record import RunFolder, find_runs
from mxsweep.results.rows import Row, read_rows
from mxsweep.study.change_words import format_measured
from mxsweep.study.comparison import Comparison, compare_pairs


def against_baseline(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return how a run's metrics differ from those of its own baseline, for ``export.json``.

    Args:
        record: of the run, done, whether or not it is written yet.
        folder: the run's, with its outcomes by example. Where its baseline is looked for says
            :mod:`mxsweep.results.baselines`.

    Returns:
        ``run_id`` of the baseline, with its ``metrics``, and ``differences``: for each task and metric the ``change``,
        with its paired 95 % interval, and the two-sided ``p``; or ``missing``, which says why there are none.
    """
    own = read_rows(RunFolder(folder, "done", record, overrides=list(map(str, record["overrides"]))))
    found = baselines_of(own)[:1]
    runs = [run for run in find_runs(found) if run.status == "done"] if found else []
    baselines = {row.task: row for run in runs for row in read_rows(run)}
    differences, metrics, named = [], {}, None
    for row in own:
        baseline = baselines.get(row.task)
        if baseline is None:
            return {"missing": _missing(row)}
        (comparison,) = compare_pairs(Group("", "", [baseline, row]), [(row, baseline)])
        if comparison.why_not:
            return {"missing": f"It cannot be compared with its baseline: {comparison.why_not}"}
        differences += _differences(str(row.task), comparison)
        metrics[str(row.task)] = dict(baseline.metrics)
        named = baseline.run.run_id
    return {"run_id": named, "metrics": metrics, "differences": differences}


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


def _missing(row: Row) -> str:
    said = "Its baseline was not found, evaluated in the same environment."
    command = baseline_command(row)
    return said if command is None else f"{said} This evaluates it, for an export that compares with it: `{command}`"
