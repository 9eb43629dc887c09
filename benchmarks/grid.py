"""The wall time of a whole study: a baseline, ex1 and ex2, which is 25 evaluations of LAMBADA and a report.

    python -m benchmarks.grid [options] [KNOB=VALUE ...]

mxsweep does it in one process, which is timed from outside, from its start to its exit (with --workers, in as many as
are asked for, on a GPU each). Beside it stands the same work on the stock path, where each run is a process of its own:
what a process needs before it evaluates is measured, some evaluations are measured on part of the data, and their sum
is scaled to 25 whole runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import (
    TASK,
    BenchmarkError,
    describe_machine,
    machine_lines,
    markdown_table,
    positive,
    positives,
    ratio,
    say,
    subset,
    words_of,
    write_json,
)
from benchmarks.grid_time import GridTime, run_grid, timed_process
from benchmarks.material import Material, add_arguments, with_material

BLOCK_SIZES, SCALE_BITS = (16, 32, 64), (6, 8)  # of ex1 and ex2
STOCK_RUNS = ("none", "cuda", "cuda+kv", "torch", "torch+kv")
WARMUP = 512  # examples of the stock path's warm-up


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
    group = parser.add_argument_group("the stock path")
    group.add_argument(
        "--stock-runs",
        type=words_of(STOCK_RUNS),
        default=list(STOCK_RUNS),
        metavar="R,...",
        help=f"kinds of run that are measured, of {', '.join(STOCK_RUNS)} (all); '' measures nothing",
    )
    group.add_argument(
        "--stock-blocks",
        type=positives,
        default=list(BLOCK_SIZES),
        metavar="N,...",
        help="block sizes at which a quantized kind is measured (16,32,64)",
    )
    group.add_argument(
        "--stock-limit", type=positive, default=1024, metavar="N", help="measure on N rows, spread evenly (1024)"
    )
    group.add_argument(
        "--stock-batch",
        type=positives,
        default=None,
        metavar="N,...",
        help="sequences a forward pass; of several, the quickest in a warm-up (those of benchmarks.stock)",
    )
    group.add_argument(
        "--stock-bootstrap", type=int, default=None, metavar="N", help="resamples of the perplexity (lm-eval's own)"
    )
    parser.add_argument(
        "--workers",
        type=positives,
        metavar="N,...",
        help="instead: mxsweep's runs by N processes, for each N, each on a GPU of its own (or on a share of the CPU "
        "where there is none); nothing of the stock path",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class StockTime:
    """What the stock path takes.

    Attributes:
        setup_s: a process's start, imports, lm-eval's index of tasks, model and exit; measured from outside.
        setup: parts of it, as the process itself measured them.
        results: measured evaluations, as benchmarks.stock wrote them.
        missing: kinds of run that cannot be measured here, with the reason.
        total_s: of all runs, scaled; None where a kind that is needed was not measured.
        formula: how ``total_s`` came about, in words.
    """

    setup_s: float
    setup: dict[str, float]
    results: list[dict[str, Any]]
    missing: dict[str, str]
    total_s: float | None
    formula: str


def measure_stock(args: argparse.Namespace, material: Material) -> StockTime:
    """Measure a process that evaluates nothing, then one that evaluates all points, and scale."""
    data, _ = subset(material.data, args.stock_limit, material.work)
    warmup, _ = subset(material.data, min(WARMUP, args.stock_limit), material.work)
    common = ["--model", str(material.model), "--data", str(data), "--work", str(material.work)]
    say("stock path: a process that evaluates nothing")
    setup_s, empty = _stock_process(material.work / "stock_setup", common)
    say("stock path: evaluations")
    options = ["--warmup-data", str(warmup)]
    if args.stock_batch is not None:
        options += ["--batch", ",".join(map(str, args.stock_batch))]
    if args.stock_bootstrap is not None:
        options += ["--bootstrap", str(args.stock_bootstrap)]
    _, found = _stock_process(material.work / "stock_runs", [*_points(args), *common, *options])
    total_s, formula = scale(setup_s, found["results"], material.rows)
    return StockTime(setup_s, empty["setup"], found["results"], found["missing"], total_s, formula)


def _points(args: argparse.Namespace) -> list[str]:
    points = []
    for run in args.stock_runs:
        quantized, _, kv = run.partition("+")
        sizes = args.stock_blocks if quantized != "none" else []
        points += [f"{quantized}:{size}{':kv' if kv else ''}" for size in sizes] or [quantized]
    return points


def _stock_process(stem: Path, arguments: list[str]) -> tuple[float, dict[str, Any]]:
    output = stem.with_suffix(".json")
    output.unlink(missing_ok=True)
    wall_s, log = timed_process(["benchmarks.stock", *arguments, "--json", str(output)], stem.with_suffix(".txt"))
    if not output.is_file():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise BenchmarkError(f"the stock path's process did not reach its end; the last it said:\n{tail}")
    return wall_s, json.loads(output.read_text(encoding="utf-8"))


def scale(setup_s: float, results: Sequence[dict[str, Any]], examples: int) -> tuple[float | None, str]:
    """The stock path's time for all 25 runs on ``examples`` examples, from what was measured.

    A run's seconds per example are those measured for its kind and block size; where that block size was not
    measured, the mean of those that were. Scale bits do not change the work.

    Returns:
        Seconds, None where a kind of run was not measured at all; and the formula, with its numbers.
    """
    measured: dict[tuple[str, bool], dict[int, float]] = {}
    for result in results:
        point = result["point"]
        sizes = measured.setdefault((point["quantized"], point["key_value"]), {})
        sizes[point["block_size"]] = mean(result["seconds"]) / result["examples"]
    kinds: list[tuple[str, bool]] = [("none", False), *product(("cuda", "torch"), (False, True))]
    absent = [_kind_name(*kind) for kind in kinds if kind not in measured]
    if absent:
        return None, f"no estimate: nothing measured for {', '.join(absent)}"
    terms, runs, evaluating = [], 0, 0.0
    for kind in kinds:
        sizes = measured[kind]
        wanted = [0] if kind[0] == "none" else [size for size in BLOCK_SIZES for _ in SCALE_BITS]
        each = [sizes.get(size, mean(sizes.values())) for size in wanted]
        runs += len(wanted)
        evaluating += sum(each) * examples
        terms.append(f"{len(wanted)} {_kind_name(*kind)} at {mean(each) * 1000:.3f} ms an example")
    total_s = runs * setup_s + evaluating
    formula = (
        f"{runs} processes x {setup_s:.1f} s + {examples:,} examples x ({'; '.join(terms)}) "
        f"= {runs * setup_s:,.0f} s + {evaluating:,.0f} s = {total_s:,.0f} s"
    )
    return total_s, formula


def _kind_name(quantized: str, key_value: bool) -> str:
    names = {"none": "unquantized", "cuda": "microxcaling CUDA", "torch": "microxcaling PyTorch"}
    return names[quantized] + (" with KV" if key_value else "")


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


def stock_text(stock: StockTime, grid: GridTime, examples: int) -> str:
    """The stock path's part of the report."""
    setup = stock.setup
    rows = [
        [
            r["name"],
            f"{r['examples']:,}",
            str(r["batch_size"]),
            f"{mean(r['seconds']):.2f}",
            f"{mean(r['model_seconds']):.2f}",
            f"{r['examples'] / mean(r['seconds']):,.1f}",
            f"{mean(r['seconds']) / r['examples'] * examples:,.1f}",
        ]
        for r in stock.results
    ]
    headers = [
        "evaluation",
        "examples",
        "batch",
        "seconds",
        "in the model class",
        "examples/s",
        f"scaled to {examples:,}",
    ]
    lines = [
        f"Stock path: a process that evaluates nothing takes {stock.setup_s:.1f} s (of which lm-eval's index of tasks "
        f"and the task {setup['tasks_s']:.1f} s, the model {setup['model_s']:.1f} s)",
        "",
        markdown_table(headers, rows),
        "",
        *(f"- {point} was not measured: {reason}" for point, reason in stock.missing.items()),
        f"All 25 runs, scaled from the above, not measured: {stock.formula}",
        "Not counted there: compiling microxcaling's extension, warming up, and any report.",
    ]
    whole = len(grid.records) == 25 and not grid.failed
    if stock.total_s is not None and whole:
        lines.append(f"Stock path (scaled) / mxsweep (measured): {stock.total_s / grid.wall_s:.1f}")
    elif stock.total_s is not None:
        lines.append("No ratio: mxsweep did not do all 25 runs here.")
    return "\n".join(lines)


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
        content["stock"] = {
            "setup_s": stock.setup_s,
            "setup": stock.setup,
            "results": stock.results,
            "missing": stock.missing,
            "total_s_scaled": stock.total_s,
            "formula": stock.formula,
        }
    write_json(args.json, content)
    return 1 if grid.failed else 0


if __name__ == "__main__":
    sys.exit(main())
