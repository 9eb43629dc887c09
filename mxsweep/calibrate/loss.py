"""Losses on calibration tokens: what a choice made before a run is judged by.

Legend: B sequences of a batch, T tokens of its longest, V vocabulary, P next-token positions; p the distribution of the
unquantized model, q that of the model as it is now.

Two losses, both means over next-token positions, in nats:

- The negative log-likelihood of the token that follows (NLL): what perplexity is the exponential of. A small change
  of the model hides in the spread of the tokens.
- KL(p || q) = sum p (log p - log q), the Kullback-Leibler divergence from the unquantized model. It compares whole
  distributions and is 0 only where nothing changed, so that a few thousand positions rank changes that the NLL of as
  many could not tell from nothing. :class:`Divergence` keeps p; it measures the change of the NLL in the same pass.

Sequences are read longest first, in batches padded on the right, where no real token sees the padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.forward.batches import batch_tokens_on
from mxsweep.terminal.errors import ConfigError

if TYPE_CHECKING:
    from mxsweep.calibrate.texts import Calibration

BATCH_LOGITS = 2**29  # B T V of a pass: 1 GiB in bfloat16
LOSS_PIECE = 2**26  # logits in float32 at a time: 0.25 GiB
KL_PIECE = 2**22  # logits in float64 at a time: 32 MiB, a few times over
POSITIONS = 4_096  # of a divergence
KEPT_BYTES = 2**30  # of unquantized logits


@dataclass(frozen=True)
class CalibrationLoss:
    """A mean negative log-likelihood.

    Attributes:
        nats: a token.
        stderr: over sequences, whose tokens are not independent; NaN for a single one.
        tokens: how many were predicted.
    """

    nats: float
    stderr: float
    tokens: int


@dataclass(frozen=True)
class Shift:
    """How far a model is from what it was unquantized, in nats a token, with standard errors over sequences.

    Attributes:
        kl: the mean KL(unquantized || now).
        loss: by how much the NLL of the tokens that follow is above the unquantized model's.
        positions: that the means are over.
    """

    kl: float
    kl_stderr: float
    loss: float
    loss_stderr: float
    positions: int


def calibration_loss(model: PreTrainedModel, calibration: Calibration, batch_tokens: int | None = None) -> float:
    """The mean NLL, nats a token, of all tokens of the calibration sequences but their first, as the model is now."""
    return measure_loss(model, calibration, batch_tokens).nats


@torch.no_grad()  # and not inference mode, whose tensors have no version by which MX layers recognize a shared input
def measure_loss(model: PreTrainedModel, calibration: Calibration, batch_tokens: int | None = None) -> CalibrationLoss:
    """As :func:`calibration_loss`, with its standard error. Sums are float64.

    Args:
        batch_tokens: of a pass; None for what suits the device. Fewer where the vocabulary is large.

    Raises:
        ConfigError: no sequence has a token to predict, or one does not fit in memory by itself.
    """
    sequences = _with_targets(calibration.sequences)
    sums = torch.zeros(len(sequences), dtype=torch.float64)
    for index, logits in _each_logits(model, sequences, batch_tokens):
        sums[index] = _nll(logits, sequences[index]).sum().cpu()
    counts = [len(sequence) - 1 for sequence in sequences]
    mean, stderr = _mean(sums.numpy(), counts)
    return CalibrationLoss(mean, stderr, sum(counts))


class Divergence:
    """How far a model moves from what it was when this was made, at a bounded sample of calibration positions.

    The sample is of whole sequences in an order that ``seed`` decides, the last of them cut. Their logits are kept
    in the model's dtype on its device, (P, V) in at most ``KEPT_BYTES``.

    Args:
        model: unquantized.
        positions: P, at most.
        batch_tokens: as for :func:`measure_loss`.

    Raises:
        ConfigError: as :func:`measure_loss`.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        calibration: Calibration,
        positions: int = POSITIONS,
        seed: int = 0,
        batch_tokens: int | None = None,
    ) -> None:
        room = KEPT_BYTES // (_vocabulary(model) * model.dtype.itemsize)
        self._sequences = _sample(_with_targets(calibration.sequences), max(1, min(positions, room)), seed)
        self._model, self._batch_tokens = model, batch_tokens
        kept = {index: logits.clone() for index, logits in self._read()}  # not all of the batch that it is a view of
        self._kept = [kept[index] for index in range(len(kept))]
        self._nll = [_nll(logits, sequence).sum() for logits, sequence in zip(self._kept, self._sequences, strict=True)]

    @property
    def positions(self) -> int:
        return sum(len(sequence) - 1 for sequence in self._sequences)

    def __call__(self) -> float:
        """The mean KL(unquantized || as the model is now), nats a token."""
        return self.measure().kl

    @torch.no_grad()
    def measure(self) -> Shift:
        """Both losses of the model as it is now, from one pass. Raises ConfigError as :func:`measure_loss`."""
        found: dict[int, Tensor] = {}
        for index, logits in self._read():
            kl = _kl(self._kept[index], logits).sum()
            found[index] = torch.stack([kl, _nll(logits, self._sequences[index]).sum() - self._nll[index]])
        values = torch.stack([found[index] for index in range(len(found))]).cpu().numpy()
        counts = [len(sequence) - 1 for sequence in self._sequences]
        return Shift(*_mean(values[:, 0], counts), *_mean(values[:, 1], counts), sum(counts))

    def _read(self) -> Iterator[tuple[int, Tensor]]:
        return _each_logits(self._model, self._sequences, self._batch_tokens)


def _with_targets(sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    found = [sequence for sequence in sequences if len(sequence) > 1]
    if not found:
        raise ConfigError(
            f"calibration: none of its {len(sequences)} sequences has a second token to predict; give a longer text"
        )
    return found


def _sample(sequences: Sequence[np.ndarray], positions: int, seed: int) -> list[np.ndarray]:
    """Sequences with ``positions`` tokens to predict between them, or all there are."""
    found, left = [], positions
    for index in np.random.default_rng(seed).permutation(len(sequences)):
        if left <= 0:
            break
        found.append(sequences[index][: left + 1])
        left -= len(found[-1]) - 1
    return found


def _each_logits(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], batch_tokens: int | None
) -> Iterator[tuple[int, Tensor]]:
    """(index, logits (T - 1, V)) of every sequence: of each token but the last, which is only predicted, never read."""
    if batch_tokens is None:
        batch_tokens = batch_tokens_on(model.device)
    most = max(1, min(batch_tokens, BATCH_LOGITS // _vocabulary(model)))
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    while order:
        count = max(1, most // len(sequences[order[0]]))
        batch, order = order[:count], order[count:]
        yield from zip(batch, _read(model, [sequences[index][:-1] for index in batch]), strict=True)


def _read(model: PreTrainedModel, batch: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """The logits of each sequence, (its tokens, V). A batch that does not fit in memory is read in halves."""
    ids = np.zeros((len(batch), max(map(len, batch))), dtype=np.int64)
    for row, sequence in zip(ids, batch, strict=True):
        row[: len(sequence)] = sequence
    logits = _logits_or_none(model, torch.from_numpy(ids))
    if logits is not None:
        yield from (of_one[: len(sequence)] for of_one, sequence in zip(logits, batch, strict=True))
        return
    if len(batch) == 1:
        raise ConfigError(f"calibration.length: a sequence of {len(batch[0]):,} tokens does not fit in GPU memory")
    torch.cuda.empty_cache()
    half = len(batch) // 2
    yield from _read(model, batch[:half])
    yield from _read(model, batch[half:])


def _logits_or_none(model: PreTrainedModel, ids: Tensor) -> Tensor | None:
    """(B, T, V); None where they did not fit. The error is dropped here, and with it the tensors of the failed pass."""
    try:
        logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    except torch.OutOfMemoryError:
        return None
    return logits


def _nll(logits: Tensor, sequence: np.ndarray) -> Tensor:
    """Of each token of ``sequence`` but the first, given the logits (T - 1, V) before it: (T - 1,) float64."""
    targets = torch.from_numpy(sequence[1:].astype(np.int64)).to(logits.device)
    step = max(1, LOSS_PIECE // logits.shape[1])
    parts = zip(logits.split(step), targets.split(step), strict=True)
    return torch.cat([F.cross_entropy(part.float(), of_part, reduction="none") for part, of_part in parts]).double()


def _kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) at each position, of logits (T, V): (T,) float64."""
    step = max(1, KL_PIECE // q_logits.shape[1])
    found = []
    for p_part, q_part in zip(p_logits.split(step), q_logits.split(step), strict=True):
        log_p, log_q = (part.double().log_softmax(dim=-1) for part in (p_part, q_part))
        p = log_p.exp()
        # A token of probability 0 adds nothing, whatever q says of it.
        found.append(torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(dim=-1))
    return torch.cat(found)


def _mean(sums: np.ndarray, counts: Sequence[int]) -> tuple[float, float]:
    """sum(sums) / sum(counts) and its standard error as a ratio over sequences (Cochran, Sampling Techniques, 6.9)."""
    n, total = len(counts), sum(counts)
    mean = float(sums.sum()) / total
    if n < 2 or not math.isfinite(mean):
        return mean, math.nan
    residuals = sums - mean * np.asarray(counts)
    return mean, math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)
