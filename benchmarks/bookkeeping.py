"""What a run costs beside its evaluation: a hundred small runs, and their baseline, in one process.

    python -m benchmarks.bookkeeping [options] [KNOB=VALUE ...]

The embedded model answers two questions a run, so that nearly all of the time is what mxsweep does around a run. Where
it goes is read off the clock of the process's start and end, the records' `timing`, and when sweep.json and the
result.json were written.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import (
    BenchmarkError,
    describe_machine,
    machine_lines,
    markdown_table,
    positive,
    say,
    write_json,
)

SWEEP = ["block_size=8,16,32,64,128", "scale_bits=4,5,6,7,8", "rounding=nearest,even,floor,stochastic"]
OWN = ("load_s", "quantize_s", "warm_up_s", "prepare_s", "eval_s")  # of a record's timing: the run itself
TARGET_S = 0.3  # of bookkeeping a run
STARTS = 3  # of the interpreter, of which the median is taken


@dataclass(frozen=True)
class Bookkeeping:
    """Where the time of a sweep went, in seconds.

    Attributes:
        wall_s: from the process's start to its exit, seen from outside; the following parts add up to it.
        cpu_s: what the process and its children computed, user and system.
        start_s: Python and mxsweep's own imports, measured by itself; once a process.
        planning_s: composing and checking all runs, until sweep.json is there.
        imports_s: torch, transformers and lm-eval; once a process, in its first run.
        own_s: loading, quantizing, preparing and evaluating: the sum over the runs.
        execution_s: the rest until the last result.json: claims, logs, samples, records.
        collecting_s: table, files, figures, and the process's exit.
    """

    runs: int
    wall_s: float
    cpu_s: float
    start_s: float
    planning_s: float
    imports_s: float
    own_s: float
    execution_s: float
    collecting_s: float

    @property
    def bookkeeping_s(self) -> float:
        """Planning, execution and collecting, together."""
        return self.planning_s + self.execution_s + self.collecting_s

    @property
    def cpu_bookkeeping_s(self) -> float:
        """The same of the CPU's time: what the process waited for, as another process's turn, is not in it."""
        return max(0.0, self.cpu_s - self.start_s - self.imports_s - self.own_s)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bookkeeping",
        description="What a run costs beside its evaluation, from a hundred small runs and their baseline.",
    )
    parser.add_argument(
        "knobs", nargs="*", metavar="KNOB=VALUE", help=f"in the place of those of the sweep ({' '.join(SWEEP)})"
    )
    parser.add_argument("--limit", type=positive, default=2, metavar="N", help="questions a run (2)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the sweep in DIR/sweep (a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    return parser.parse_args(argv)


def measure(work: Path, knobs: Sequence[str], limit: int) -> Bookkeeping:
    """Run the sweep in `work`/sweep, and take its time apart.

    Raises:
        BenchmarkError: the sweep did not end well.
    """
    sweep = work / "sweep"
    if sweep.exists():
        shutil.rmtree(sweep)  # of an earlier benchmark in the same --work: a finished run would not be run again
    # One thread, so that the CPU's time can be set beside the clock's.
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start_s = median(_start_s(surroundings) for _ in range(STARTS))
    words = ["-m", *_sweep(knobs), f"limit={limit}", "model.device=cpu", f"hydra.sweep.dir='{sweep}'"]
    cpu_before, began = _children_s(), time.time()
    with (work / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run([sys.executable, "-m", "mxsweep", *words], stdout=log, stderr=log, env=surroundings)
    ended, cpu_s = time.time(), _children_s() - cpu_before
    if done.returncode != 0:
        tail = "\n".join((work / "log.txt").read_text(encoding="utf-8").splitlines()[-15:])
        raise BenchmarkError(f"the sweep ended with exit code {done.returncode}; the last it said:\n{tail}")
    files = sorted(sweep.glob("*/result.json"), key=lambda file: file.stat().st_mtime_ns)
    timings = [json.loads(file.read_text(encoding="utf-8"))["timing"] for file in files]
    planned, last = (sweep / "sweep.json").stat().st_mtime, files[-1].stat().st_mtime
    own_s = sum(timing[part] for timing in timings for part in OWN)
    imports_s = timings[0]["total_s"] - sum(timings[0][part] for part in OWN)
    return Bookkeeping(
        runs=len(files),
        wall_s=ended - began,
        cpu_s=cpu_s,
        start_s=start_s,
        planning_s=planned - began - start_s,
        imports_s=imports_s,
        own_s=own_s,
        execution_s=last - planned - imports_s - own_s,
        collecting_s=ended - last,
    )


def _sweep(knobs: Sequence[str]) -> list[str]:
    typed = {knob.partition("=")[0] for knob in knobs}
    return [*(word for word in SWEEP if word.partition("=")[0] not in typed), *knobs]


def _start_s(surroundings: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mxsweep.__main__"], env=surroundings, check=True)
    return time.perf_counter() - began


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def bookkeeping_text(found: Bookkeeping) -> str:
    """The report."""

    def row(part: str, seconds: float, shown: bool = True) -> list[str]:
        return [part, f"{seconds:.2f}", f"{seconds / found.runs * 1000:.1f}" if shown else "-"]

    total = found.bookkeeping_s / found.runs
    return "\n".join(
        [
            f"{found.runs} runs in one process: {found.wall_s:.1f} s by the clock, {found.cpu_s:.1f} s of the CPU",
            "",
            markdown_table(
                ["part", "seconds", "ms a run"],
                [
                    row("start, once", found.start_s, shown=False),
                    row("imports of the first run, once", found.imports_s, shown=False),
                    row("the runs themselves", found.own_s),
                    row("planning", found.planning_s),
                    row("execution: claims, logs, samples, records", found.execution_s),
                    row("collecting: table, files, figures; exit", found.collecting_s),
                    row("bookkeeping: the last three", found.bookkeeping_s),
                    row("bookkeeping, of the CPU's time", found.cpu_bookkeeping_s),
                ],
            ),
            "",
            f"Bookkeeping costs {total:.3f} s a run, {'under' if total < TARGET_S else 'over'} {TARGET_S} s.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Its exit code: 0, or 2 if nothing could be measured."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        say("a hundred runs and their baseline")
        try:
            found = measure(work, args.knobs, args.limit)
        except BenchmarkError as error:
            say(f"bookkeeping: {error}")
            return 2
    machine = describe_machine()
    print("\n".join(machine_lines(machine)))
    print(f"\n{bookkeeping_text(found)}")
    content: dict[str, Any] = {"machine": machine, "knobs": _sweep(args.knobs), "limit": args.limit}
    per_run = {"bookkeeping_s": found.bookkeeping_s, "cpu_bookkeeping_s": found.cpu_bookkeeping_s}
    write_json(args.json, content | asdict(found) | per_run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
