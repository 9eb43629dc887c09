"""Run a command: its exit code, and one line on standard error for whatever a person can mend."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from mxsweep.terminal.errors import CommandError
from mxsweep.terminal.escapes import printable
from mxsweep.terminal.interrupts import interrupts_remembered
from mxsweep.terminal.streams import with_safe_streams

EXIT_FAILED = 1  # a run failed, or a file could not be written
EXIT_USAGE = 2  # nothing was done: the command line makes no sense
EXIT_INTERRUPTED = 130  # by Ctrl-C, as a shell counts it
MOST_TEXT = 1500  # characters of a message, which may quote what was typed
SPINS = "3000"  # looks at a flag, some tens of microseconds: as long as Python takes to the next operation


def run_command(program: str, command: Callable[[], int], interrupted: str | None = None) -> int:
    """Call ``command`` and return its exit code; print what a person can mend as one line and return EXIT_USAGE.

    What it computes on a CPU, and what processes that it starts compute, waits for threads asleep: those of OpenMP spin
    otherwise, on a busy machine in the way of the threads that they wait for (a training took 3.9 times as long). Where
    no more than half of the cores were busy of late, they look for more work for a moment before they fall asleep, as
    waking up takes as long as many an operation of a small model. A policy that is set already stays.

    Args:
        program: what to begin the line with.
        command: what to do. It raises CommandError for what the user can mend; OSErrors of files are met here, too.
        interrupted: what to say after Ctrl-C; None for nothing.
    """

    def call() -> int:
        try:
            if sys.flags.optimize > 1:
                raise CommandError("python -OO takes away docstrings that transformers reads; use python or python -O")
            return command()
        except CommandError as error:
            message = str(error)
        except OSError as error:
            message = f"{error.filename!r}: {error.strerror}" if error.filename else str(error)
            if not _is_in_a_folder():
                message = "the folder that this was started in is gone; change to one that is there"
        except KeyboardInterrupt:
            if interrupted:
                print(f"{program}: {interrupted}", file=sys.stderr)
            return EXIT_INTERRUPTED
        print(f"{program}: {printable(_shortened(message))}", file=sys.stderr)
        return EXIT_USAGE

    _wait_asleep()
    with interrupts_remembered():
        return with_safe_streams(call)


def _wait_asleep() -> None:
    """Set how OpenMP's threads wait, which is read when torch is loaded, as no command has done yet."""
    if "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    with contextlib.suppress(OSError):  # where the system does not say
        if os.getloadavg()[0] <= (os.cpu_count() or 1) / 2:
            os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # of GNU's, which torch brings on Linux: before the policy's


def leave(code: int) -> NoReturn:
    """End this process at once with an exit code, as multiprocessing ends the processes that it forks.

    What is registered for the end is done, and threads are waited for that are to be. But objects are not taken apart
    one by one, which of torch and transformers takes about half as long as to import them: the system frees them whole.
    Where others have more to do, the process ends as any other: a module that runs this one, as a profiler, a debugger
    or runpy does, and ``python -i``.
    """
    if _is_run_by_another() or sys.flags.inspect or "PYTHONINSPECT" in os.environ:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    ctypes.CDLL(None).fflush(None)  # what libraries in C have printed
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # a reader who has left, which run_command has dealt with
            stream.flush()
    os._exit(code)


def _is_run_by_another() -> bool:
    """Return whether a module or a script called the one that is the command, or a tool watches what it does."""
    frame, modules = sys._getframe(), 0
    while frame is not None:
        modules += frame.f_code.co_name == "<module>"
        frame = frame.f_back  # type: ignore[assignment]
    return modules > 1 or bool(sys.getprofile() or sys.gettrace())


def write_output(program: str, output: Path, write: Callable[[Path], list[Path]]) -> int:
    """Make the folder ``output``, have ``write`` put files there, print their names, and return the exit code."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        files = write(output)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"{program}: cannot write to {output}: {reason}; name another --output", file=sys.stderr)
        return EXIT_FAILED
    print_written(files)
    return 0


def print_written(files: list[Path]) -> None:
    """Print the names of the files that a command wrote."""
    print(printable("\nWritten:\n" + "\n".join(f"  {path}" for path in files)))


def _shortened(message: str) -> str:
    return message if len(message) <= MOST_TEXT else f"{message[: MOST_TEXT // 2]} ... {message[-400:]}"


def _is_in_a_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False
