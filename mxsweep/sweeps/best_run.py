"""Keep the best run of a sweep so far, for its display."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.report.wording import format_value
from mxsweep.results.groups import COMPARABLE
from mxsweep.results.metrics import betterness, decimals, known_metric
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row, label, read_rows

SEED, RUNTIME = "seed", "runtime"


@dataclass
class _Seen:
    """Hold what was seen of runs that tables would compare: the best of them, how many, and of which seeds."""

    best: Row
    knobs: str
    count: int = 0
    seeds: set[str] = field(default_factory=set)
    runtimes: set[str] = field(default_factory=set)

    @property
    def ranks(self) -> bool:
        """Return whether the best is one of several, and no seed's luck or a runtime's: neither is chosen."""
        return self.count > 1 and len(self.seeds) == 1 and len(self.runtimes) == 1


class BestRun:
    """Keep the best quantized run among those that tables would compare.

    Attributes:
        text: metric, value and knobs of the best run, in a sweep over tasks of the task that was evaluated last; empty
            of one run alone, of runs of several seeds or runtimes, and where nothing was answered right.
    """

    def __init__(self) -> None:
        self.text = ""
        self._seen: dict[tuple[Any, ...], _Seen] = {}

    def learn(self, folder: Path, record: dict[str, Any], knobs: str) -> None:
        """Take the record of a done run into account."""
        for row in read_rows(RunFolder(folder, "done", record))[:1]:
            metric = max(filter(betterness, row.metrics), key=betterness, default="")
            if not metric:
                return
            group = (metric, *(str(row.knobs.get(name)) for name in COMPARABLE))
            if not row.is_baseline and math.isfinite(row.metrics[metric]):
                self._see(group, metric, row, knobs)
            seen = self._seen.get(group)
            self.text = _describe(metric, seen.best, seen.knobs) if seen is not None and seen.ranks else ""

    def _see(self, group: tuple[Any, ...], metric: str, row: Row, knobs: str) -> None:
        seen = self._seen.setdefault(group, _Seen(row, knobs))
        seen.count += 1
        seen.seeds.add(label(row.knobs.get(SEED)))
        seen.runtimes.add(label(row.knobs.get(RUNTIME)))
        sign = math.copysign(1, betterness(metric))
        if sign * row.metrics[metric] > sign * seen.best.metrics[metric]:
            seen.best, seen.knobs = row, knobs


def _describe(metric: str, row: Row, knobs: str) -> str:
    """Return the metric of a run with its knobs, the standard error left out; nothing where no answer was right."""
    if known_metric(metric).counts and not row.metrics[metric] > 0:
        return ""
    value, stderr = row.metrics[metric], row.metrics.get(f"{metric}_stderr")
    text = format_value(value, stderr, decimals(metric)).partition(" ±")[0]
    return f"best {metric} {text} ({knobs})"
