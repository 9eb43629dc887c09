"""Print to standard output and error where they are closed, full, or unable to show a letter.

What a command prints is never a reason for it to stop halfway, or to end in a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, cast


class _SafeStream:
    """Write to a stream without ever failing, and remember the first write that did."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, ValueError) as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def with_safe_streams(command: Callable[[], int]) -> int:
    """Call a command that may print to whatever there is, and return its exit code; 1 for 0 where a write failed.

    A reader who has left (`| head`) had what he wanted.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(io.TextIOBase, _safe(stream)) for stream in before)
    try:
        code = command()
    except SystemExit as end:  # of argparse, and of Hydra
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = before
        errors = [_write_error(stream) for stream in streams]
    if any(errors) and not isinstance(errors[0] or errors[1], BrokenPipeError):
        code = code or 1
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(f"mxsweep: the output could not be written ({errors[0] or errors[1]})", file=sys.stderr)
    return code


def _safe(stream: Any) -> Any:
    if stream is None:  # closed by the shell, as by `2>&-`
        return open(os.devnull, "w", encoding="utf-8")
    if type(stream) is not io.TextIOWrapper:  # of a test, a notebook or the like, which knows what it does
        return stream
    # Under LANG=C a table's plus-minus sign, and the name of a folder that is no text, cannot be encoded.
    with contextlib.suppress(ValueError, OSError):
        stream.reconfigure(errors="backslashreplace")
    return _SafeStream(stream)


def _write_error(stream: Any) -> Exception | None:
    """Return why not all that was printed to a stream has been written; None where it has."""
    if not isinstance(stream, _SafeStream):
        return None
    stream.flush()
    if stream.error is not None:
        # The interpreter flushes once more when it ends, and would complain.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    return stream.error
