"""A sweep as it goes: a display at the foot of a terminal, or plain lines where there is none."""

from __future__ import annotations

import contextlib
import heapq
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TextIO

from mxsweep.report.wording import format_value, one_line
from mxsweep.results.groups import COMPARABLE
from mxsweep.results.metrics import betterness
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row, read_rows
from mxsweep.runs.new_record import summarize_record
from mxsweep.sweeps.execute import ANSWERED, LOG_FORMAT

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

SECONDS_BETWEEN_LINES = 60.0  # of plain lines about how far runs are
LINE_WIDTH = 200  # characters of a reason


@dataclass
class _Current:
    """A run that has begun."""

    number: int
    knobs: str
    began: float
    share: float | None = None  # of its requests answered; None: not known yet
    phase: str = ANSWERED  # what it does, and the share of that; other phases come before its requests
    phase_share: float | None = None
    prepared_until: float | None = None  # when it was last heard of in another phase

    @property
    def said(self) -> str:
        """How far it is."""
        return f"{_percent(self.phase_share)} {'' if self.phase == ANSWERED else 'of '}{self.phase}"

    def seconds_in_all(self, now: float, share: float) -> float:
        """About how long it takes: what came before its requests, and these at their pace."""
        since = self.prepared_until or self.began
        return since - self.began + (now - since) / share

    def seconds_left(self, now: float, usual: float) -> float:
        """About how long it still takes, where runs usually take so long. How far another phase is says nothing."""
        if not self.share:
            return max(0.0, self.began + usual - now)
        if self.prepared_until is None:
            return usual * (1 - self.share)
        return (now - self.prepared_until) * (1 / self.share - 1)


class Progress:
    """Shows how far a sweep is: an observer of its runs.

    On a terminal a display stays below what is printed meanwhile, so long as that goes through :attr:`handler` or
    ``print``; a line for each run that ended stays above. Elsewhere there are plain lines only.

    Args:
        total: how many runs the sweep has.
        skipped: how many of them had finished before; numbers of runs start after these.
        stream: where to show it; None for ``sys.stderr``.
        varying: the knobs that tell the runs apart, as names or as a test of a name; None for all that were typed.
        workers: how many runs there are at a time; None for as many as have been seen at a time.
        console: a rich console to draw on, instead of ``stream``, whatever it is.
        clock: seconds.
    """

    def __init__(
        self,
        total: int,
        skipped: int = 0,
        stream: TextIO | None = None,
        *,
        varying: Callable[[str], bool] | Collection[str] | None = None,
        workers: int | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._skipped = total, skipped
        self._stream = sys.stderr if stream is None else stream
        self._console = console or _console_of(self._stream)
        self._varies = varying if callable(varying) or varying is None else varying.__contains__
        self._at_a_time = workers or 1
        self._clock = clock
        self._live: Live | None = None
        self._numbers: dict[Any, int] = {}  # by folder: a run that is run again keeps its number
        self._current: dict[Any, _Current] = {}
        self._ended = self._failed = 0
        self._walls: list[float] = []  # seconds of done runs; a failed run may have stopped at once
        self._examples, self._seconds = 0.0, 0.0
        self._bests: dict[tuple[Any, ...], tuple[Row, str]] = {}
        self._best = ""
        self._spoke = clock()
        self.handler: logging.Handler = _Printer(self.say)  # for loggers, instead of one that writes to the terminal
        self.handler.setFormatter(logging.Formatter(*LOG_FORMAT))

    def __enter__(self) -> Self:
        if self._console is not None:
            from rich.live import Live

            self._live = Live(console=self._console, get_renderable=self._render, transient=True, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Print a line, above the display if there is one."""
        with contextlib.suppress(OSError, ValueError):  # nobody reads the stream any more: no reason to stop a sweep
            if self._console is None:
                print(line, file=self._stream, flush=True)
            else:
                self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def recall(self, run: Any, record: dict[str, Any]) -> None:
        """A run that had finished before: for the best so far, and the speed."""
        if record["status"] == "done":
            self._learn(run, record)

    def begin(self, run: Any) -> None:
        """A run started."""
        current = _Current(self._number(run), self._knobs(run), self._clock())
        self._current[run.folder] = current
        self._at_a_time = max(self._at_a_time, len(self._current))
        if self._console is None:
            self._speak(f"{self._title(current.number)}: {current.knobs}")
        elif self._live is not None:
            self._live.refresh()

    def advance(self, run: Any, done: int, total: int, phase: str = ANSWERED) -> None:
        """So many of the run's requests are answered, or so much of another phase is done. May be called often."""
        current = self._current.get(run.folder)
        if current is None or total <= 0:
            return
        current.phase, current.phase_share = phase, min(max(done / total, 0.0), 1.0)
        if phase == ANSWERED:
            current.share = current.phase_share
        else:
            current.prepared_until = self._clock()
        if self._console is None and self._clock() - self._spoke >= SECONDS_BETWEEN_LINES:
            runs = (f"{self._title(run.number)}: {run.said}" for run in self._current.values())
            self._speak("; ".join(runs) + self._left())

    def end(self, run: Any, record: dict[str, Any]) -> None:
        """A run's record is there."""
        self._current.pop(run.folder, None)
        title = self._title(self._number(run))
        if self._console is not None:  # no line said what began
            title += f" ({self._knobs(run)})"
        self._ended += 1
        if record["status"] != "done":
            self._failed += 1
            self._speak(f"{title} {one_line(_failure(record), LINE_WIDTH)}")
            return
        self._learn(run, record)
        best = f", {self._best}" if self._best else ""
        self._speak(f"{title}: {summarize_record(record)}{self._left()}{best}")

    def lost(self, run: Any, why: str) -> None:
        """A worker died in a run. It does not count as ended: should it be given up, `end` says so."""
        self._current.pop(run.folder, None)
        self._speak(f"{self._title(self._number(run))} lost: {one_line(why, LINE_WIDTH)}")

    def seconds_left(self) -> float | None:
        """About how long the sweep still takes, as if every run took the mean time; None if nothing is known."""
        now, current = self._clock(), list(self._current.values())
        walls = self._walls or [run.seconds_in_all(now, run.share) for run in current if run.share]
        if not walls:
            return None
        wall = sum(walls) / len(walls)
        left = [run.seconds_left(now, wall) for run in current]
        ends = left + [0.0] * (self._at_a_time - len(left))
        heapq.heapify(ends)
        for _ in range(self._total - self._skipped - self._ended - len(current)):
            heapq.heapreplace(ends, ends[0] + wall)  # whichever is free first takes the next run
        return max(ends)

    def _learn(self, run: Any, record: dict[str, Any]) -> None:
        """Speed and the best run, from the record of a done run."""
        if (wall := record["timing"].get("total_s")) is not None:
            self._walls.append(wall)
        seconds = record["timing"].get("eval_s") or 0.0
        if math.isfinite(seconds) and seconds > 0:
            self._seconds += seconds
            self._examples += sum(record["n_effective"].values())
        for row in read_rows(RunFolder(run.folder, "done", record))[:1]:
            metric = max(filter(betterness, row.metrics), key=betterness, default="")
            if not metric:
                return
            # Best among those that tables would compare; in a sweep over tasks, of the task that was evaluated last.
            group = (metric, *(str(row.knobs.get(name)) for name in COMPARABLE))
            if not row.is_baseline and math.isfinite(row.metrics[metric]):
                best = self._bests.get(group)
                sign = math.copysign(1, betterness(metric))
                if best is None or sign * row.metrics[metric] > sign * best[0].metrics[metric]:
                    self._bests[group] = row, self._knobs(run)
            self._best = _best_text(metric, *self._bests[group]) if group in self._bests else ""

    def _speak(self, line: str) -> None:
        self._spoke = self._clock()
        self.say(line)

    def _number(self, run: Any) -> int:
        return self._numbers.setdefault(run.folder, self._skipped + len(self._numbers) + 1)

    def _title(self, number: int) -> str:
        return f"run {number} of {self._total}"

    def _knobs(self, run: Any) -> str:
        def varies(item: str) -> bool:
            key = item.partition("=")[0]  # as typed, which may be `+key`
            return self._varies is None or self._varies(key) or self._varies(key.lstrip("+~"))

        shown = filter(varies, run.overrides)
        return " ".join(shown) or " ".join(run.overrides) or run.run_id

    def _left(self) -> str:
        seconds = self.seconds_left()
        return f", about {_duration(seconds)} left" if seconds else ""

    def _counts(self) -> str:
        counts = [f"{self._skipped + self._ended} of {self._total} runs"]
        counts += [f"{self._skipped} of them before"] * bool(self._skipped)
        counts += [f"{self._failed} failed"] * bool(self._failed)
        if self._seconds:
            each = " a run" if self._at_a_time > 1 else ""
            counts.append(f"{self._examples / self._seconds:,.0f} examples/s{each}")
        return ", ".join(counts) + self._left()

    def _render(self) -> RenderableType:
        """The display. rich's thread calls it, too: it reads copies and changes nothing."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def cut(text: str) -> Text:
            return Text(text, no_wrap=True, overflow="ellipsis")

        current = list(self._current.values())
        done = self._skipped + self._ended + sum(run.share or 0.0 for run in current)
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(min_width=5 + len(str(self._total)))
        table.add_column(min_width=20, max_width=20)
        table.add_column(ratio=1)
        table.add_row("sweep", ProgressBar(max(self._total, 1), done), Text(self._counts()))
        for run in current:
            bar = ProgressBar(1.0, run.phase_share or 0.0)
            said = _percent(run.share) if run.phase == ANSWERED else run.said
            table.add_row(f"run {run.number}", bar, cut(f"{said} {run.knobs}"))
        if self._best:
            table.add_row("", "", cut(self._best))
        return table


class _Printer(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(self.format(record))
        except Exception:
            self.handleError(record)


def _console_of(stream: TextIO) -> Console | None:
    """A console on a terminal that can move its cursor; not on what only says that it takes colours."""
    if not stream.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return None
    from rich.console import Console

    return Console(file=stream)


def _failure(record: dict[str, Any]) -> str:
    return summarize_record(record) if record.get("error") else "failed: no reason recorded"


def _best_text(metric: str, row: Row, knobs: str) -> str:
    value, stderr = row.metrics[metric], row.metrics.get(f"{metric}_stderr")
    text = format_value(value, stderr, 4 if betterness(metric) > 0 else None).partition(" ±")[0]
    return f"best {metric} {text} ({knobs})"


def _percent(share: float | None) -> str:
    return f"{math.floor(100 * (share or 0.0))}%"


def _duration(seconds: float) -> str:
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
