"""Measure what scoring takes with a large vocabulary, beside the decoder alone over the same batches.

A Llama of random weights in bfloat16 scores words (the last tokens of short passages) and texts (every token of long
ones). The decoder alone is the same forward pass without its output layer and without log-likelihoods; the logits are
the same pass with its output layer, so that scoring beyond them is what log-likelihoods take.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import (
    describe_machine,
    machine_lines,
    markdown_table,
    positive,
    positives,
    ratio,
    say,
    write_json,
)
from benchmarks.material import SHAPES

LIMIT = 1.3  # times the decoder alone
KINDS = {"words": (80, 2), "texts": (1024, 1023)}  # tokens of a request, and how many of them are scored


def measure(run: Callable[[], object], repeats: int) -> tuple[float, float | None]:
    """Return the median of a call's seconds, and the most GiB above what a GPU held before; None on a CPU."""
    import torch

    gpu, taken = torch.cuda.is_available(), []
    run()
    held = 0
    if gpu:
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        if gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), (torch.cuda.max_memory_allocated() - held) / 2**30 if gpu else None


def compare(shape: str, vocabulary: int, tokens: int, repeats: int) -> dict[str, dict[str, float | None]]:
    """Return for each kind of request the seconds and GiB of scoring ``tokens`` tokens, and of the decoder alone."""
    import numpy as np
    import torch
    from torch import Tensor
    from transformers import LlamaConfig, LlamaForCausalLM

    from mxsweep.forward.batches import Batch, BatchLimits, Passage, batch_tokens_on
    from mxsweep.forward.engine import Engine
    from mxsweep.forward.scoring import BATCH_LOGITS, TOO_LONG, Scorer, ScoringRequest, unique_inputs

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = LlamaConfig(**{**SHAPES[shape].config, "vocab_size": vocabulary, "tie_word_embeddings": True})
    with device:
        model = LlamaForCausalLM(config).bfloat16().eval()
    limit, draw = batch_tokens_on(device), np.random.default_rng(0)
    figures: dict[str, dict[str, float | None]] = {}

    def read_logits(engine: Engine, passages: Sequence[Passage]) -> None:
        for _ in engine.read(passages, drop):
            pass

    def drop(_batch: Batch, _logits: Tensor) -> None:
        pass

    for kind, (length, targets) in KINDS.items():
        ids = draw.integers(vocabulary, size=(max(1, tokens // length), length), dtype=np.int32)
        requests = [ScoringRequest(row, targets) for row in ids]
        passages = [item.passage for item in unique_inputs(requests, length)]
        scorer = Scorer(model, limit, length)
        engine = Engine(model, BatchLimits(limit, BATCH_LOGITS), TOO_LONG)
        scored, scored_gib = measure(functools.partial(scorer.score, requests), repeats)
        logits, _ = measure(functools.partial(read_logits, engine, passages), repeats)
        alone, alone_gib = measure(functools.partial(engine.decode, passages), repeats)
        figures[kind] = {"scored": scored, "logits": logits, "decoder": alone}
        figures[kind] |= {"scored_gib": scored_gib, "decoder_gib": alone_gib}
    return figures


def gib(value: float | None) -> str:
    """Return a size for a table; a dash where it was not measured."""
    return "-" if value is None else f"{value:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code: 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vocabulary", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of the Llama but for its vocabulary (1b)")
    parser.add_argument("--entries", type=positives, default=[32768, 262144], metavar="N,N", help="(32768,262144)")
    parser.add_argument("--tokens", type=positive, default=131072, metavar="N", help="of each kind of request (131072)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="of which the median is taken (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    args = parser.parse_args(argv)
    machine, rows, figures = describe_machine(), [], {}
    for entries in args.entries:
        say(f"{entries:,} entries")
        figures[entries] = compare(args.shape, entries, args.tokens, args.repeats)
        for kind, each in figures[entries].items():
            seconds = [f"{each[name]:.3f}" for name in ("scored", "logits", "decoder")]
            seconds += [ratio(each["scored"], each[name]) for name in ("logits", "decoder")]
            rows.append([kind, f"{entries:,}", *seconds, *(gib(each[name]) for name in ("scored_gib", "decoder_gib"))])
    print("\n".join(machine_lines(machine)))
    headers = ["scored", "entries", "scoring, s", "logits, s", "decoder alone, s", "x logits", "x decoder"]
    headers += ["scoring, GiB", "decoder, GiB"]
    print("\n" + markdown_table(headers, rows) + f"\n\nMeant to be at most {LIMIT} x the decoder; GiB are of a GPU.")
    write_json(args.json, {"machine": machine, "limit": LIMIT, "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
