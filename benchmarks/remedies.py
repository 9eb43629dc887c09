"""What remedies take: calibration, searched scales, GPTQ, a rotation search, a bit budget, key smoothing.

    python -m benchmarks.remedies [options] [KNOB=VALUE ...]

One model, 32 sequences of 512 tokens (`--samples`, `--length`), each remedy in a run of its own in one process, with
nothing kept from before: its seconds and, on a GPU, the most memory allocated meanwhile, as the run's record has
them. The model's own pass over the calibration tokens, unquantized, is timed beside them, as a unit to judge by.
The figures are printed as JSON, and a table after them.

Remedies that take steps take longest. With `--steps N` they take N of them, and what these took is counted as often as
the run that was asked for takes N steps; what is not of steps, as GPTQ before them and checks among them, is counted as
it was. The table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
TUNED = ("autoround", "qat")  # which take steps
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
    group.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help=f"of {', '.join(TUNED)}: take N, and count their time for all (default: take all)",
    )
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
        found = []
        for name in args.remedies:
            os.environ["XDG_CACHE_HOME"] = f"{cache}/{name}"  # nothing is there yet
            found.append(measure(name, words, args.steps if name in TUNED else None))
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


def measure(name: str, words: Sequence[str], steps: int | None = None) -> dict[str, Any]:
    """One remedy's figures, or the reason why there are none; of one that takes steps, in so many of them."""
    from mxsweep import compose, run

    say(f"measuring {name}")
    knobs, part = REMEDIES[name]
    asked = compose([*words, *knobs])
    with steps_timed() as of_steps:
        record = run(asked if steps is None else compose([*words, *knobs, f"ptq.steps={steps}"]))
    if record["status"] != "done":
        return {"name": name, "reason": record["error"]["message"]}
    account = record["remedies"][part]
    scaled = {}
    if steps is not None:
        scaled = {"steps_taken": steps, "steps_asked": asked.ptq.steps, "measured_s": account["seconds"]}
    rest = asked.ptq.steps / steps - 1 if steps is not None else 0
    return {
        "name": name,
        "seconds": account["seconds"] + rest * sum(of_steps),
        "of_steps_s": sum(of_steps),
        **scaled,
        "peak_gpu_bytes": account.get("peak_gpu_bytes"),
        "cached": account.get("cached"),
        "remedies_s": record["timing"]["remedies_s"],
        "losses": len(account.get("steps", ())),
    }


@contextmanager
def steps_timed() -> Iterator[list[float]]:
    """While the context lasts, notes the seconds that tuning takes for steps, from one check to the next."""
    import torch

    from mxsweep.calibrate import block_tuning, finetuning, tuning_steps

    seconds: list[float] = []
    plain = tuning_steps.tune

    def timed(
        matrices: Any, sites: Any, weights: Any, objective: Any, check: Any, steps: Any, *rest: Any, **more: Any
    ) -> Any:
        began: list[float] = []

        def begun() -> Iterator[list[int]]:
            for batches in steps:
                if not began:
                    began.append(now())
                yield batches

        def checked() -> float:
            if began:
                seconds.append(now() - began.pop())
            return check()

        return plain(matrices, sites, weights, objective, checked, begun(), *rest, **more)

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    block_tuning.tune = finetuning.tune = timed
    try:
        yield seconds
    finally:
        block_tuning.tune = finetuning.tune = plain


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
        _of_what(one),
    ]


def _of_what(one: dict[str, Any]) -> str:
    if "steps_taken" in one:
        return (
            f"{one['steps_taken']} of {one['steps_asked']} steps measured: {one['measured_s']:.2f} s, of which "
            f"{one['of_steps_s']:.2f} s for steps, counted {one['steps_asked'] / one['steps_taken']:g} times"
        )
    if one["of_steps_s"]:
        return f"{one['of_steps_s']:.2f} s for steps"
    return f"{one['losses']} losses" if one["losses"] else ""


if __name__ == "__main__":
    sys.exit(main())
