"""Collect runs into a table, files, figures and a page: `python -m mxsweep.collect [DIR...]`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mxsweep.report.collection import CollectError, collect
from mxsweep.report.status import status_text
from mxsweep.results.manifest import MANIFEST_NAME
from mxsweep.results.record import find_runs, newest_sweep
from mxsweep.terminal.command import EXIT_FAILED, print_written, run_command

PROGRAM = "mxsweep.collect"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if the files could not be written, 2 if there is no run."""
    return run_command(PROGRAM, lambda: _collect(_parser().parse_args(argv)))


def _collect(arguments: argparse.Namespace) -> int:
    dirs = arguments.dirs or [newest_sweep()]
    if dirs == [None]:
        raise CollectError("no run below ./multirun or ./outputs: name the folder to collect")
    if arguments.status:
        _print_status(dirs)
        return 0
    result = collect(dirs, arguments.output, arguments.reference)
    print(result.text)
    if result.write_error:
        print(f"{PROGRAM}: {result.write_error}", file=sys.stderr)
        return EXIT_FAILED
    print_written(result.files)
    return 0


def _print_status(dirs: Sequence[Path]) -> None:
    try:
        runs = find_runs(dirs)
    except FileNotFoundError as error:
        raise CollectError(str(error)) from error
    if not runs:
        raise CollectError(f"no run in {', '.join(map(str, dirs))}")
    print(f"{', '.join(map(str, dirs))}\n\n{status_text(runs)}")
    is_unfinished = any(run.status in ("failed", "missing") for run in runs)
    if is_unfinished and len(dirs) == 1 and (dirs[0] / MANIFEST_NAME).is_file():
        print(f"To go on: python -m mxsweep resume=true hydra.sweep.dir={shlex.quote(str(dirs[0]))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mxsweep.collect",
        description="Collect runs into a table, report.html, results.md, .tex, .csv, .parquet, and figures.",
    )
    parser.add_argument(
        "dirs",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="sweeps or runs (default: the newest sweep below ./multirun or, if there is none, "
        "the newest run below ./outputs)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the files go (default: the folder collected or, if there are several, ./collected)",
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="put published numbers beside these: a name in conf/reference, such as ex_report, or a YAML file",
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="print only how far the sweeps are: each planned run, done, running, failed (and why) or missing",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
