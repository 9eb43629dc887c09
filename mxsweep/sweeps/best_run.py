"""Keep the best run of a sweep so far, for its display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mxsweep.report.wording import format_value
from mxsweep.results.groups import COMPARABLE
from mxsweep.results.metrics import betterness, decimals
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row, read_rows


class BestRun:
    """Keep the best quantized run among those that tables would compare.

    Attributes:
        text: metric, value and knobs of the best run, in a sweep over tasks of the task that was evaluated last; empty
            while there is none.
    """

    def __init__(self) -> None:
        self.text = ""
        self._bests: dict[tuple[Any, ...], tuple[Row, str]] = {}

    def learn(self, folder: Path, record: dict[str, Any], knobs: str) -> None:
        """Take the record of a done run into account."""
        for row in read_rows(RunFolder(folder, "done", record))[:1]:
            metric = max(filter(betterness, row.metrics), key=betterness, default="")
            if not metric:
                return
            group = (metric, *(str(row.knobs.get(name)) for name in COMPARABLE))
            if not row.is_baseline and math.isfinite(row.metrics[metric]):
                best = self._bests.get(group)
                sign = math.copysign(1, betterness(metric))
                if best is None or sign * row.metrics[metric] > sign * best[0].metrics[metric]:
                    self._bests[group] = row, knobs
            self.text = _describe(metric, *self._bests[group]) if group in self._bests else ""


def _describe(metric: str, row: Row, knobs: str) -> str:
    """Return the metric of a run with its knobs, the standard error left out."""
    value, stderr = row.metrics[metric], row.metrics.get(f"{metric}_stderr")
    text = format_value(value, stderr, decimals(metric)).partition(" ±")[0]
    return f"best {metric} {text} ({knobs})"
