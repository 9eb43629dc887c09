"""Measure how far two models' next-token distributions are apart, at the scored positions of a sample.

Legend: P scored positions, V vocabulary; p the distribution of the unquantized model, q that of the quantized one.

Accuracy says whether the likeliest answer changed; this says how much everything else did. The Kullback-Leibler
divergence KL(p || q) = sum p (log p - log q) is in nats and 0 only where nothing changed; top-1 agreement is the
share of positions at which both find the same token likeliest.

Positions of one example are not independent, so the standard errors are those of a ratio over examples: the sum over
an example's positions, by their number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.evaluate.diagnostic_sample import Sample
from mxsweep.forward.batches import Batch, BatchLimits, to_device
from mxsweep.forward.engine import Engine
from mxsweep.forward.losses import KL_PIECE, kl_divergences, weighted_mean_stderr

BATCH_TOKENS = 16_384  # of a pass, padding included: the same whatever an evaluation's batches are
KEPT_BYTES = 2**30  # of unquantized logits, in host memory

TOO_LONG = "a passage of {tokens:,} tokens does not fit in GPU memory"

# Given the shape (B, T) of a batch, and the places in B T of the tokens, none of them padding, that are measured.
Watching = Callable[[tuple[int, int], Tensor], AbstractContextManager[object]]

# Of each model's samples the logits, and as what each was sampled. They are freed with the model.
_kept: WeakKeyDictionary[PreTrainedModel, OrderedDict[tuple[str, str], Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Distance:
    """Hold means over scored positions, with standard errors (NaN for a single example)."""

    kl_nats: float
    kl_nats_stderr: float
    top1_agreement: float
    top1_agreement_stderr: float
    positions: int
    examples: int

    def as_dict(self) -> dict[str, float]:
        """Return plain data for the record."""
        return asdict(self)


def read_logits(model: PreTrainedModel, sample: Sample, watching: Watching | None = None) -> Tensor:
    """Return a model's logits at the scored positions of ``sample``, (P, V) in its dtype, in the order of the examples.

    Args:
        watching: makes a context for the reading of each batch.

    Raises:
        ConfigError: a passage does not fit in memory by itself.
    """
    passages = [passage for example in sample.examples for passage in example]
    measured = [number < sample.measured for number, example in enumerate(sample.examples) for _ in example]
    # Those that are measured first, so that they are in few batches: measuring many tokens takes about as long as few.
    order = sorted(range(len(passages)), key=lambda number: (not measured[number], -len(passages[number].tokens)))

    def watch(batch: Batch) -> AbstractContextManager[object]:
        if watching is None:
            return nullcontext()
        return watching(batch.shape, _measured_places(batch, measured, model.device))

    engine = Engine(model, BatchLimits(BATCH_TOKENS), TOO_LONG)
    logits: dict[int, Tensor] = {}
    for batch, parts in engine.read(passages, Batch.split, order=order, around=watch):
        logits |= zip(batch.numbers, parts, strict=True)
    return torch.cat([logits[number] for number in range(len(passages))])


def _measured_places(batch: Batch, measured: Sequence[bool], device: torch.device) -> Tensor:
    """Return the places in a batch's flattened B T of the tokens, none of them padding, that are measured."""
    longest = batch.shape[1]
    lengths = enumerate(zip(batch.numbers, batch.lengths, strict=True))
    places = [np.arange(length) + row * longest for row, (number, length) in lengths if measured[number]]
    (on_device,) = to_device([np.concatenate([np.zeros(0, dtype=np.int64), *places])], device)
    return on_device


def kept_logits(model: PreTrainedModel, sample: Sample) -> Tensor | None:
    """Return what :func:`keep_logits` kept of this model for this sample."""
    return _kept.get(model, OrderedDict()).get((sample.task, sample.digest))


def keep_logits(model: PreTrainedModel, sample: Sample, logits: Tensor) -> None:
    """Keep the unquantized model's logits in host memory, for the next runs of the process; the oldest go first.

    Not on the GPU, whose memory an evaluation shares out to batches.
    """
    kept = _kept.setdefault(model, OrderedDict())
    on_host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=logits.is_cuda)
    kept[sample.task, sample.digest] = on_host.copy_(logits)
    while sum(tensor.nbytes for tensor in kept.values()) > KEPT_BYTES:
        kept.popitem(last=False)


def forget_logits() -> None:
    """Drop all logits that were kept."""
    _kept.clear()


def distance(sample: Sample, unquantized: Tensor, quantized: Tensor) -> Distance:
    """Return how far apart the models are whose logits (P, V) at the sample's scored positions these are."""
    kl = kl_divergences(unquantized, quantized)
    same = _likeliest(unquantized, quantized.device) == _likeliest(quantized, quantized.device)
    values = torch.stack([kl, (same & ~kl.isnan()).double()]).cpu().numpy()
    counts = [sum(passage.rows for passage in example) for example in sample.examples]
    sums = np.add.reduceat(values, np.cumsum([0, *counts[:-1]]), axis=1)
    mean, stderr = values.mean(axis=1), [weighted_mean_stderr(row, counts) for row in sums]
    return Distance(float(mean[0]), stderr[0], float(mean[1]), stderr[1], values.shape[1], len(counts))


def _likeliest(logits: Tensor, device: torch.device) -> Tensor:
    """Return the likeliest token at each position, (P,), worked out on ``device`` piece by piece."""
    pieces = logits.split(max(1, KL_PIECE // logits.shape[1]))
    return torch.cat([piece.to(device, non_blocking=True).argmax(dim=-1) for piece in pieces])
