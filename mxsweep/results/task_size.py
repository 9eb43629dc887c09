"""Say how many examples a run's task has, of which a limit leaves some, and what else lm-eval wrote of a run."""

from __future__ import annotations

import json
from typing import Any

from mxsweep.files.regular import read_regular
from mxsweep.results.record import LM_EVAL_NAME, MOST_BYTES
from mxsweep.results.rows import Row, label


def task_size(row: Row) -> int | None:
    """Return the examples that the whole task has, from what lm-eval wrote; without a limit those of the run.

    None where that is not known: of a group of tasks, or without the file.
    """
    if label(row.knobs.get("limit")) == "none":
        return None if row.n is None else int(row.n)
    written = lm_eval_says(row, "n-samples", row.task or "", "original")
    return written if isinstance(written, int) and not isinstance(written, bool) and written > 0 else None


def lm_eval_says(row: Row, *path: str) -> Any:
    """Return what the run's file of lm-eval's own results has at this path; None where it has nothing."""
    try:
        written: Any = json.loads(read_regular(row.run.path / LM_EVAL_NAME, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    for key in path:
        written = written.get(key) if isinstance(written, dict) else None
    return written
