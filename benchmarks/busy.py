"""Measure quantizing on a CPU whose cores have other work: as many threads as cores, beside one thread alone.

Each figure is taken in a process of its own: while nothing else of this benchmark runs, and while as many
processes as there are cores compute without an end.
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
rows, repeats, arithmetic, threads = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads)
x, fmt, taken = torch.randn(rows, 4096, generator=torch.Generator().manual_seed(0)), MXFormat("fp4_e2m1", 32), []
for _ in range(repeats + 1):
    began = time.perf_counter()
    quantize(x, fmt, arithmetic=arithmetic)
    taken.append(time.perf_counter() - began)
print(json.dumps(sorted(taken[1:])))
"""
SPIN = "while True: pass"


def seconds(rows: int, repeats: int, arithmetic: str, threads: int, busy: int) -> list[float]:
    """Return the seconds of each repeat, ascending, while `busy` processes compute. Raises BenchmarkError."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(busy)]
    words = [sys.executable, "-c", ONE, str(rows), str(repeats), arithmetic, str(threads)]
    try:
        # As mxsweep's commands have it: a thread that waits does not spin.
        surroundings = {**os.environ, "OMP_WAIT_POLICY": "passive"}
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
        for arithmetic in ("native", "exact"):
            for busy in (0, cores):
                say(f"{arithmetic}, {busy} other processes")
                medians = {}
                for threads in (1, cores):
                    each = seconds(args.rows, args.repeats, arithmetic, threads, busy)
                    taken[f"{arithmetic}, {threads} threads, {busy} others"] = each
                    medians[threads] = 1000 * each[len(each) // 2]
                row = [f"{medians[1]:.0f}", f"{medians[cores]:.0f}", f"{medians[cores] / medians[1]:.2f}"]
                rows.append([arithmetic, str(busy), *row])
    except BenchmarkError as error:
        say(f"busy: {error}")
        return 2
    print("\n".join(machine_lines(machine)))
    headers = ["arithmetic", "other processes", "1 thread, ms", f"{cores} threads, ms", "x 1 thread"]
    print("\n" + markdown_table(headers, rows))
    write_json(args.json, {"machine": machine, "seconds": taken})
    return 0


if __name__ == "__main__":
    sys.exit(main())
