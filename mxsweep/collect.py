"""`python -m mxsweep.collect [DIR...]`: what runs found, as a table, files, figures and a page."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mxsweep.report.collection import CollectError, collect
from mxsweep.report.status import status_text
from mxsweep.results.manifest import MANIFEST_NAME
from mxsweep.results.record import RunFolder, find_runs, newest_sweep
from mxsweep.terminal import streams

EXIT_UNWRITABLE = 1
EXIT_NO_RUN = 2


def _runs(dirs: Sequence[Path]) -> list[RunFolder]:
    try:
        runs = find_runs(dirs)
    except FileNotFoundError as error:
        raise CollectError(str(error)) from error
    if not runs:
        raise CollectError(f"no run in {', '.join(map(str, dirs))}")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 if the files could not be written, 2 if there is no run."""
    return streams.steadily(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
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
    arguments = parser.parse_args(argv)
    dirs = arguments.dirs
    try:
        if not dirs:
            newest = newest_sweep()
            if newest is None:
                raise CollectError("no run below ./multirun or ./outputs: name the folder to collect")
            dirs = [newest]
        if arguments.status:
            runs = _runs(dirs)
            print(f"{', '.join(map(str, dirs))}\n\n{status_text(runs)}")
            left = any(run.status in ("failed", "missing") for run in runs)
            if left and len(dirs) == 1 and (dirs[0] / MANIFEST_NAME).is_file():
                print(f"To go on: python -m mxsweep resume=true hydra.sweep.dir={shlex.quote(str(dirs[0]))}")
            return 0
        result = collect(dirs, arguments.output, arguments.reference)
    except CollectError as error:
        print(f"mxsweep.collect: {error}", file=sys.stderr)
        return EXIT_NO_RUN
    except OSError as error:
        print(f"mxsweep.collect: {error.filename!r} cannot be read: {error.strerror}", file=sys.stderr)
        return EXIT_NO_RUN
    print(result.text)
    if result.write_error:
        print(f"mxsweep.collect: {result.write_error}", file=sys.stderr)
        return EXIT_UNWRITABLE
    print("\nWritten:\n" + "\n".join(f"  {path}" for path in result.files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
