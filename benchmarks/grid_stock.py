"""The time of the grid's 25 runs on the stock path, where each run is a process of its own.

What a process needs before it evaluates is measured, some evaluations are measured on part of the data, and their sum
is scaled to 25 whole runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import BenchmarkError, markdown_table, positive, positives, say, subset, words_of
from benchmarks.grid_time import GridTime, timed_process
from benchmarks.material import Material

BLOCK_SIZES, SCALE_BITS = (16, 32, 64), (6, 8)  # of ex1 and ex2
STOCK_RUNS = ("none", "cuda", "cuda+kv", "torch", "torch+kv")
WARMUP = 512  # examples of the warm-up


def add_stock_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is measured of the stock path."""
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

    def as_dict(self) -> dict[str, Any]:
        """For the JSON output."""
        return {
            "setup_s": self.setup_s,
            "setup": self.setup,
            "results": self.results,
            "missing": self.missing,
            "total_s_scaled": self.total_s,
            "formula": self.formula,
        }


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
