"""Collect runs into a table, files, figures and a page: `python -m mxsweep.collect [DIR...]`."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mxsweep.formats.cached_bits import USUAL_CONTEXT
from mxsweep.report.collection import CollectError, collect
from mxsweep.report.status import status_text
from mxsweep.results.manifest import MANIFEST_NAME
from mxsweep.results.record import find_runs, newest_sweep
from mxsweep.study.memory_terms import WITHIN, Terms
from mxsweep.terminal.command import EXIT_FAILED, leave, print_written, run_command

PROGRAM = "mxsweep.collect"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if the files could not be written, 2 if there is no run.

    What became of the runs is what it says, and not how it went.
    """
    return run_command(PROGRAM, lambda: _collect(_parser().parse_args(argv)))


def _collect(arguments: argparse.Namespace) -> int:
    dirs = arguments.dirs or [newest_sweep()]
    if dirs == [None]:
        raise CollectError("no run below ./multirun or ./outputs: name the folder to collect")
    if arguments.status:
        _print_status(dirs)
        return 0
    result = collect(dirs, arguments.output, arguments.reference, Terms(arguments.context, arguments.within))
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
        "--context",
        type=_context,
        default=USUAL_CONTEXT,
        metavar="TOKENS",
        help="tokens whose keys and values count in the memory that runs take, as many as the model holds at most "
        f"(default: {USUAL_CONTEXT:,})",
    )
    parser.add_argument(
        "--within",
        type=_share,
        default=WITHIN,
        metavar="PERCENT",
        help="name the run of the least memory whose perplexity is within this of the baseline's (default: "
        f"{WITHIN:.0%})".replace("%", "%%"),
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="print only how far the sweeps are: each planned run, done, running, failed (and why) or missing",
    )
    return parser


def _context(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; allowed: a whole number from 1 on")
    return int(text)


def _share(text: str) -> float:
    """Return a share, written as a percentage: "1%" and "1" are 0.01."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = math.nan
    if not 0 <= share < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage; allowed: a number from 0 on, as 1%")
    return share


if __name__ == "__main__":
    leave(main())
