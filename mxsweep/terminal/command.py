"""What the commands have in common that measure something of a model without a run: inspect and sensitivity."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mxsweep.config.checks import is_folder
from mxsweep.config.overrides import excerpt
from mxsweep.config.run_config import SWEEP_KNOBS
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


def check_command_line(knobs: Sequence[str], config_dir: Path | None) -> None:
    """Raises ConfigError for a folder that is not there, and for knobs of sweeps and launchers."""
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError(f"--config-dir: {str(config_dir)!r} is not a folder")
    for knob in knobs:
        key = knob.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in SWEEP_KNOBS or key.startswith("hydra"):
            raise ConfigError(f"{excerpt(key)}: has no use here, where nothing is run")


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


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A row for each mapping, under the first one's keys; the file is whole or absent. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
