"""Show how far a command is, as bars at the foot of a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mxsweep.terminal.progress_callback import Progress


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show a bar for each phase that is reported, on a terminal, and nothing elsewhere; yield what to report to."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(done: int, total: int, phase: str = "", /) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield progress
