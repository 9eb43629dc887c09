"""Runs compared pair by pair on the same examples: with their baselines, and with runs that differ in one knob.

    against_baselines    every run of a group with its baseline; a family of tests a group and metric
    knob_effects         for each knob the runs that differ in it only, neighbours in its order; a family a knob
    why_groups           which knobs kept runs from being compared at all

Differences are the run's (`row`) minus the other's (`other`). Runs of different models, tasks, limits or conditions of
evaluation are in different groups (see collect.py), and nothing here compares across groups.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mxsweep.results.groups import Group, Results, row_order
from mxsweep.results.outcomes import SAMPLES_NAME, Outcomes, read_outcomes
from mxsweep.results.rows import Row, label
from mxsweep.study.noise_floor import Floor, Noise
from mxsweep.study.paired_tests import (
    Accuracy,
    LogPerplexity,
    ShareClosed,
    compare_accuracy,
    compare_log_perplexity,
    holm,
    share_closed,
)

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same examples; differences are `row` minus `other`.

    Attributes:
        row: the run.
        other: its baseline, or the run that it differs from in one knob.
        n: examples compared; 0 where nothing was.
        accuracy: None where the task counts no right answers.
        perplexity: of the task's own perplexity (an example, word or byte); None where it has none.
        accuracy_p, perplexity_p: p values adjusted by Holm's method over the family of tests.
        identical: every example came out the same to the last digit.
        floor: the noise floor of this difference; None if nothing was measured.
        why_not: a sentence if the two cannot be compared; then all but row and other is None, n 0, identical False.
        note: a sentence if one metric cannot be compared, though others can.
    """

    row: Row
    other: Row
    n: int = 0
    accuracy: Accuracy | None = None
    perplexity: LogPerplexity | None = None
    accuracy_p: float | None = None
    perplexity_p: float | None = None
    identical: bool = False
    floor: Floor | None = None
    why_not: str | None = None
    note: str | None = None

    @property
    def test(self) -> Hashable:
        """The same for comparisons that came out the same, which are one test.

        A config that was run twice, or knobs that change nothing (scale bits that all suffice). Perplexities that are
        equal to the last digit are of equal log-likelihoods; accuracies alone may be equal by chance.
        """
        if self.perplexity is not None:
            return self.accuracy, self.perplexity
        hashes = [(each.run.record or {}).get("config_hash") for each in (self.row, self.other)]
        return (*hashes, self.accuracy) if all(hashes) else (self.row.run.path, self.other.run.path)

    @property
    def accuracy_significant(self) -> bool | None:
        """Whether the accuracies differ by more than chance in the choice of examples, after adjustment."""
        return _below(self.accuracy_p)

    @property
    def perplexity_significant(self) -> bool | None:
        """Whether the perplexities differ by more than chance in the choice of examples, after adjustment."""
        return _below(self.perplexity_p)

    @property
    def significant(self) -> bool | None:
        """The same of the main metric: accuracy, or perplexity of a task that counts no right answers."""
        return self.accuracy_significant if self.accuracy is not None else self.perplexity_significant

    @property
    def accuracy_above_floor(self) -> bool | None:
        """Whether the accuracies differ by more than numerical noise; None if that was not measured."""
        return _exceeds(self.accuracy, self.floor.accuracy if self.floor else None)

    @property
    def perplexity_above_floor(self) -> bool | None:
        """Whether the perplexities differ by more than numerical noise; None if that was not measured."""
        return _exceeds(self.perplexity, self.floor.log_perplexity if self.floor else None)

    @property
    def above_floor(self) -> bool | None:
        """The same of the main metric."""
        return self.accuracy_above_floor if self.accuracy is not None else self.perplexity_above_floor


@dataclass(frozen=True)
class KnobEffect:
    """What one knob does: runs that differ in it only, each compared with its neighbour in the knob's order.

    Attributes:
        knob: its label.
        family: a sentence that says which tests were adjusted together.
        comparisons: `other` has the smaller (or alphabetically first) value of the knob.
    """

    knob: str
    family: str
    comparisons: list[Comparison]


def against_baselines(group: Group) -> dict[Path, Comparison]:
    """Each quantized run of the group with the baseline nearest to it, by the run's folder; none without a baseline.

    The p values are adjusted over all of them, accuracies and perplexities apart.
    """
    pairs = [(row, group.baseline_for(row)) for row in group.rows if not row.is_baseline]
    found = compare_all(group, [(row, baseline) for row, baseline in pairs if baseline is not None])
    return {comparison.row.run.path: comparison for comparison in found}


def compare_all(group: Group, pairs: Iterable[tuple[Row, Row]]) -> list[Comparison]:
    """Each of these runs of a group with the other one; the p values are adjusted over all of them."""
    noise = Noise.of(group)
    return _adjusted([_compare(row, other, noise) for row, other in pairs])


def knob_effects(results: Results, group: Group) -> list[KnobEffect]:
    """For each knob that the runs of the group differ in, the pairs of runs that differ in it only.

    A quantized run is never paired with a baseline here. Of runs with the same config, one repeated, the first is
    taken. A knob without such a pair is left out. The p values are adjusted over each knob's pairs, accuracies and
    perplexities apart.
    """
    effects = []
    for knob in results.shown:
        pairs = _neighbours(group.rows, knob, [name for name in results.shown if name != knob])
        if pairs:
            comparisons = compare_all(group, [(row, other) for other, row in pairs])
            runs = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
            family = f"Holm's method over the {runs} of runs that differ in {knob} only."
            effects.append(KnobEffect(knob, family, comparisons))
    return effects


def closed_share(row: Row, plain: Row, baseline: Row) -> ShareClosed | None:
    """Which share of the gap in log-perplexity between `plain` and its baseline `row` closes; None where unknown."""
    outcomes = [read_outcomes(each.run, each.task or "") for each in (baseline, plain, row)]
    base = outcomes[0]
    if base is None or base.loglikelihood is None:
        return None
    found = []
    for each in outcomes:
        aligned = _aligned(base, each) if each is not None else None
        if aligned is None or _why_no_perplexity(plain, baseline, base, aligned) is not None:
            return None
        if aligned.loglikelihood is None or not np.isfinite(aligned.loglikelihood).all():
            return None
        found.append(aligned.loglikelihood)
    return share_closed(found[0], found[1], found[2], base.weights)


def why_groups(results: Results) -> str | None:
    """A sentence saying into which groups the runs were parted, and by which knobs; None with one group."""
    if len(results.groups) < 2:
        return None
    labels: dict[str, dict[str, None]] = {}
    for group in results.groups:
        for name, value in group.conditions.items():
            labels.setdefault(name, {})[value] = None
    knobs = [f"{name} ({', '.join(values)})" for name, values in labels.items() if len(values) > 1]
    listed = " and ".join(filter(None, [", ".join(knobs[:-1]), knobs[-1]]))
    return (
        f"The runs are in {len(results.groups)} groups, which are never compared with each other, since a metric means "
        f"the same only on the same examples of the same task for the same model. They differ in {listed}."
    )


def _compare(row: Row, other: Row, noise: Noise) -> Comparison:
    """Without adjusted p values, which take the family."""
    comparison = Comparison(row, other)
    a, b = (read_outcomes(each.run, each.task or "") for each in (other, row))
    if a is None or b is None:
        return replace(comparison, why_not=_why_no_outcomes(other if a is None else row))
    aligned = _aligned(a, b)
    if aligned is None:
        why_not = f"The two did not see the same documents: {len(b)} and {len(a)} of them, with different hashes."
        return replace(comparison, why_not=why_not)
    b = aligned
    for each, outcomes in ((other, a), (row, b)):
        if outcomes.loglikelihood is not None and (bad := int(np.isnan(outcomes.loglikelihood).sum())):
            why_not = (
                f"In {each.run.run_id} {bad:,} of {len(a):,} log-likelihoods are NaN, so its answers mean nothing."
            )
            return replace(comparison, why_not=why_not)
    accuracy = perplexity = note = None
    if a.correct is not None and b.correct is not None:
        accuracy = compare_accuracy(a.correct, b.correct)
    if a.loglikelihood is not None and b.loglikelihood is not None:
        note = _why_no_perplexity(row, other, a, b)
        if note is None:
            perplexity = compare_log_perplexity(a.loglikelihood, b.loglikelihood, a.weights)
    if accuracy is None and perplexity is None:
        return replace(comparison, why_not=note or "The two have no metric in common that is known for each example.")
    return replace(
        comparison,
        n=len(a),
        accuracy=accuracy,
        perplexity=perplexity,
        identical=_same(a.correct, b.correct) and _same(a.loglikelihood, b.loglikelihood),
        floor=noise.floor(row, other),
        note=note,
    )


def _why_no_outcomes(row: Row) -> str:
    if not (row.run.path / SAMPLES_NAME).exists():
        return f"{row.run.run_id} has no {SAMPLES_NAME}, so nothing is known of single examples."
    return f"{SAMPLES_NAME} of {row.run.run_id} is damaged, or holds no example of {row.task} that can be compared."


def _why_no_perplexity(row: Row, other: Row, a: Outcomes, b: Outcomes) -> str | None:
    if not _same(a.weights, b.weights):
        return "The perplexities are not compared: the two do not agree on the documents' lengths."
    if a.weights is not None and not (0 < a.weights.sum() < math.inf and (a.weights >= 0).all()):
        return "The perplexities are not compared: the documents' lengths make no sense."
    infinite = [
        f"in {each.run.run_id} {count:,} of {len(a):,} log-likelihoods are infinite"
        for each, values in ((other, a.loglikelihood), (row, b.loglikelihood))
        if values is not None and (count := int(np.isinf(values).sum()))
    ]
    return f"The perplexities are not compared: {' and '.join(infinite)}." if infinite else None


def _aligned(a: Outcomes, b: Outcomes) -> Outcomes | None:
    """`b` in the order of `a`'s documents; None if the documents are not the same."""
    if a.keys is b.keys or np.array_equal(a.keys, b.keys):
        return b
    if a.keys.shape != b.keys.shape or a.keys.dtype.kind != b.keys.dtype.kind:
        return None
    order_a, order_b = (np.argsort(each.keys, kind="stable") for each in (a, b))
    if not np.array_equal(a.keys[order_a], b.keys[order_b]):
        return None
    order = np.empty_like(order_a)
    order[order_a] = order_b
    reordered = (None if x is None else x[order] for x in (b.correct, b.loglikelihood, b.weights))
    return Outcomes(a.keys, *reordered)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p values adjusted over all of them.

    What was tested once counts once in the family; see `Comparison.test`.
    """

    def adjust(p: Callable[[Comparison], float | None]) -> list[float | None]:
        values = {comparison.test: value for comparison in comparisons if (value := p(comparison)) is not None}
        adjusted = dict(zip(values, holm(list(values.values())), strict=True))
        return [adjusted.get(comparison.test) for comparison in comparisons]

    accuracy = adjust(lambda each: each.accuracy.p if each.accuracy else None)
    perplexity = adjust(lambda each: each.perplexity.p if each.perplexity else None)
    return [
        replace(comparison, accuracy_p=accuracy_p, perplexity_p=perplexity_p)
        for comparison, accuracy_p, perplexity_p in zip(comparisons, accuracy, perplexity, strict=True)
    ]


def _neighbours(rows: Sequence[Row], knob: str, others: Sequence[str]) -> list[tuple[Row, Row]]:
    """Pairs of rows that agree in `others` and have values of `knob` next to each other, smaller first.

    A knob without effect on one of the two (GPTQ's damping on weights rounded to nearest) is no difference.
    """
    alike: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if knob in row.knobs:
            key = (row.is_baseline, *(label(row.knobs[name]) if name in row.knobs else None for name in others))
            alike.setdefault(key, {}).setdefault(label(row.knobs[knob]), row)
    partial = [key for key in alike if None in key]
    pairs: dict[tuple[Path, Path], tuple[Row, Row]] = {}
    for key, own in alike.items():
        by_value = dict(own)
        for other in partial:
            if all(theirs is None or theirs == mine for mine, theirs in zip(key, other, strict=True)):
                by_value = alike[other] | by_value
        ordered = sorted(by_value.values(), key=lambda row: row_order(row, [knob]))
        pairs |= {(low.run.path, high.run.path): (low, high) for low, high in pairwise(ordered)}
    return list(pairs.values())


def _below(p: float | None) -> bool | None:
    return None if p is None or math.isnan(p) else p < ALPHA


def _exceeds(measured: Accuracy | LogPerplexity | None, floor: float | None) -> bool | None:
    return None if measured is None or floor is None else abs(measured.difference) > floor
