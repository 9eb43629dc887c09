"""Say how far a sweep is: every planned run, and what became of it so far."""

import sys
from collections.abc import Sequence

from mxsweep.report.plain_table import plain
from mxsweep.report.table import Table, text_cells
from mxsweep.report.wording import one_line
from mxsweep.results.proven import PROVEN_BY
from mxsweep.results.record import STATUSES, RunFolder
from mxsweep.terminal.escapes import printable

REASON_WIDTH = 200  # characters of a line; the whole of it is in the run's result.json


def status_text(runs: Sequence[RunFolder]) -> str:
    """Return a line for each run with its state, and the number in each state."""
    rows = [
        [run.status, run.path.name, " ".join(run.overrides), one_line(run.reason or _proof(run), REASON_WIDTH)]
        for run in sorted(runs, key=lambda run: STATUSES.index(run.status))
    ]
    table = Table("", ["status", "run", "overrides", "how far, or why"], [text_cells(row) for row in rows])
    counts = [
        f"{sum(run.status == status for run in runs)} {status}" for status in ("done", "running", "failed", "missing")
    ]
    unreadable = sum(run.status == "unreadable" for run in runs)
    said = f"{len(runs)} runs: {', '.join(counts)}" + (f", {unreadable} unreadable" if unreadable else "")
    return printable(f"{plain(table, sys.maxsize)}\n\n{said}")


def _proof(run: RunFolder) -> str:
    """Return by which run a run that was not evaluated is proven; "" of another."""
    proof = (run.record or {}).get(PROVEN_BY)
    return f"not evaluated: proven by {proof.get('run_id')}" if isinstance(proof, dict) else ""
