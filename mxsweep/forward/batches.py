"""Calibration sequences as the model reads them: those of one length together, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Batch = Tensor  # (B, T) int64, in host memory

# A pass over calibration data keeps more than an evaluation does: the states in front of a block and behind it.
BATCH_TOKENS = {"cuda": 16384, "cpu": 4096}


def batch_tokens_on(device: torch.device) -> int:
    """Tokens of a pass on a device."""
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])


def batches_of(sequences: Sequence[np.ndarray], device: torch.device) -> list[Batch]:
    """Batches of sequences (T,) of equal length, the longest first; the order within a length is kept."""
    most = batch_tokens_on(device)
    by_length: dict[int, list[np.ndarray]] = {}
    for sequence in sequences:
        by_length.setdefault(len(sequence), []).append(sequence)
    batches = []
    for length in sorted(by_length, reverse=True):
        rows = by_length[length]
        step = max(1, most // length)
        batches += [torch.from_numpy(np.stack(rows[i : i + step])).long() for i in range(0, len(rows), step)]
    return batches
