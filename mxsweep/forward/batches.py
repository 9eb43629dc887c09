"""Lay passages of tokens out in batches: which of them a model reads together, and as which numbers.

Legend: B passages of a batch, T tokens of its longest, N positions in it whose logits are asked for, V vocabulary.

A batch is a number of tokens, padding included, and not of passages; passages come longest first, so that little of it
is padding. Padding stands on the right and there is no attention mask: under causal attention no real token sees what
comes after it, positions count from 0 as they should, and PyTorch can take its fastest (flash) kernel, which knows no
mask. What sums over all tokens of a batch asks for batches without padding instead, of passages of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# On a CPU about the fastest of 1,024 to 16,384; on a GPU enough to keep an H200 busy with a model of a billion weights.
BATCH_TOKENS = {"cuda": 16384, "cpu": 4096}


def batch_tokens_on(device: torch.device) -> int:
    """Return how many tokens a batch has on a device unless somebody chose otherwise."""
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])


@dataclass(frozen=True)
class Passage:
    """Hold ``tokens`` (T,) that a model reads and the ``positions`` (P,) among them whose logits are asked for.

    Without positions, logits are asked for at every token.
    """

    tokens: np.ndarray
    positions: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Count the positions whose logits are asked for."""
        return len(self.tokens if self.positions is None else self.positions)

    @property
    def logit_positions(self) -> np.ndarray:
        """Return the positions whose logits are asked for, (P,) int64."""
        return np.arange(len(self.tokens)) if self.positions is None else self.positions


@dataclass
class BatchLimits:
    """Bound what a batch holds; a single passage may exceed every limit.

    Attributes:
        tokens: B T, padding included.
        logits: N V; None for no limit.
        unread: tokens that each passage counts besides those that are read: 1 where passages are sequences whose last
            token is only predicted.
        padded: whether passages of different lengths share a batch.
        alike: given a length, what passages must have in common to share a batch; None for nothing.
    """

    tokens: int
    logits: int | None = None
    unread: int = 0
    padded: bool = True
    alike: Callable[[int], Hashable] | None = None


@dataclass(frozen=True)
class Batch:
    """Hold the passages that are read together, and their numbers among all that are to be read."""

    numbers: tuple[int, ...]
    passages: tuple[Passage, ...]

    @property
    def lengths(self) -> list[int]:
        """List how many tokens each passage has."""
        return [len(passage.tokens) for passage in self.passages]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (B, T)."""
        return len(self.passages), max(self.lengths)

    def ids(self) -> np.ndarray:
        """Return the tokens, (B, T) int64, with zeros on the right."""
        ids = np.zeros(self.shape, dtype=np.int64)
        for row, passage in zip(ids, self.passages, strict=True):
            row[: len(passage.tokens)] = passage.tokens
        return ids

    def positions(self) -> np.ndarray | None:
        """Return where in the flattened B T logits are asked for, (N,) int64; None if every passage asks everywhere."""
        if all(passage.positions is None for passage in self.passages):
            return None
        longest = self.shape[1]
        return np.concatenate([passage.logit_positions + row * longest for row, passage in enumerate(self.passages)])

    def split(self, logits: Tensor) -> list[Tensor]:
        """Return each passage's logits (P, V), of those (N, V) at :meth:`positions` or (B, T, V) everywhere."""
        if logits.dim() == 3:
            return [of_one[:length] for of_one, length in zip(logits, self.lengths, strict=True)]
        return list(logits.split([passage.rows for passage in self.passages]))


def longest_first(passages: Sequence[Passage]) -> list[int]:
    """Return the passages' numbers, longest first; the order within a length is kept."""
    return sorted(range(len(passages)), key=lambda number: -len(passages[number].tokens))


def next_batch(
    passages: Sequence[Passage], order: Sequence[int], start: int, limits: BatchLimits, vocabulary: int = 0
) -> Batch:
    """Return the batch of as many passages as the limits allow, from place ``start`` in ``order`` on; one at least."""
    longest = rows = count = 0
    for place in range(start, len(order)):
        number = order[place]
        length = len(passages[number].tokens)
        if count and not limits.padded and length != longest:
            break
        if count and limits.alike is not None and limits.alike(length) != limits.alike(longest):
            break
        longest, rows = max(longest, length), rows + passages[number].rows
        too_many_tokens = (count + 1) * (longest + limits.unread) > limits.tokens
        too_many_logits = limits.logits is not None and rows * vocabulary > limits.logits
        if count and (too_many_tokens or too_many_logits):
            break
        count += 1
    numbers = tuple(order[start : start + count])
    return Batch(numbers, tuple(passages[number] for number in numbers))


def unpadded_batches(sequences: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return sequences (T,) of equal length together, as ids (B, T) int64 in host memory, the longest first."""
    passages = [Passage(sequence) for sequence in sequences]
    limits = BatchLimits(batch_tokens_on(device), padded=False)
    order, start = longest_first(passages), 0
    batches = []
    while start < len(order):
        batch = next_batch(passages, order, start, limits)
        start += len(batch.numbers)
        batches.append(torch.from_numpy(batch.ids()))
    return batches


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return arrays of int64 as tensors on ``device``, by one transfer that the host does not wait for."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = packed.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
