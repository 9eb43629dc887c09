"""Hold what tuning did to weights, and sum it up over the decoder blocks of a model.

Legend: the error of a block is the squared error of its output per token, in the mean over the calibration sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from mxsweep.numerics import Encoded


@dataclass(frozen=True)
class Errors:
    """Hold the error before tuning and with the weights that were kept; None where it is not finite."""

    first: float | None
    best: float | None


@dataclass(frozen=True)
class Tuned:
    """Hold weights by name, in host memory, and the errors that they were tuned by.

    Attributes:
        steps_not_finite: steps in which some gradient was not finite; where it is NaN, the weight stays.
    """

    weights: dict[str, Encoded]
    errors: Errors
    steps_not_finite: int = 0


@dataclass(frozen=True)
class Tuning:
    """Sum up what tuning did to the blocks of a model.

    Attributes:
        tuned: blocks whose error became smaller.
        left: blocks that have the weights which tuning began with.
        not_finite: of these, the numbers of those whose outputs are not finite, so that they cannot be tuned.
        error_left: best error over first, in the mean over all blocks with a first one above 0; None without any.
    """

    tuned: int
    left: int
    not_finite: tuple[int, ...]
    error_left: float | None

    @staticmethod
    def of(errors: Mapping[int, Errors]) -> Tuning:
        """Sum up the errors of blocks, by their numbers."""
        shares = [one.best / one.first for one in errors.values() if one.first and one.best is not None]
        tuned = sum(one.best != one.first for one in errors.values())
        not_finite = tuple(number for number, one in errors.items() if one.first is None)
        return Tuning(tuned, len(errors) - tuned, not_finite, fmean(shares) if shares else None)
