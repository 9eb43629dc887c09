"""Measure what long texts take a model whose layers have windows, in bands and whole, beside short texts.

A Gemma 3 of random weights in bfloat16, of the 270M's shape, reads documents, each of its own length, with attention
as `mxsweep/model/attention_bands.py` computes it and whole, as transformers asks for it: for the first time in the
process, when kernels are compiled, and again. The same tokens in texts of two windows each are what it would take if
time did not depend on a text's length.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.common import (
    describe_machine,
    machine_lines,
    markdown_table,
    positive,
    ratio,
    say,
    write_json,
)

SHAPES: dict[str, dict[str, Any]] = {
    "270m": {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
    },
    "tiny": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 64,
    },
}  # fmt: skip
ENTRIES = 1024  # of the vocabulary: nothing is scored
COMPARED = 16  # positions, the last ones, whose logits are compared


def build(shape: str) -> Any:
    """Return the model, on a GPU where there is one."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(**SHAPES[shape], vocab_size=ENTRIES, max_position_embeddings=2**17)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return Gemma3ForCausalLM(config).to(torch.bfloat16).eval()


def seconds(engine: Any, texts: Sequence[Any], repeats: int) -> tuple[float, float]:
    """Return what reading texts takes the first time, and the median of so many times after that."""
    import torch

    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        engine.decode(texts)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return taken[0], statistics.median(taken[1:])


def measure(model: Any, documents: int, longest: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of documents whole, in bands, and cut into short texts, and whether bits agree."""
    import numpy as np
    import torch

    from mxsweep.forward import engine as module
    from mxsweep.forward.batches import BatchLimits, Passage

    lengths = [longest * (number + 1) // documents + number for number in range(documents)]
    draw = np.random.default_rng(0)
    texts = [draw.integers(ENTRIES, size=length) for length in lengths]
    engine = module.Engine(model, BatchLimits(1), "{tokens} tokens do not fit")  # a document at a time
    compared = [Passage(text, np.arange(len(text) - COMPARED, len(text))) for text in texts]
    of_two = 2 * model.config.sliding_window
    short = [Passage(part) for text in texts for part in np.split(text, range(of_two, len(text), of_two))]
    bands, found, logits = module.attention_in_bands, dict[str, Any](lengths=lengths), []
    ways: dict[str, Any] = {"whole": nullcontext, "in bands": bands}
    engine.decode([Passage(texts[0][:64])])  # libraries are loaded
    try:
        for name, attention in ways.items():
            module.attention_in_bands = attention
            found[name] = seconds(engine, [Passage(text) for text in texts], repeats)
            logits.append([each for _, each in engine.read(compared, lambda _, logits: logits)])
    finally:
        module.attention_in_bands = bands
    together = module.Engine(model, BatchLimits(16384), "{tokens} tokens do not fit")
    found["short texts"] = seconds(together, short, repeats)
    return {**found, "same_bits": all(torch.equal(*pair) for pair in zip(*logits, strict=True))}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code: 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="270m", help="of Gemma 3 270M, or tiny for a test (270m)")
    parser.add_argument("--documents", type=positive, default=16, metavar="N", help="(16)")
    parser.add_argument("--longest", type=positive, default=16384, metavar="N", help="tokens, or about (16384)")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="of which the median is taken (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    args = parser.parse_args(argv)
    machine, model = describe_machine(), build(args.shape)
    say(f"{args.documents} documents")
    figures = measure(model, args.documents, args.longest, args.repeats)
    least = figures["short texts"][1]
    rows = [
        [
            name,
            *(f"{figures[name][time]:.3f}" for time in (0, 1)),
            *(ratio(figures[name][time], least) for time in (0, 1)),
        ]
        for name in ("whole", "in bands", "short texts")
    ]
    print("\n".join(machine_lines(machine)))
    print(f"\n{sum(figures['lengths']):,} tokens in {args.documents} documents\n")
    print(markdown_table(["read", "first, s", "again, s", "first, x short texts", "again, x short texts"], rows))
    print(f"\nIn bands the bits are {'the same' if figures['same_bits'] else 'others'}.")
    write_json(args.json, {"machine": machine, "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
