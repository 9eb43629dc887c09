"""How far two models' next-token distributions are apart, at the scored positions of a sample.

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
from dataclasses import asdict, dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.evaluate.diagnostic_sample import Passage, Sample
from mxsweep.evaluate.standard_errors import weighted_mean_stderr
from mxsweep.forward.scoring import is_out_of_memory, logits_only_at
from mxsweep.terminal.errors import ConfigError

BATCH_TOKENS = 16_384  # of a pass, padding included: the same whatever an evaluation's batches are
PIECE = 2**22  # logits compared at a time, in float64
KEPT_BYTES = 2**30  # of unquantized logits, in host memory

# Told the shape (B, T) of a batch, and the places in B T of the tokens, none of them padding, that are measured.
Began = Callable[[tuple[int, int], Tensor], None]

# Of each model's samples the logits, and as what each was sampled. They are freed with the model.
_kept: WeakKeyDictionary[PreTrainedModel, OrderedDict[tuple[str, str], Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Distance:
    """Means over scored positions, with standard errors (NaN for a single example)."""

    kl_nats: float
    kl_nats_stderr: float
    top1_agreement: float
    top1_agreement_stderr: float
    positions: int
    examples: int

    def as_dict(self) -> dict[str, float]:
        """For the record."""
        return asdict(self)


def read_logits(model: PreTrainedModel, sample: Sample, began: Began | None = None) -> Tensor:
    """The model's logits at the scored positions of ``sample``, (P, V) in its dtype, in the order of the examples.

    Args:
        began: told of each batch before the model reads it.

    Raises:
        ConfigError: a passage does not fit in memory by itself.
    """
    examples = enumerate(sample.examples)
    items = [_Item(passage, number < sample.measured) for number, example in examples for passage in example]
    # Those that are measured first, so that they are in few batches: measuring many tokens takes about as long as few.
    order = sorted(range(len(items)), key=lambda i: (not items[i].measured, -len(items[i].passage.tokens)))
    found: dict[int, Tensor] = {}
    while order:
        count = _count_within(BATCH_TOKENS, [len(items[i].passage.tokens) for i in order])
        batch, order = order[:count], order[count:]
        found |= zip(batch, _read_batch(model, [items[i] for i in batch], began), strict=True)
    return torch.cat([found[i] for i in range(len(items))])


@dataclass(frozen=True)
class _Item:
    """A passage to read; whether tensors are measured on it."""

    passage: Passage
    measured: bool


def _count_within(tokens: int, lengths: Sequence[int]) -> int:
    """How many sequences, from the first on, make a batch of so many tokens, padding included; one at least."""
    longest = 0
    for count, length in enumerate(lengths, 1):
        longest = max(longest, length)
        if count * longest > tokens:
            return max(1, count - 1)
    return len(lengths)


def _read_batch(model: PreTrainedModel, batch: Sequence[_Item], began: Began | None) -> Sequence[Tensor]:
    """Each passage's logits. A batch that does not fit in memory is read in halves."""
    try:
        return _read(model, batch, began)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            tokens = len(batch[0].passage.tokens)
            raise ConfigError(f"a passage of {tokens:,} tokens does not fit in GPU memory") from None
    torch.cuda.empty_cache()  # here, where the failed pass has let go of its tensors
    half = len(batch) // 2
    return [*_read_batch(model, batch[:half], began), *_read_batch(model, batch[half:], began)]


@torch.no_grad()  # and not inference mode, whose tensors have no version by which MX layers recognize a shared input
def _read(model: PreTrainedModel, batch: Sequence[_Item], began: Began | None) -> Sequence[Tensor]:
    passages = [item.passage for item in batch]
    lengths = [len(passage.tokens) for passage in passages]
    longest = max(lengths)
    ids = np.zeros((len(passages), longest), dtype=np.int64)  # padded on the right, which no real token sees
    for row, passage in zip(ids, passages, strict=True):
        row[: len(passage.tokens)] = passage.tokens
    counts = [len(passage.positions) for passage in passages]
    positions = np.concatenate([passage.positions + row * longest for row, passage in enumerate(passages)])
    if began is not None:
        places = [np.arange(length) + row * longest for row, length in enumerate(lengths) if batch[row].measured]
        real = np.concatenate([np.zeros(0, dtype=np.int64), *places])
        began((len(passages), longest), _on_device(real, model.device))
    tokens, scored = _on_device(ids, model.device), _on_device(positions, model.device)
    with logits_only_at(model, tokens.shape, scored):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits[:, 0]
    return logits.split(counts)


def _on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """On a GPU in a transfer that the host does not wait for: a batch is launched while the last one is read."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def kept_logits(model: PreTrainedModel, sample: Sample) -> Tensor | None:
    """What :func:`keep_logits` kept of this model for this sample."""
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
    """Let go of all that was kept."""
    _kept.clear()


def distance(sample: Sample, unquantized: Tensor, quantized: Tensor) -> Distance:
    """Between the models that these logits (P, V) at the sample's scored positions are of."""
    step = max(1, PIECE // quantized.shape[1])
    parts = [
        _compare(p.to(quantized.device, non_blocking=True), q)
        for p, q in zip(unquantized.split(step), quantized.split(step), strict=True)
    ]
    values = torch.cat(parts, dim=1).cpu().numpy()
    counts = [sum(len(passage.positions) for passage in example) for example in sample.examples]
    sums = np.add.reduceat(values, np.cumsum([0, *counts[:-1]]), axis=1)
    mean, stderr = values.mean(axis=1), [weighted_mean_stderr(row, counts) for row in sums]
    return Distance(float(mean[0]), stderr[0], float(mean[1]), stderr[1], values.shape[1], len(counts))


def _compare(unquantized: Tensor, quantized: Tensor) -> Tensor:
    """(2, P) float64: KL divergence, and 1 where the likeliest token is the same, else 0."""
    log_p, log_q = (logits.double().log_softmax(dim=-1) for logits in (unquantized, quantized))
    p = log_p.exp()
    # A token of probability 0 adds nothing, whatever q says of it.
    kl = torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(dim=-1)
    same = (unquantized.argmax(dim=-1) == quantized.argmax(dim=-1)) & ~kl.isnan()
    return torch.stack([kl, same.double()])
