"""Examples a second of LAMBADA: mxsweep beside the path that people take without it.

    python -m benchmarks.evaluate [options] [KNOB=VALUE ...]

One model, one data set, one GPU, one process. Every path is warmed up on a few examples and then timed over all of
them, evaluation only: neither loading the model nor quantizing its weights once (mxsweep) counts. The stock paths go
first, before mxsweep's evaluation is imported, since that makes lm-eval quicker for the whole process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import stock
from benchmarks.common import (
    TASK,
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
from benchmarks.material import Material, add_arguments, with_material

QUANTIZED = ["format=w4a6", "kv_quant=fp4_e2m1"]
MXSWEEP_PATHS = {
    "mxsweep-none": ["format=none", "kv_quant=none"],
    "mxsweep-cuda": [*QUANTIZED, "custom_cuda=true"],
    "mxsweep-torch": [*QUANTIZED, "custom_cuda=false"],
}
STOCK_PATHS = {"stock-none": "none", "stock-cuda": "cuda", "stock-torch": "torch"}
WHAT = {
    "mxsweep-none": "mxsweep, unquantized",
    "mxsweep-cuda": "mxsweep, W4A6 + KV4, custom_cuda=true",
    "mxsweep-torch": "mxsweep, W4A6 + KV4, custom_cuda=false",
    "stock-none": "lm-eval's HFLM, unquantized",
    "stock-cuda": "HFLM + microxcaling CUDA, W4A6 + KV4",
    "stock-torch": "HFLM + microxcaling PyTorch, W4A6 + KV4",
}
REFERENCES = ("mxsweep-none", "stock-cuda", "stock-torch")


@dataclass
class Measured:
    """One path: what it took, or the reason why it was not measured.

    Attributes:
        seconds: of each evaluation.
        error: whether the reason is a failure rather than something that this machine lacks.
    """

    path: str
    examples: int = 0
    seconds: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reason: str | None = None
    error: bool = False

    @property
    def median_s(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def examples_per_s(self) -> float | None:
        return self.examples / self.median_s if self.median_s else None

    def as_dict(self) -> dict[str, Any]:
        """For the JSON output."""
        return asdict(self) | {
            "what": WHAT[self.path],
            "median_s": self.median_s,
            "examples_per_s": self.examples_per_s,
        }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluate", description="Examples a second of LAMBADA, mxsweep beside stock lm-eval."
    )
    parser.add_argument(
        "knobs", nargs="*", metavar="KNOB=VALUE", help="further knobs of mxsweep's runs, as batch_size=64"
    )
    add_arguments(parser)
    group = parser.add_argument_group("what is measured")
    names = [*MXSWEEP_PATHS, *STOCK_PATHS]
    group.add_argument(
        "--paths", type=words_of(names), default=names, metavar="P,...", help=f"of {', '.join(names)} (all)"
    )
    group.add_argument("--block-size", type=positive, default=32, help="elements that share a scale (32)")
    group.add_argument("--scale-bits", type=positive, default=8, help="width of a scale (8)")
    group.add_argument("--repeats", type=positive, default=3, help="timed evaluations of mxsweep's paths (3)")
    group.add_argument("--warmup", type=positive, default=512, metavar="N", help="examples of a warm-up (512)")
    group.add_argument("--stock-repeats", type=positive, default=1, help="timed evaluations of the stock paths (1)")
    group.add_argument(
        "--stock-limit", type=positive, metavar="N", help="stock paths evaluate N rows, spread evenly (all)"
    )
    group.add_argument(
        "--stock-batch",
        type=positives,
        default=stock.BATCHES,
        metavar="N,...",
        help="sequences a forward pass of the stock paths; of several, the one that is quickest in the warm-up "
        f"({','.join(map(str, stock.BATCHES))})",
    )
    group.add_argument(
        "--stock-bootstrap",
        type=int,
        default=stock.BOOTSTRAP,
        metavar="N",
        help=f"resamples for the standard error of the perplexity in the stock paths (lm-eval's own {stock.BOOTSTRAP})",
    )
    group.add_argument(
        "--profile",
        type=words_of(list(MXSWEEP_PATHS)),
        nargs="?",
        const=["mxsweep-cuda", "mxsweep-none"],
        default=[],
        metavar="P,...",
        help="afterwards profile one evaluation of these paths (mxsweep-cuda,mxsweep-none)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    return parser.parse_args(argv)


def measure_stock(args: argparse.Namespace, material: Material, paths: Sequence[str]) -> list[Measured]:
    """The stock paths, with one model among them."""
    if not paths:
        return []
    data, _ = subset(material.data, args.stock_limit, material.work)
    warmup, _ = subset(material.data, args.warmup, material.work)
    tasks, warmup_tasks = (stock.load_task(file, material.work) for file in (data, warmup))
    lm = stock.load_lm(material.model)
    found = [_measure_stock_path(args, material, path, lm, tasks, warmup_tasks) for path in paths]
    del lm
    stock.release()
    return found


def _measure_stock_path(
    args: argparse.Namespace, material: Material, path: str, lm: Any, tasks: Any, warmup_tasks: Any
) -> Measured:
    kind = STOCK_PATHS[path]
    point = stock.Point(kind, args.block_size, args.scale_bits, key_value=kind != "none")
    notes = []
    reason = stock.problem(point)
    if reason is None and kind == "cuda":
        build_s, reason = stock.build_kernels()
        notes.append(f"{build_s:.1f} s to compile or load microxcaling's CUDA extension, not counted")
    if reason is not None:
        return Measured(path, reason=reason)
    say(f"measuring {path}")
    try:
        result = stock.measure(
            lm,
            point,
            tasks=tasks,
            warmup_tasks=warmup_tasks,
            batches=args.stock_batch,
            repeats=args.stock_repeats,
            bootstrap=args.stock_bootstrap,
        )
    except RuntimeError as error:  # a kernel that fails, or memory that does not suffice: the others go on
        return Measured(path, reason=f"{type(error).__name__}: {error}".splitlines()[0], error=True)
    tried = "".join(f", {batch}: {speed}" for batch, speed in result.tried.items())
    notes.append(f"batches of {result.batch_size}{' (tried' + tried[1:] + ')' if tried else ''}")
    inside = statistics.median(result.model_seconds)
    share = inside / statistics.median(result.seconds)
    notes.append(f"{inside:.2f} s ({share:.0%}) within the model class, the rest is lm-eval's preparation and metrics")
    if result.examples < material.rows:
        notes.append(f"measured on {result.examples:,} of {material.rows:,} examples, spread evenly")
    return Measured(path, result.examples, result.seconds, result.metrics, notes)


def overrides(args: argparse.Namespace, material: Material, path: str) -> list[str]:
    """A path's command line of mxsweep."""
    return [
        "model=hf",
        f"model.path={material.model}",
        f"task={TASK}",
        f"task.data={material.data}",
        *MXSWEEP_PATHS[path],
        f"block_size={args.block_size}",
        f"scale_bits={args.scale_bits}",
        *args.knobs,
    ]


def measure_mxsweep(args: argparse.Namespace, material: Material, path: str) -> Measured:
    """One of mxsweep's paths: its runs' own records."""
    from mxsweep import compose, run

    say(f"measuring {path}")
    words = overrides(args, material, path)
    config = compose(words)
    records = [run(compose([*words, f"limit={args.warmup}"]))]
    while records[-1]["status"] == "done" and len(records) <= args.repeats:
        records.append(run(config))
    if records[-1]["status"] != "done":
        error = records[-1]["error"]
        # What a user can mend, or this machine lacks, is a ConfigError; anything else is a failure.
        return Measured(path, reason=error["message"], error=error["type"] != "ConfigError")
    last = records[-1]
    timings = [record["timing"] for record in records[1:]]
    notes = [
        f"{statistics.median(timing['quantize_s'] for timing in timings):.3f} s to quantize the weights, once a run"
    ]
    return Measured(
        path,
        examples=last["n_effective"][TASK],
        seconds=[timing["eval_s"] for timing in timings],
        metrics={name: last["metrics"][TASK][name] for name in ("acc", "perplexity")},
        notes=notes if path != "mxsweep-none" else [],
    )


def table(measured: Sequence[Measured]) -> str:
    """A row for every path, measured or not, and beneath it what goes with a path."""
    speeds = {one.path: one.examples_per_s for one in measured}
    headers = ["path", "what", "examples", "seconds", "spread", "examples/s", *(f"x {name}" for name in REFERENCES)]
    rows = []
    for one in measured:
        cells = [one.path, WHAT[one.path]]
        if one.median_s is None:
            cells += ["not measured"] + ["-"] * (len(headers) - 3 + 2)
        else:
            spread = f"{min(one.seconds):.2f} to {max(one.seconds):.2f}" if len(one.seconds) > 1 else "-"
            cells += [f"{one.examples:,}", f"{one.median_s:.2f}", spread, f"{one.examples_per_s:,.1f}"]
            cells += [ratio(one.examples_per_s, speeds.get(name)) for name in REFERENCES]
            cells += [f"{one.metrics['acc']:.4f}", f"{one.metrics['perplexity']:.5g}"]
        rows.append(cells)
    lines = [markdown_table([*headers, "acc", "perplexity"], rows, right_from=2), ""]
    for one in measured:
        lines += [f"- {one.path}: {note}" for note in one.notes]
        if one.reason is not None:
            lines.append(f"- {one.path} was not measured: {one.reason}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Its exit code: 0, 1 if a path failed, 2 if nothing could be measured at all."""
    return with_material("evaluate", parse_args(argv), _main)


def _main(args: argparse.Namespace, material: Material) -> int:
    machine = describe_machine()
    found = measure_stock(args, material, [path for path in STOCK_PATHS if path in args.paths])
    ours = [measure_mxsweep(args, material, path) for path in MXSWEEP_PATHS if path in args.paths]
    measured = ours + found
    print("\n".join([*machine_lines(machine), *material.notes]))
    print(f"W4A6 + KV4 in blocks of {args.block_size}, {args.scale_bits} scale bits {' '.join(args.knobs)}".rstrip())
    print(f"\n{table(measured)}")
    content = {
        "machine": machine,
        "material": material.as_dict(),
        "block_size": args.block_size,
        "scale_bits": args.scale_bits,
        "knobs": args.knobs,
        "paths": [one.as_dict() for one in measured],
    }
    if args.profile:
        from benchmarks.profiling import profile_path

        content["profiles"] = {}
        for path in args.profile:
            text, figures = profile_path(path, overrides(args, material, path))
            print(f"\n{text}")
            content["profiles"][path] = figures
    write_json(args.json, content)
    return 1 if any(one.error for one in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
