"""Say how many examples a run's task has, of which a limit leaves some."""

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
    try:
        written: Any = json.loads(read_regular(row.run.path / LM_EVAL_NAME, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    for key in ("n-samples", row.task or "", "original"):
        written = written.get(key) if isinstance(written, dict) else None
    return written if isinstance(written, int) and not isinstance(written, bool) and written > 0 else None
