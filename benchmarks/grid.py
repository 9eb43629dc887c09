"""The wall time of a whole study: a baseline, ex1 and ex2, which is 25 evaluations of LAMBADA and a report.

    python -m benchmarks.grid [options] [KNOB=VALUE ...]

mxsweep does it in one process, which is timed from outside, from its start to its exit (with --workers, in as many as
are asked for, on a GPU each). Beside it stands the same work on the stock path (`grid_stock.py`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import (
    TASK,
    describe_machine,
    machine_lines,
    markdown_table,
    positives,
    ratio,
    say,
    write_json,
)
from benchmarks.grid_stock import add_stock_arguments, measure_stock, stock_text
from benchmarks.grid_time import GridTime, run_grid
from benchmarks.material import Material, add_arguments, with_material


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grid",
        description="Wall time of baseline, ex1, ex2 and their report, mxsweep beside stock lm-eval.",
    )
    parser.add_argument(
        "knobs", nargs="*", metavar="KNOB=VALUE", help="further knobs of mxsweep's runs; custom_cuda=false halves them"
    )
    add_arguments(parser)
    add_stock_arguments(parser)
    parser.add_argument(
        "--workers",
        type=positives,
        metavar="N,...",
        help="instead: mxsweep's runs by N processes, for each N, each on a GPU of its own (or on a share of the CPU "
        "where there is none); nothing of the stock path",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    return parser.parse_args(argv)


def grid_text(grid: GridTime) -> str:
    """mxsweep's part of the report."""
    counted = f"{len(grid.records)} runs ({len(grid.failed)} failed, {len(grid.proven)} proven, not evaluated)"
    lines = [
        f"mxsweep: {counted} and the report in one process, {grid.wall_s:.1f} s from its start to its exit",
        "",
        markdown_table(
            ["part", "seconds", "share"],
            [[part, f"{s:.2f}", f"{s / grid.wall_s:.1%}"] for part, s in grid.parts.items()],
        ),
        "",
        markdown_table(
            ["run", "kv_quant", "block", "bits", "cuda", "quantize s", "eval s", "rest s", "examples/s", "acc", "ppl"],
            [_run_row(number, record) for number, record in enumerate(grid.records, 1)],
        ),
        "",
        f"Report: {', '.join(grid.report) or 'not written'}",
    ]
    reasons = dict.fromkeys(record["error"]["message"] for record in grid.failed)
    return "\n".join([*lines, *(f"- failed: {reason}" for reason in reasons)])


def _run_row(number: int, record: dict[str, Any]) -> list[str]:
    config, timing = record["config"], record["timing"]
    quantized = config["format"]["name"] != "none"
    knobs = [str(config[knob]) if quantized else "-" for knob in ("block_size", "scale_bits", "custom_cuda")]
    cells = [str(number) if quantized else "baseline", config["kv_quant"]["name"], *knobs]
    if record["status"] != "done":
        return cells + ["failed"] + ["-"] * 5
    metrics = record["metrics"][TASK]
    times = ["proven", *["-"] * 3]
    if "proven_by" not in record:
        times = [
            f"{timing['quantize_s']:.3f}",
            f"{timing['eval_s']:.2f}",
            f"{timing['total_s'] - timing['quantize_s'] - timing['eval_s']:.2f}",
            f"{record['examples_per_sec']:,.1f}",
        ]
    return [*cells, *times, f"{metrics['acc']:.4f}", f"{metrics['perplexity']:.5g}"]


def workers_text(times: Mapping[int, GridTime]) -> str:
    """The report of the same grid by different numbers of processes; times are seen beside those of the first."""
    first = next(iter(times.values()))
    rows = [
        [
            str(count),
            f"{grid.span_s:.2f}",
            ratio(grid.span_s, first.span_s),
            f"{sum(record['timing'].get('eval_s', 0.0) for record in grid.records):.2f}",
            f"{grid.until_first_s:.2f}",
            f"{grid.wall_s - grid.until_first_s - grid.span_s:.2f}",
            f"{grid.wall_s:.2f}",
            ratio(grid.wall_s, first.wall_s),
            str(len(grid.records)),
            str(len(grid.proven)),
            "-" if grid is first else "yes" if _metrics(grid) == _metrics(first) else "no",
        ]
        for count, grid in times.items()
    ]
    headers = ["workers", "first run to last, s", "x", "evaluating, all, s", "before, s", "after, s", "process, s", "x"]
    return markdown_table([*headers, "runs", "proven", "same metrics"], rows)


def _metrics(grid: GridTime) -> dict[str, Any]:
    """The metrics of each run, by its config's hash, to the last bit."""
    return {record["config_hash"]: record["metrics"] for record in grid.records}


def _figures(grid: GridTime) -> dict[str, Any]:
    """What a file of figures holds of a grid."""
    kept = ("run_id", "status", "overrides", "timing", "examples_per_sec", "metrics")
    return {
        "wall_s": grid.wall_s,
        "until_first_s": grid.until_first_s,
        "span_s": grid.span_s,
        "parts_s": grid.parts,
        "report": grid.report,
        "proven": len(grid.proven),
        "runs": [{key: record[key] for key in kept} for record in grid.records],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Its exit code: 0, 1 if one of mxsweep's runs failed, 2 if nothing could be measured."""
    return with_material("grid", parse_args(argv), _main)


def _main(args: argparse.Namespace, material: Material) -> int:
    content = {"machine": describe_machine(), "material": material.as_dict(), "knobs": args.knobs}
    head = "\n".join([*machine_lines(content["machine"]), *material.notes])
    return (_by_workers if args.workers else _by_one_process)(args, material, head, content)


def _by_workers(args: argparse.Namespace, material: Material, head: str, content: dict[str, Any]) -> int:
    times: dict[int, GridTime] = {}
    for count in args.workers:
        say(f"mxsweep: baseline, grid and report, by {count} workers")
        times[count] = run_grid(material, args.knobs, count)
    print(f"{head}\n\n{workers_text(times)}", flush=True)
    write_json(args.json, content | {"workers": {str(count): _figures(grid) for count, grid in times.items()}})
    return 1 if any(grid.failed for grid in times.values()) else 0


def _by_one_process(args: argparse.Namespace, material: Material, head: str, content: dict[str, Any]) -> int:
    say("mxsweep: baseline, grid and report")
    grid = run_grid(material, args.knobs)
    print(f"{head}\n\n{grid_text(grid)}", flush=True)
    content["mxsweep"] = _figures(grid)
    if args.stock_runs:
        stock = measure_stock(args, material)
        print(f"\n{stock_text(stock, grid, material.rows)}")
        content["stock"] = stock.as_dict()
    write_json(args.json, content)
    return 1 if grid.failed else 0


if __name__ == "__main__":
    sys.exit(main())
