"""Measure quantizing on a CPU, idle and while its cores have other work: by the library, by torch's operations.

Copying stands beside both. Each figure is taken in a process of its own, by one thread and by as many as there are
cores: while nothing else of this benchmark runs, and while as many processes as there are cores compute without an end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import BenchmarkError, describe_machine, machine_lines, markdown_table, positive, say, write_json

ONE = """
import json, sys, time, torch
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.kernels.cpu_library import LIBRARY
rows, repeats, path, threads = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads)
x, fmt, taken = torch.randn(rows, 4096, generator=torch.Generator().manual_seed(0)), MXFormat("fp4_e2m1", 32), []
if path == "copy":
    call = x.clone
else:
    by, arithmetic = path.split()
    if (LIBRARY.build() is not None) != (by == "library"):
        sys.exit("no C++ compiler")
    call = lambda: quantize(x, fmt, arithmetic=arithmetic)
for _ in range(repeats + 1):
    began = time.perf_counter()
    call()
    taken.append(time.perf_counter() - began)
print(json.dumps(sorted(taken[1:])))
"""
PATHS = ("copy", "library native", "torch native", "library exact", "torch exact")
SPIN = "while True: pass"


def seconds(rows: int, repeats: int, path: str, threads: int, busy: int) -> list[float]:
    """Return the seconds of each repeat, ascending, while `busy` processes compute. Raises BenchmarkError."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(busy)]
    words = [sys.executable, "-c", ONE, str(rows), str(repeats), path, str(threads)]
    try:
        # As mxsweep's commands have it: a thread that waits does not spin.
        surroundings = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        if path.startswith("torch"):
            surroundings["CXX"] = ""
        done = subprocess.run(words, env=surroundings, capture_output=True, text=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    if done.returncode != 0:
        raise BenchmarkError(f"quantizing ended with exit code {done.returncode}: {done.stderr[-500:]}")
    return [float(each) for each in json.loads(done.stdout)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code: 0, or 2 if nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=positive, default=4096, metavar="N", help="of 4096 float32 elements (4096)")
    parser.add_argument("--repeats", type=positive, default=9, metavar="N", help="of which the median is taken (9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    args = parser.parse_args(argv)
    machine = describe_machine()
    cores, rows, taken = int(machine["cpus"]), [], {}
    try:
        for busy in (0, cores):
            copies: dict[int, float] = {}
            for path in PATHS:
                say(f"{path}, {busy} other processes")
                medians = {}
                for threads in (1, cores):
                    each = seconds(args.rows, args.repeats, path, threads, busy)
                    taken[f"{path}, {threads} threads, {busy} others"] = each
                    medians[threads] = 1000 * each[len(each) // 2]
                copies = copies or medians
                found = [medians[1], medians[1] / copies[1], medians[cores], medians[cores] / copies[cores]]
                figures = [f"{found[0]:.1f}", f"{found[1]:.1f}", f"{found[2]:.1f}", f"{found[3]:.1f}"]
                rows.append([path, str(busy), *figures, f"{medians[cores] / medians[1]:.2f}"])
    except BenchmarkError as error:
        say(f"busy: {error}")
        return 2
    print("\n".join(machine_lines(machine)))
    headers = ["path", "other processes", "1 thread, ms", "copies", f"{cores} threads, ms", "copies", "x 1 thread"]
    print("\n" + markdown_table(headers, rows))
    write_json(args.json, {"machine": machine, "seconds": taken})
    return 0


if __name__ == "__main__":
    sys.exit(main())
