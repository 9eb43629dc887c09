"""Set what runs cost against all the memory that they take, by rules that say the same of a run whatever else was run.

Memory is that of the parameters, with the matrices of inputs under rotation=wush, and of the keys and values of one
sequence. The cost is the change of log-perplexity from the baseline. A run is on the front where no other takes less
memory and costs less. The rule is the least memory within a share of the baseline's perplexity: by the estimate, and by
the whole 95 % interval, which few examples leave too wide for most runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from mxsweep.results.groups import Group
from mxsweep.results.memory_taken import kv_bytes, tokens_held
from mxsweep.results.rows import Row
from mxsweep.statistics.paired_tests import LogPerplexityDifference
from mxsweep.study.comparison import Comparison
from mxsweep.study.memory_terms import Terms
from mxsweep.study.silent_tasks import has_no_pairs

T = TypeVar("T")


@dataclass(frozen=True)
class Placed:
    """Hold a run, the bytes that its parameters and its keys and values take, and its cost."""

    row: Row
    parameter_bytes: float
    kv_bytes: float
    cost: LogPerplexityDifference

    @property
    def total(self) -> float:
        """Return the bytes of both."""
        return self.parameter_bytes + self.kv_bytes

    def is_within(self, share: float, proven: bool) -> bool:
        """Return whether perplexity rises by this share at most: by the estimate or, proven, by the whole interval."""
        cost = self.cost.high if proven else self.cost.difference
        return cost <= math.log1p(share)  # NaN is not


@dataclass(frozen=True)
class MemoryFront:
    """Hold the quantized runs of a group by the memory that they take.

    Attributes:
        terms: with the tokens that are counted, as many as the model holds at most.
        baseline: the bytes that the baseline takes, parameters and keys and values; None where there are several.
        front: from the least memory to the least cost.
        by_estimate, by_interval: the run of the least memory within the share of the baseline; None where none is.
    """

    terms: Terms
    baseline: tuple[float, float] | None
    front: list[Placed]
    by_estimate: Placed | None
    by_interval: Placed | None


def find_memory_front(group: Group, comparisons: Mapping[Path, Comparison], terms: Terms) -> MemoryFront | None:
    """Find the front and what the rule names; None where memory or cost of no quantized run is known.

    None of trainings with several seeds: the front would be that of each config's luckiest seed; nor where a task tells
    nothing, or the baseline knows no more than a guess does: what is close to it may be as bad.

    Args:
        comparisons: each quantized run compared with its baseline, by the run's folder.
    """
    if has_no_pairs(group) or group.guessing_baselines():
        return None
    terms = replace(terms, context=tokens_held(group.rows, terms.context))
    placed = []
    for row in group.rows:
        compared, sizes = comparisons.get(row.run.path), memory_of(row, terms.context)
        if not row.is_baseline and sizes is not None and compared is not None and compared.perplexity is not None:
            placed.append(Placed(row, *sizes, compared.perplexity))
    if not placed:
        return None
    placed.sort(key=lambda one: (one.total, one.cost.difference))
    front = unbeaten(placed, lambda one: (one.total, one.cost.difference))
    baselines = {memory_of(row, terms.context) for row in group.rows if row.is_baseline}
    return MemoryFront(
        terms,
        baselines.pop() if len(baselines) == 1 else None,
        front,
        next((one for one in placed if one.is_within(terms.within, proven=False)), None),
        next((one for one in placed if one.is_within(terms.within, proven=True)), None),
    )


def unbeaten(points: Iterable[T], at: Callable[[T], tuple[float, float]]) -> list[T]:
    """Return the points that no other beats in both of the numbers that `at` says, from the least of the first.

    Of points that are equal in both the first stands for all; one whose second number is not finite is on no front.
    """
    front: list[T] = []
    for one in sorted(points, key=at):
        if math.isfinite(at(one)[1]) and (not front or at(one)[1] < at(front[-1])[1]):
            front.append(one)
    return front


def memory_of(row: Row, context: int) -> tuple[float, float] | None:
    """Return the bytes of a run's parameters, and of keys and values at a context; None where one is not known."""
    cache = kv_bytes(row, context)
    return None if row.parameter_bytes is None or cache is None else (row.parameter_bytes, cache)
