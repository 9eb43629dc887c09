"""Solve a multiple-choice knapsack to proven optimality: one column of each row, least cost within a capacity of bits.

HiGHS solves it as a mixed-integer linear program, through SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SCALED_COSTS = 1e6  # what the costs' range is scaled to: HiGHS stops at an absolute gap of 1e-6
TIE = 1e-9  # of the costs' range: choices that differ by less are equally good


def choose_within(bits: np.ndarray, costs: np.ndarray, usable: np.ndarray, capacity: int) -> list[int]:
    """Return each row's chosen column: least sum of ``costs`` with a sum of ``bits`` of at most ``capacity``.

    Args:
        bits, costs: (rows, columns); whole numbers and finite ones where ``usable``.
        usable: (rows, columns) bool; each row has one True at least.
        capacity: enough for the fewest bits of every row.

    Solved twice: for the cost, then for the fewest bits at that cost. Bits are counted above each row's least and in
    units of their greatest common divisor, and costs scaled, so that the solver's tolerances are far below what counts.
    """
    excess = bits - np.where(usable, bits, bits.max()).min(axis=1, keepdims=True)
    room = capacity - int((bits - excess)[:, 0].sum())
    unit = math.gcd(*map(int, excess[usable])) or 1
    extra = np.where(usable, excess, 0) // unit
    lowest = np.where(usable, costs, np.inf).min(axis=1, keepdims=True)
    above = np.where(usable, costs - lowest, 0.0)
    above *= SCALED_COSTS / (above.max(axis=1).sum() or 1.0)
    within = (extra, room // unit)
    first = _solve_milp(above, usable, [within])
    most = above[np.arange(len(first)), first].sum() + TIE * SCALED_COSTS
    return list(map(int, _solve_milp(extra.astype(float), usable, [within, (above, most)])))


def _solve_milp(objective: np.ndarray, usable: np.ndarray, limits: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """Return the column of each row: least sum of ``objective`` with each (values, limit) sum at most its limit."""
    # Here, since few runs have a budget: SciPy's optimizers take a while to import.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, eye_array, kron

    rows, columns = objective.shape
    one_each = LinearConstraint(kron(eye_array(rows), np.ones((1, columns))), 1, 1)
    within = [LinearConstraint(csr_array(values.reshape(1, -1).astype(float)), ub=limit) for values, limit in limits]
    answer = milp(
        objective.ravel(),
        integrality=np.ones(objective.size),
        bounds=Bounds(0, usable.ravel().astype(float)),
        constraints=[one_each, *within],
        options={"mip_rel_gap": 0},
    )
    if answer.x is None:
        raise RuntimeError(f"HiGHS found no solution though there is one: {answer.message}")
    chosen: np.ndarray = answer.x.reshape(rows, columns).argmax(axis=1)
    return chosen
