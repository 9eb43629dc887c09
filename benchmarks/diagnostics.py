"""What `diagnostics=true` costs, beside the evaluation that it explains.

    python -m benchmarks.diagnostics [options] [KNOB=VALUE ...]

One model, LAMBADA, one process; of the path `embedded` the model and the task that come with mxsweep, on the CPU, which
needs no data. Each path is warmed up on a few examples and then run in turn without and with
diagnostics; each ratio is within one run: what its diagnostics took, by what its evaluation took. The figures are
printed as JSON, and a line for each path after them.

The first run of a process with diagnostics also reads the sample with the unquantized model; the runs after it have
that at hand, as those of a sweep do. Both ratios are given. What diagnostics add to quantizing the weights (comparing
them with the exact arithmetic) is counted as theirs: the difference from the run without, beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import TASK, describe_machine, positive, say, words_of, write_json
from benchmarks.material import Material, add_arguments, with_material

EMBEDDED = "embedded"
PATHS = {
    "cuda": ["format=w4a6", "kv_quant=fp4_e2m1", "custom_cuda=true"],
    "torch": ["format=w4a6", "kv_quant=fp4_e2m1", "custom_cuda=false"],
    EMBEDDED: ["model=tiny", "task=story", "model.device=cpu", "block_size=16", "scale_bits=6"],
}
MOST = 0.10  # of the evaluation


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diagnostics", description="The cost of diagnostics=true, W4A6 + KV4 on LAMBADA."
    )
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="further knobs of the runs")
    add_arguments(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--paths",
        type=words_of(list(PATHS)),
        default=["cuda", "torch"],
        metavar="P,...",
        help="of cuda, torch, embedded (cuda,torch)",
    )
    group.add_argument("--repeats", type=positive, default=3, help="runs without and with diagnostics (3)")
    group.add_argument("--warmup", type=positive, default=512, metavar="N", help="examples of a warm-up (512)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, material: Material | None, path: str) -> dict[str, Any]:
    """One path's figures, or the reason why there are none; material is for paths that bring no model of their own."""
    from mxsweep import compose, run
    from mxsweep.evaluate.logit_distance import forget_logits

    words = [*PATHS[path], *args.knobs]
    if path != EMBEDDED:
        assert material is not None
        words = ["model=hf", f"model.path={material.model}", f"task={TASK}", f"task.data={material.data}", *words]
    say(f"measuring {path}")
    runs: list[dict[str, Any]] = [run(compose([*words, f"limit={args.warmup}", "diagnostics=true"]))]
    forget_logits()  # what the warm-up, or the path before, kept of the unquantized model
    for _ in range(args.repeats):
        runs += [run(compose(words)), run(compose([*words, "diagnostics=true"]))]
    failed = next((record["error"]["message"] for record in runs if record["status"] != "done"), None)
    if failed is not None:
        return {"path": path, "reason": failed}
    plain, diagnosed = runs[1::2], runs[2::2]
    same = all(record["metrics"] == plain[0]["metrics"] for record in plain + diagnosed)
    costs, ratios = [], []
    for without, record in zip(plain, diagnosed, strict=True):
        timing = record["timing"]
        costs.append(timing["diagnostics_s"] + max(0.0, timing["quantize_s"] - without["timing"]["quantize_s"]))
        ratios.append(costs[-1] / timing["eval_s"])
    return {
        "path": path,
        "examples": plain[0]["n_effective"]["story" if path == EMBEDDED else TASK],
        "same_metrics": same,
        "eval_s": [record["timing"]["eval_s"] for record in diagnosed],
        "eval_without_s": [record["timing"]["eval_s"] for record in plain],
        "quantize_s": [record["timing"]["quantize_s"] for record in diagnosed],
        "quantize_without_s": [record["timing"]["quantize_s"] for record in plain],
        "diagnostics_s": [record["timing"]["diagnostics_s"] for record in diagnosed],
        "cost_s": costs,
        "ratio_first": ratios[0],
        "ratio": statistics.median(ratios[1:]) if len(ratios) > 1 else None,
        "most": MOST,
        "sample": diagnosed[0]["diagnostics"]["sample"],
        "distance": diagnosed[0]["diagnostics"]["distance"],
        "warnings": [warning for record in diagnosed for warning in record["warnings"]],
    }


def line(found: dict[str, Any]) -> str:
    """One path's figures for a person."""
    if "reason" in found:
        return f"{found['path']}: not measured: {found['reason']}"
    later = "" if found["ratio"] is None else f", {found['ratio']:.1%} in later runs ({found['cost_s'][-1]:.3f} s)"
    return (
        f"{found['path']}: diagnostics take {found['ratio_first']:.1%} of the evaluation in the first run "
        f"({found['cost_s'][0]:.3f} s of {found['eval_s'][0]:.3f} s){later}; allowed: {MOST:.0%}; metrics "
        f"{'bit for bit the same' if found['same_metrics'] else 'NOT the same'} with and without"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Its exit code: 0, 1 if a path could not be measured, 2 if none could."""
    args = parse_args(argv)
    return _main(args, None) if args.paths == [EMBEDDED] else with_material("diagnostics", args, _main)


def _main(args: argparse.Namespace, material: Material | None) -> int:
    found = [measure(args, material, path) for path in args.paths]
    content = {
        "machine": describe_machine(),
        "material": None if material is None else material.as_dict(),
        "knobs": args.knobs,
        "paths": found,
    }
    write_json(args.json, content)
    print(json.dumps(content, indent=2))
    print("\n".join(map(line, found)))
    return 1 if any("reason" in one for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
