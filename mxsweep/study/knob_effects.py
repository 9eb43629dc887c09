"""Find what each knob does by itself: pairs of runs that differ in it only, neighbours in its order.

The pairs of one knob are a family of tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mxsweep.results.groups import Group, Results, row_order
from mxsweep.results.rows import Row, label
from mxsweep.study.comparison import Comparison, compare_pairs
from mxsweep.study.silent_tasks import has_no_pairs


@dataclass(frozen=True)
class KnobEffect:
    """Hold what one knob does: runs that differ in it only, each compared with its neighbour in the knob's order.

    Attributes:
        knob: its label.
        family: a sentence that says which tests were adjusted together.
        comparisons: `other` has the smaller (or alphabetically first) value of the knob.
    """

    knob: str
    family: str
    comparisons: list[Comparison]


def find_knob_effects(results: Results, group: Group) -> list[KnobEffect]:
    """Find, for each knob that the runs of the group differ in, the pairs of runs that differ in it only.

    A quantized run is never paired with a baseline here. Of runs with the same config, one repeated, the first is
    taken. A knob without such a pair is left out. The p values are adjusted over each knob's pairs, accuracies and
    perplexities apart. Trainings with several seeds are compared by config (see `training_ranking`), and not here; nor
    are runs of which the task tells nothing.
    """
    effects = []
    if has_no_pairs(group):
        return []
    for knob in results.shown:
        pairs = _neighbours(group.rows, knob, [name for name in results.shown if name != knob])
        if pairs:
            comparisons = compare_pairs(group, [(row, other) for other, row in pairs])
            runs = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
            family = f"Holm's method over the {runs} of runs that differ in {knob} only."
            effects.append(KnobEffect(knob, family, comparisons))
    return effects


def _neighbours(rows: Sequence[Row], knob: str, others: Sequence[str]) -> list[tuple[Row, Row]]:
    """List pairs of rows that agree in `others` and have values of `knob` next to each other, smaller first."""
    alike = runs_by_value(rows, knob, others)
    return list({(a.run.path, b.run.path): (a, b) for ordered in alike for a, b in pairwise(ordered)}.values())


def runs_by_value(rows: Sequence[Row], knob: str, others: Sequence[str]) -> list[list[Row]]:
    """List rows that agree in `others`, each list with one row a value of `knob`, in the knob's order.

    A knob without effect on a row (GPTQ's damping on weights rounded to nearest) is no difference.
    """
    alike: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if knob in row.knobs:
            key = (row.is_baseline, *(label(row.knobs[name]) if name in row.knobs else None for name in others))
            alike.setdefault(key, {}).setdefault(label(row.knobs[knob]), row)
    partial = [key for key in alike if None in key]
    lists = []
    for key, members in alike.items():
        by_value = dict(members)
        for other in partial:
            if all(theirs is None or theirs == mine for mine, theirs in zip(key, other, strict=True)):
                by_value = alike[other] | by_value
        lists.append(sorted(by_value.values(), key=lambda row: row_order(row, [knob])))
    return lists
