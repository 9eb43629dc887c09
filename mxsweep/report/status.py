"""How far a sweep is: every planned run, and what became of it so far."""

from collections.abc import Sequence

from tabulate import tabulate

from mxsweep.report.wording import one_line
from mxsweep.results.record import STATUSES, RunFolder

REASON_WIDTH = 200  # characters of a line; the whole of it is in the run's result.json


def status_text(runs: Sequence[RunFolder]) -> str:
    """A line for each run with its state, and the number in each state."""
    rows = [
        {
            "status": run.status,
            "run": run.path.name,
            "overrides": " ".join(run.overrides),
            "how far, or why": one_line(run.reason, REASON_WIDTH),
        }
        for run in sorted(runs, key=lambda run: STATUSES.index(run.status))
    ]
    counts = [
        f"{sum(run.status == status for run in runs)} {status}" for status in ("done", "running", "failed", "missing")
    ]
    unreadable = sum(run.status == "unreadable" for run in runs)
    return f"{tabulate(rows, headers='keys', disable_numparse=True)}\n\n{len(runs)} runs: {', '.join(counts)}" + (
        f", {unreadable} unreadable" if unreadable else ""
    )
