"""Show a sweep as it goes: a display at the foot of a terminal, or plain lines where there is none."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Self, TextIO

from mxsweep.report.wording import one_line
from mxsweep.runs.new_record import summarize_record
from mxsweep.sweeps.best_run import BestRun
from mxsweep.sweeps.elsewhere import Elsewhere
from mxsweep.sweeps.execute import LOG_FORMAT
from mxsweep.sweeps.time_left import RunningRun, format_duration, seconds_left
from mxsweep.terminal.escapes import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

SECONDS_BETWEEN_LINES = 60.0  # of plain lines about how far runs are
LINE_WIDTH = 200  # characters of a reason


class SweepDisplay:
    """Show how far a sweep is: an observer of its runs.

    On a terminal a display stays below what is printed meanwhile, so long as that goes through :attr:`handler` or
    ``print``; a line for each run that ended stays above. Elsewhere there are plain lines only.

    Args:
        total: how many runs the sweep has.
        skipped: how many of them had finished before; numbers of runs start after these.
        stream: where to show it; None for ``sys.stderr``.
        varying: the knobs that tell the runs apart, as names or as a test of a name; None for all that were typed.
        workers: how many runs there are at a time; None for as many as have been seen at a time.
        elsewhere: what other processes do of the sweep's runs; None where there are none.
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
        elsewhere: Elsewhere | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._skipped = total, skipped
        self._stream = sys.stderr if stream is None else stream
        self._console = console or _make_console(self._stream)
        self._varies = varying if callable(varying) or varying is None else varying.__contains__
        self._at_a_time = workers or 1
        self._elsewhere = elsewhere
        self._clock = clock
        self._live: Live | None = None
        self._numbers: dict[Any, int] = {}  # by folder: a run that is run again keeps its number
        self._running: dict[Any, RunningRun] = {}
        self._ended = self._failed = 0
        self._past: list[float] = []  # seconds of done runs; a failed run may have stopped at once
        self._examples, self._seconds = 0.0, 0.0
        self._best = BestRun()
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
        line = printable(line)
        with contextlib.suppress(OSError, ValueError):  # nobody reads the stream any more: no reason to stop a sweep
            if self._console is None:
                print(line, file=self._stream, flush=True)
            else:
                self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def recall(self, run: Any, record: dict[str, Any]) -> None:
        """Take a run into account that had finished before: for the best so far, and the speed."""
        if record["status"] == "done":
            self._learn(run, record)

    def begin(self, run: Any) -> None:
        """Show that a run started."""
        current = RunningRun(self._number(run), self._knobs(run), self._clock())
        self._running[run.folder] = current
        self._at_a_time = max(self._at_a_time, len(self._running))
        if self._console is None:
            self._speak(f"{self._title(current.number)}: {current.knobs}")
        elif self._live is not None:
            self._live.refresh()

    def advance(self, run: Any, done: int, total: int, phase: str = "") -> None:
        """Show how many of the run's requests are scored, or how much of another phase is done. May be called often."""
        current = self._running.get(run.folder)
        if current is None or total <= 0:
            return
        current.advance(min(max(done / total, 0.0), 1.0), phase, self._clock())
        self._look_elsewhere()
        if self._console is None and self._clock() - self._spoke >= SECONDS_BETWEEN_LINES:
            runs = (f"{self._title(run.number)}: {_describe_progress(run)}" for run in self._running.values())
            self._speak("; ".join(runs) + self._time_left())

    def end(self, run: Any, record: dict[str, Any]) -> None:
        """Show what came out of a run."""
        self._running.pop(run.folder, None)
        title = self._title(self._number(run))
        self._look_elsewhere()
        if self._console is not None:  # no line said what began
            title += f" ({self._knobs(run)})"
        self._ended += 1
        if record["status"] != "done":
            self._failed += 1
            reason = summarize_record(record) if record.get("error") else "failed: no reason recorded"
            self._speak(f"{title} {one_line(reason, LINE_WIDTH)}")
            return
        self._learn(run, record)
        best = f", {self._best.text}" if self._best.text else ""
        self._speak(f"{title}: {summarize_record(record)}{self._time_left()}{best}")

    def lost(self, run: Any, why: str) -> None:
        """Show that a worker died in a run. The run does not count as ended: should it be given up, `end` says so."""
        self._running.pop(run.folder, None)
        self._speak(f"{self._title(self._number(run))} lost: {one_line(why, LINE_WIDTH)}")

    def seconds_left(self) -> float | None:
        """Estimate how long the sweep still takes; None if nothing is known."""
        running = list(self._running.values())
        waiting = self._total - self._skipped - self._ended - len(running)
        others = 0
        if self._elsewhere is not None:
            others = self._elsewhere.running
            waiting -= self._elsewhere.ended + others
        return seconds_left(running, waiting, self._past, self._at_a_time, self._clock(), others)

    def _look_elsewhere(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere.look(self._numbers)

    def _learn(self, run: Any, record: dict[str, Any]) -> None:
        """Take time, speed and metrics from the record of a done run."""
        if (wall := record["timing"].get("total_s")) is not None:
            self._past.append(wall)
        seconds = record["timing"].get("eval_s") or 0.0
        if math.isfinite(seconds) and seconds > 0:
            self._seconds += seconds
            self._examples += seconds * (record.get("examples_per_sec") or 0.0)
        self._best.learn(run.folder, record, self._knobs(run))

    def _speak(self, line: str) -> None:
        self._spoke = self._clock()
        self.say(line)

    def _number(self, run: Any) -> int:
        return self._numbers.setdefault(run.folder, self._skipped + len(self._numbers) + 1)

    def _title(self, number: int) -> str:
        return f"run {number} of {self._total}"

    def _knobs(self, run: Any) -> str:
        """Return the words that tell a run apart."""

        def varies(item: str) -> bool:
            key = item.partition("=")[0]  # as typed, which may be `+key`
            return self._varies is None or self._varies(key) or self._varies(key.lstrip("+~"))

        shown = filter(varies, run.overrides)
        return " ".join(shown) or " ".join(run.overrides) or run.run_id

    def _time_left(self) -> str:
        seconds = self.seconds_left()
        return f", about {format_duration(seconds)} left" if seconds else ""

    def _counts(self) -> str:
        counts = [f"{self._skipped + self._ended} of {self._total} runs"]
        counts += [f"{self._skipped} of them before"] * bool(self._skipped)
        counts += [f"{self._failed} failed"] * bool(self._failed)
        if self._seconds:
            each = " a run" if self._at_a_time > 1 else ""
            counts.append(f"{self._examples / self._seconds:,.0f} examples/s{each}")
        return ", ".join(counts) + self._time_left()

    def _render(self) -> RenderableType:
        """Return the display. rich's thread calls this, too: it reads copies and changes nothing."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def cut(text: str) -> Text:
            return Text(printable(text), no_wrap=True, overflow="ellipsis")

        running = list(self._running.values())
        done = self._skipped + self._ended + sum(run.progress for run in running)
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(min_width=5 + len(str(self._total)))
        table.add_column(min_width=20, max_width=20)
        table.add_column(ratio=1)
        table.add_row("sweep", ProgressBar(max(self._total, 1), done), Text(self._counts()))
        for run in running:
            bar = ProgressBar(1.0, run.phase_share or 0.0)
            share = _describe_progress(run) if run.phase else _percent(run.share)
            table.add_row(f"run {run.number}", bar, cut(f"{share} {run.knobs}"))
        if self._best.text:
            table.add_row("", "", cut(self._best.text))
        return table


class _Printer(logging.Handler):
    """Hand log messages to a function that prints a line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(self.format(record))
        except Exception:
            self.handleError(record)


def _make_console(stream: TextIO) -> Console | None:
    """Return a console on a terminal that can move its cursor; None on what only says that it takes colours."""
    if not stream.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return None
    from rich.console import Console

    return Console(file=stream)


def _describe_progress(run: RunningRun) -> str:
    """Return how far a run is in its phase, in words."""
    return f"{_percent(run.phase_share)} {f'of {run.phase}' if run.phase else 'answered'}"


def _percent(share: float | None) -> str:
    return f"{math.floor(100 * (share or 0.0))}%"
