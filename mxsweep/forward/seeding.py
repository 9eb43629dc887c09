"""Seed the generators of random numbers that a process has."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed those of Python, numpy and torch (on every device). The seed is from 0 to 2^32 - 1, as the knob's are."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
