"""Measure what a command takes before its first run: starting, and planning a sweep, in seconds of the CPU.

What a process waits for, as another one's turn, is not in it. Each command is a process of its own, whole, and none
of them does a run.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import BenchmarkError, describe_machine, machine_lines, markdown_table, positive, say, write_json

REPOSITORY = Path(__file__).resolve().parents[1]
PEER = ["-c", "import torch"]  # in the same run, what other times are to be seen beside
HUNDRED = ["block_size=8,16,32,64,128", "scale_bits=4,5,6,7,8", "rounding=nearest,even,floor,stochastic"]
PLAN = (
    "import sys; from mxsweep.config.overrides import prepare; from mxsweep.sweeps.plan import plan\n"
    "grids, _ = prepare(sys.argv[1:]); print(len(plan(grids, multirun=True).runs))"
)
COMMANDS = {
    "import torch, for comparison": PEER,
    "--help": ["-m", "mxsweep", "--help"],
    "--status, of a run": ["-m", "mxsweep.collect", "--status", "."],
    "a value refused": ["-m", "mxsweep", "block_size=-1"],
    "one run planned": ["-c", PLAN],
    "dry_run=true, the first": ["-m", "mxsweep", "dry_run=true"],
    "dry_run=true, again": ["-m", "mxsweep", "dry_run=true"],
    "100 runs and their baseline planned": ["-c", PLAN, *HUNDRED],
    "120 trainings planned (mx_training)": ["-c", PLAN, "experiment=mx_training"],
}


REFUSED = {"a value refused": 2}  # exit codes other than 0
FIRST = ("dry_run=true, the first",)  # before which nothing is in the cache folder


def cpu_s(
    words: Sequence[str], code: int = 0, folder: str | Path = REPOSITORY, cache: str | Path | None = None
) -> float:
    """Return the seconds that a process of Python with these arguments computes, user and system.

    Args:
        words: of the command line.
        code: the exit code that it is to have.
        folder: where it is started.
        cache: the folder that it keeps things in; None for the user's.

    Raises:
        BenchmarkError: it ended with another exit code.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    surroundings |= {} if cache is None else {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=surroundings, capture_output=True, text=True)
    if done.returncode != code:
        raise BenchmarkError(f"{' '.join(words[-2:])} ended with exit code {done.returncode}: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _taken(name: str, words: Sequence[str], folder: Path) -> float:
    if name in FIRST:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return cpu_s(words, REFUSED.get(name, 0), folder, folder / "cache")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code: 0, or 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="of which the median is taken (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    args = parser.parse_args(argv)
    taken: dict[str, float] = {}
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / "run").mkdir()
            (Path(folder) / "run" / "result.json").write_text('{"schema": 1, "status": "failed"}')
            for name, words in COMMANDS.items():
                say(name)
                taken[name] = median(_taken(name, words, Path(folder)) for _ in range(args.repeats))
    except BenchmarkError as error:
        say(f"start: {error}")
        return 2
    machine, peer = describe_machine(), next(iter(taken.values()))
    rows = [[name, f"{seconds:.2f}", f"{seconds / peer:.2f}"] for name, seconds in taken.items()]
    print("\n".join(machine_lines(machine)))
    print("\n" + markdown_table(["process", "CPU seconds", "x import torch"], rows))
    content: dict[str, Any] = {"machine": machine, "cpu_s": taken}
    write_json(args.json, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
