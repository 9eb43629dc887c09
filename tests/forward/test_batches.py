"""Which passages are read together, and as which numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mxsweep.forward.batches import Batch, BatchLimits, Passage, longest_first, next_batch, to_device, unpadded_batches


def passages_of(*lengths: int, rows: int | None = None) -> list[Passage]:
    return [Passage(np.full(n, n), None if rows is None else np.arange(n - rows, n)) for n in lengths]


def lengths_of_batches(passages: list[Passage], limits: BatchLimits, vocabulary: int = 0) -> list[list[int]]:
    order, start = longest_first(passages), 0
    batches = []
    while start < len(order):
        batches.append(next_batch(passages, order, start, limits, vocabulary))
        start += len(batches[-1].numbers)
    numbers = [number for batch in batches for number in batch.numbers]
    assert sorted(numbers) == list(range(len(passages)))
    return [batch.lengths for batch in batches]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (BatchLimits(100), [[9, 7, 7, 5, 3]]),
        (BatchLimits(21), [[9, 7], [7, 5, 3]]),  # padding counts
        (BatchLimits(21, unread=1), [[9, 7], [7, 5], [3]]),
        (BatchLimits(1), [[9], [7], [7], [5], [3]]),  # one at least
        (BatchLimits(100, padded=False), [[9], [7, 7], [5], [3]]),
        (BatchLimits(100, logits=40), [[9, 7], [7, 5], [3]]),  # of 2 rows each and 10 tokens of vocabulary
    ],
)
def test_batches_keep_to_every_limit_longest_first(limits: BatchLimits, expected: list[list[int]]) -> None:
    assert lengths_of_batches(passages_of(7, 3, 9, 7, 5, rows=2), limits, vocabulary=10) == expected


def test_an_order_of_ones_own_counts_the_longest_of_the_batch() -> None:
    batch = next_batch(passages_of(2, 2, 6, 2), [0, 1, 2, 3], 1, BatchLimits(12))
    assert batch.numbers == (1, 2)


def test_tokens_are_padded_on_the_right_and_positions_count_padding() -> None:
    batch = Batch((4, 1), (Passage(np.array([5, 6, 7]), np.array([0, 2])), Passage(np.array([8, 9]), np.array([1]))))
    assert batch.ids().tolist() == [[5, 6, 7], [8, 9, 0]]
    positions = batch.positions()
    assert positions is not None and positions.tolist() == [0, 2, 4]
    logits = torch.arange(3.0)[:, None]
    assert [part.flatten().tolist() for part in batch.split(logits)] == [[0, 1], [2]]


def test_logits_everywhere_are_split_without_padding() -> None:
    batch = Batch((0, 1), tuple(passages_of(3, 2)))
    assert batch.positions() is None
    assert [part.flatten().tolist() for part in batch.split(torch.arange(6.0).view(2, 3, 1))] == [[0, 1, 2], [3, 4]]
    mixed = Batch((0, 1), (*passages_of(3), Passage(np.array([8, 9]), np.array([1]))))
    positions = mixed.positions()
    assert positions is not None and positions.tolist() == [0, 1, 2, 4]


def test_unpadded_batches_hold_every_sequence_once() -> None:
    sequences = [np.full(length, number) for number, length in enumerate([5, 3, 5, 4000, 3, 3])]
    batches = unpadded_batches(sequences, torch.device("cpu"))
    assert [tuple(batch.shape) for batch in batches] == [(1, 4000), (2, 5), (3, 3)]
    assert sorted(int(row[0]) for batch in batches for row in batch) == list(range(6))


def test_arrays_keep_their_shapes_on_the_device() -> None:
    arrays = [np.arange(6).reshape(2, 3), np.zeros(0, dtype=np.int64), np.array([7])]
    tensors = to_device(arrays, torch.device("cpu"))
    assert [tensor.tolist() for tensor in tensors] == [array.tolist() for array in arrays]
