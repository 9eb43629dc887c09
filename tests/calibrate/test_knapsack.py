"""One column of each row: against every choice there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mxsweep.calibrate.knapsack import choose_within


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits, costs = rng.integers(1, 50, (5, 3)) * 32, rng.random((5, 3))
    usable = rng.random((5, 3)) < 0.8
    usable[:, 0] = True
    capacity = int(np.where(usable, bits, bits.max()).min(axis=1).sum() * 1.5)
    rows = range(5)
    best = min(
        (sum(costs[row, choice[row]] for row in rows), sum(bits[row, choice[row]] for row in rows))
        for choice in itertools.product(range(3), repeat=5)
        if all(usable[row, choice[row]] for row in rows) and sum(bits[row, choice[row]] for row in rows) <= capacity
    )
    chosen = choose_within(bits, costs, usable, capacity)
    assert sum(costs[row, chosen[row]] for row in rows) == pytest.approx(best[0])
    assert sum(bits[row, chosen[row]] for row in rows) == best[1]


def test_of_equal_costs_the_fewest_bits() -> None:
    bits = np.array([[8, 4, 6], [8, 4, 6]])
    assert choose_within(bits, np.zeros((2, 3)), np.ones((2, 3), dtype=bool), 16) == [1, 1]
