"""Measure a model's loss on sequences of tokens: what a choice made before a run is judged by.

Legend: T tokens of a sequence, V vocabulary, P next-token positions; p the distribution of the unquantized model, q
that of the model as it is now.

Two losses, both means over next-token positions, in nats:

- The negative log-likelihood of the token that follows (NLL): what perplexity is the exponential of. A small change
  of the model hides in the spread of the tokens.
- KL(p || q), the Kullback-Leibler divergence from the unquantized model. It compares whole distributions and is 0 only
  where nothing changed, so that a few thousand positions rank changes that the NLL of as many could not tell from
  nothing. :class:`Divergence` keeps p; it measures the change of the NLL in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.forward.batches import Batch, BatchLimits, Passage, batch_tokens_on
from mxsweep.forward.engine import Engine, vocabulary_size
from mxsweep.forward.losses import kl_divergences, mean_of_sums, negative_log_likelihoods
from mxsweep.terminal.errors import ConfigError

BATCH_LOGITS = 2**29  # B T V of a pass: 1 GiB in bfloat16
POSITIONS = 4_096  # of a divergence
KEPT_BYTES = 2**30  # of unquantized logits

TOO_LONG = "calibration.length: a sequence of {tokens:,} tokens does not fit in GPU memory"


@dataclass(frozen=True)
class SequenceLoss:
    """Hold a mean negative log-likelihood.

    Attributes:
        nats: a token.
        stderr: over sequences, whose tokens are not independent; NaN for a single one.
        tokens: how many were predicted.
        of_tokens: the loss of each, (T - 1,) float64 of every sequence, nats, by which two losses are paired.
    """

    nats: float
    stderr: float
    tokens: int
    of_tokens: tuple[np.ndarray, ...] = field(compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class SequenceSums:
    """Hold what a shift is the mean of, an element a sequence.

    Attributes:
        kl, loss: (n,) float64, the sums over the sequence's positions, nats.
        positions: (n,) float64, how many they are.
    """

    kl: np.ndarray
    loss: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Shift:
    """Say how far a model is from the unquantized one, in nats a token, with standard errors over sequences.

    Attributes:
        kl: the mean KL(unquantized || now).
        loss: by how much the NLL of the tokens that follow is above the unquantized model's.
        positions: that the means are over.
        sums: by sequence, which two shifts of one divergence are paired by; None where they are not known.
    """

    kl: float
    kl_stderr: float
    loss: float
    loss_stderr: float
    positions: int
    sums: SequenceSums | None = field(default=None, compare=False, repr=False)


def measure_loss(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], batch_tokens: int | None = None
) -> SequenceLoss:
    """Return the mean NLL of all tokens of the sequences but their first, of the model as it is now.

    Args:
        sequences: token ids, (T,) each. Those of fewer than two tokens are left out.
        batch_tokens: of a pass; None for what suits the device. Fewer where the vocabulary is large.

    Raises:
        ConfigError: no sequence has a token to predict, or one does not fit in memory by itself.
    """
    kept = _with_targets(sequences)

    def of_each(batch: Batch, logits: Tensor) -> Tensor:
        parts = zip(batch.numbers, batch.split(logits), strict=True)
        return torch.cat([negative_log_likelihoods(part, kept[number][1:]) for number, part in parts])

    losses: dict[int, np.ndarray] = {}
    for batch, values in _engine(model, batch_tokens).read(_passages(kept), of_each):
        ends = np.cumsum([len(kept[number]) - 1 for number in batch.numbers])[:-1]
        losses |= zip(batch.numbers, np.split(values.cpu().numpy(), ends), strict=True)
    of_tokens = tuple(losses[number] for number in range(len(kept)))
    counts = [len(each) for each in of_tokens]
    sums = np.array([each.sum() for each in of_tokens])
    return SequenceLoss(*mean_of_sums(sums, counts), sum(counts), of_tokens)


class Divergence:
    """Measure how far a model moves from what it was when this was made, at a bounded sample of positions.

    The sample is of whole sequences in an order that ``seed`` decides, the last of them cut. Their logits are kept
    in the model's dtype on its device, (P, V) in at most ``KEPT_BYTES``.

    Args:
        model: unquantized.
        sequences, batch_tokens: as for :func:`measure_loss`.
        positions: P, at most.

    Raises:
        ConfigError: as :func:`measure_loss`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: Sequence[np.ndarray],
        positions: int = POSITIONS,
        seed: int = 0,
        batch_tokens: int | None = None,
    ) -> None:
        room = KEPT_BYTES // (vocabulary_size(model) * model.dtype.itemsize)
        self._sequences = _sample(_with_targets(sequences), max(1, min(positions, room)), seed)
        self._engine = _engine(model, batch_tokens)

        def copy_each(batch: Batch, logits: Tensor) -> list[Tensor]:
            return [part.clone() for part in batch.split(logits)]  # parts are views, which would keep the whole batch

        copies: dict[int, Tensor] = {}
        for batch, parts in self._engine.read(_passages(self._sequences), copy_each):
            copies |= zip(batch.numbers, parts, strict=True)
        self._unquantized = [copies[number] for number in range(len(copies))]
        self._nll = [self._sum_nll(number, logits) for number, logits in enumerate(self._unquantized)]

    @property
    def positions(self) -> int:
        """Count the positions that are compared."""
        return sum(self._counts)

    @property
    def _counts(self) -> list[int]:
        return [len(sequence) - 1 for sequence in self._sequences]

    def __call__(self) -> float:
        """Return the mean KL(unquantized || as the model is now), nats a token."""
        return self.measure().kl

    def measure(self) -> Shift:
        """Return both losses of the model as it is now, from one pass. Raises ConfigError as :func:`measure_loss`."""

        def compare_each(batch: Batch, logits: Tensor) -> Tensor:
            parts = zip(batch.numbers, batch.split(logits), strict=True)
            return torch.stack([self._compare(number, part) for number, part in parts])

        values = torch.zeros(len(self._sequences), 2, dtype=torch.float64)
        for batch, of_batch in self._engine.read(_passages(self._sequences), compare_each):
            values[list(batch.numbers)] = of_batch.cpu()
        kl, loss = values.numpy().T
        counts = self._counts
        sums = SequenceSums(kl, loss, np.asarray(counts, dtype=np.float64))
        return Shift(*mean_of_sums(kl, counts), *mean_of_sums(loss, counts), self.positions, sums)

    def _compare(self, number: int, logits: Tensor) -> Tensor:
        """Return the sums over one sequence of KL and of the change of the NLL, (2,) float64."""
        kl = kl_divergences(self._unquantized[number], logits).sum()
        return torch.stack([kl, self._sum_nll(number, logits) - self._nll[number]])

    def _sum_nll(self, number: int, logits: Tensor) -> Tensor:
        return negative_log_likelihoods(logits, self._sequences[number][1:]).sum()


def _engine(model: PreTrainedModel, batch_tokens: int | None) -> Engine:
    if batch_tokens is None:
        batch_tokens = batch_tokens_on(model.device)
    # A sequence's last token counts, though it is only predicted, and so does padding: a batch is the same as ever.
    limits = BatchLimits(min(batch_tokens, BATCH_LOGITS // vocabulary_size(model)), unread=1)
    return Engine(model, limits, TOO_LONG)


def _passages(sequences: Sequence[np.ndarray]) -> list[Passage]:
    return [Passage(sequence[:-1]) for sequence in sequences]


def _with_targets(sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    kept = [sequence for sequence in sequences if len(sequence) > 1]
    if not kept:
        raise ConfigError(
            f"calibration: none of its {len(sequences)} sequences has a second token to predict; give a longer text"
        )
    return kept


def _sample(sequences: Sequence[np.ndarray], positions: int, seed: int) -> list[np.ndarray]:
    """Return sequences with ``positions`` tokens to predict between them, or all there are."""
    chosen: list[np.ndarray] = []
    for index in np.random.default_rng(seed).permutation(len(sequences)):
        if positions <= 0:
            break
        chosen.append(sequences[index][: positions + 1])
        positions -= len(chosen[-1]) - 1
    return chosen
