"""What remedies take: calibration, searched scales, GPTQ, a rotation search, a bit budget, key smoothing.

    python -m benchmarks.remedies [options] [KNOB=VALUE ...]

One model, 32 sequences of 512 tokens (`--samples`, `--length`), each remedy in a run of its own in one process, with
nothing kept from before: its seconds and, on a GPU, the most memory allocated meanwhile, as the run's record has
them. The model's own pass over the calibration tokens, unquantized, is timed beside them, as a unit to judge by.
The figures are printed as JSON, and a table after them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import (
    REPOSITORY,
    TASK,
    BenchmarkError,
    describe_machine,
    markdown_table,
    positive,
    say,
    words_of,
    write_json,
)
from benchmarks.material import Material, add_arguments, with_material

REMEDIES = {  # name: (knobs, the part of the record's account that is timed)
    "gptq": (["ptq=gptq"], "ptq"),
    "gptq-rotated": (["ptq=gptq", "rotation=hadamard"], "ptq"),
    "gptq-wush": (["ptq=gptq", "rotation=wush"], "ptq"),
    "autoround": (["ptq=autoround", "rotation=hadamard"], "ptq"),
    "qat": (["ptq=qat", "rotation=hadamard"], "ptq"),
    "clip": (["ptq=clip"], "ptq"),
    "smooth": (["kv_quant.smooth=0.5"], "smooth"),
    "search": (["rotation=search"], "search"),
    "search-clip": (["ptq=clip", "rotation=search"], "search"),
    "budget": (["ptq.budget=4.5"], "budget"),
}
EVALUATED = 64  # examples of each run: it is not the evaluation that is measured


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.remedies", description="The time and memory of remedies, W4A4KV4 by default."
    )
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="further knobs of the runs")
    add_arguments(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="calibration text (default: data/novels_heldout.txt in $MXSWEEP_SHARED, or in ../shared)",
    )
    group.add_argument("--samples", type=positive, default=32, help="calibration sequences (32)")
    group.add_argument("--length", type=positive, default=512, help="tokens of each (512)")
    names = list(REMEDIES)
    group.add_argument(
        "--remedies", type=words_of(names), default=names, metavar="R,...", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Its exit code: 0, 1 if a remedy could not be measured, 2 if none could."""
    return with_material("remedies", parse_args(argv), _main)


def _main(args: argparse.Namespace, material: Material) -> int:
    text = args.text or Path(os.environ.get("MXSWEEP_SHARED", REPOSITORY.parent / "shared")) / "data/novels_heldout.txt"
    if not text.is_file():
        raise BenchmarkError(f"{text} is not there: name a calibration text with --text")
    words = [
        *(
            "model=hf",
            f"model.path={material.model}",
            f"task={TASK}",
            f"task.data={material.data}",
            f"limit={EVALUATED}",
        ),
        *("format=mxfp4", "kv_quant=fp4_e2m1", "calibration=text", f"calibration.path={text.resolve()}"),
        *(f"calibration.samples={args.samples}", f"calibration.length={args.length}", *args.knobs),
    ]
    with tempfile.TemporaryDirectory(prefix="mxsweep-remedies-") as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # nothing is there yet
        found = []
        for name in args.remedies:
            found.append(measure(name, words))
            say(json.dumps(found[-1]))  # the rest may take long
        unit = forward_seconds(words)
    content = {
        "machine": describe_machine(),
        "material": material.as_dict(),
        "knobs": words,
        "forward_s": unit,
        "remedies": found,
    }
    write_json(args.json, content)
    print(json.dumps(content, indent=2))
    rows = [[one["name"], *_cells(one, unit)] for one in found]
    print(markdown_table(["remedy", "seconds", "forward passes", "peak GPU GiB", "of what"], rows))
    return 1 if any("reason" in one for one in found) else 0


def measure(name: str, words: Sequence[str]) -> dict[str, Any]:
    """One remedy's figures, or the reason why there are none."""
    from mxsweep import compose, run

    say(f"measuring {name}")
    knobs, part = REMEDIES[name]
    record = run(compose([*words, *knobs]))
    if record["status"] != "done":
        return {"name": name, "reason": record["error"]["message"]}
    account = record["remedies"][part]
    return {
        "name": name,
        "seconds": account["seconds"],
        "peak_gpu_bytes": account.get("peak_gpu_bytes"),
        "cached": account.get("cached"),
        "remedies_s": record["timing"]["remedies_s"],
        "steps": len(account.get("steps", ())),
    }


def forward_seconds(words: Sequence[str]) -> float:
    """Seconds of one unquantized pass over the calibration tokens, logits included; the best of three."""
    from mxsweep import compose
    from mxsweep.calibrate.texts import calibration_tokens
    from mxsweep.forward.sequence_loss import measure_loss
    from mxsweep.runs.evaluator import load_configured

    config = compose([*words, "ptq=gptq"])
    loaded = load_configured(config.model)
    tokens = calibration_tokens(config.calibration, config.model, loaded.tokenizer, config.calibration.length)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        measure_loss(loaded.model, tokens.sequences)
        best = min(best, time.perf_counter() - began)
    return best


def _cells(one: dict[str, Any], unit: float) -> list[str]:
    if "reason" in one:
        return ["-", "-", "-", one["reason"]]
    peak = one["peak_gpu_bytes"]
    return [
        f"{one['seconds']:.2f}",
        f"{one['seconds'] / unit:.0f}",
        "-" if peak is None else f"{peak / 2**30:.1f}",
        f"{one['steps']} losses" if one["steps"] else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
