"""Run one config or a sweep of them: ``python -m mxsweep [-m] [KNOB=VALUE ...]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from mxsweep.config.command_line import parse_command_line
from mxsweep.files.bytecode import keep_bytecode
from mxsweep.sweeps.answer import answer_line
from mxsweep.terminal.command import leave, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a run failed, 2 if nothing could be run, 130 if interrupted."""
    words = sys.argv[1:] if argv is None else argv
    return run_command("mxsweep", lambda: answer_line(parse_command_line(words)), "interrupted before a run began")


def command() -> NoReturn:
    """Run the command as it is installed, ``mxsweep``, and end the process."""
    keep_bytecode()
    leave(main())


if __name__ == "__main__":
    command()
