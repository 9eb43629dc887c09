"""What the commands have in common that measure something of a model without a run: inspect and sensitivity."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from mxsweep.terminal import streams
from mxsweep.terminal.errors import ConfigError

EXIT_UNWRITABLE = 1
EXIT_USAGE = 2  # nothing was measured: the command line makes no sense
EXIT_INTERRUPTED = 130


def answered(program: str, command: Callable[[], int]) -> int:
    """The exit code of a command called ``program``; what a person can mend ends it with one line."""

    def answer() -> int:
        try:
            return command()
        except ConfigError as error:
            print(f"{program}: {error}", file=sys.stderr)
            return EXIT_USAGE
        except OSError as error:
            why = f"{error.filename!r}: {error.strerror}" if error.filename else str(error)
            print(f"{program}: {why}", file=sys.stderr)
            return EXIT_USAGE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED

    return streams.steadily(answer)


def left(program: str, output: Path, write: Callable[[Path], list[Path]]) -> int:
    """Have ``write`` leave files in ``output`` and say which; the exit code."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        files = write(output)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"{program}: cannot write to {output}: {reason}; name another --output", file=sys.stderr)
        return EXIT_UNWRITABLE
    print("\nWritten:\n" + "\n".join(f"  {path}" for path in files))
    return 0
