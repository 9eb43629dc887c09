"""Compare runs pair by pair on the same examples, and say why two of them cannot be compared.

Differences are the run's (`row`) minus the other's (`other`). Runs that evaluated different models, tasks, limits or
data are in different groups (see `mxsweep.results.groups`), and nothing here compares across groups. Pairs that are
asked for together are a family of tests: their p values are adjusted over all of them, a family for each metric.

Tests take examples for independent, and one that asks the same as another is not: of such examples the first alone is
compared, which makes ten copies of every row as good as one.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mxsweep.results.groups import Group, Results
from mxsweep.results.outcomes import Outcomes, read_outcomes, why_unread
from mxsweep.results.record import SAMPLES_NAME
from mxsweep.results.rows import Row
from mxsweep.results.studies import explain_environments
from mxsweep.statistics.paired_tests import (
    ALPHA,
    AccuracyDifference,
    LogPerplexityDifference,
    MeanDifference,
    compare_accuracy,
    compare_log_perplexity,
    compare_means,
    holm,
)
from mxsweep.study.finding import join_with_and
from mxsweep.study.noise_floor import Floor, Noise


@dataclass(frozen=True)
class Comparison:
    """Compare two runs on the same examples; differences are `row` minus `other`.

    Attributes:
        row: the run.
        other: its baseline, or the run that it differs from in one knob.
        n: examples compared, which differ from one another; 0 where nothing was.
        accuracy: None where the task counts no right answers.
        perplexity: of the task's own perplexity (an example, word or byte); None where it has none.
        margin: of the mean margins of the right choice; None where the task has none.
        accuracy_p, perplexity_p, margin_p: p values adjusted by Holm's method over the family of tests.
        identical: every example came out the same to the last digit.
        floor: the noise floor of this difference; None if nothing was measured.
        why_not: a sentence if the two cannot be compared; then all but row and other is None, n 0, identical False.
        note: a sentence if one metric cannot be compared, though others can.
        repeats: examples left out, since they ask the same as others.
    """

    row: Row
    other: Row
    n: int = 0
    accuracy: AccuracyDifference | None = None
    perplexity: LogPerplexityDifference | None = None
    accuracy_p: float | None = None
    perplexity_p: float | None = None
    identical: bool = False
    floor: Floor | None = None
    why_not: str | None = None
    note: str | None = None
    repeats: int = 0
    margin: MeanDifference | None = None
    margin_p: float | None = None

    @property
    def test(self) -> Hashable:
        """Return an equal value for comparisons that came out the same, which are one test.

        A config that was run twice, or knobs that change nothing (scale bits that all suffice). Perplexities or margins
        that are equal to the last digit are of equal log-likelihoods; accuracies alone may be equal by chance.
        """
        if self.perplexity is not None or self.margin is not None:
            return self.accuracy, self.perplexity, self.margin
        hashes = [(each.run.record or {}).get("config_hash") for each in (self.row, self.other)]
        return (*hashes, self.accuracy) if all(hashes) else (self.row.run.path, self.other.run.path)

    @property
    def accuracy_significant(self) -> bool | None:
        """Return whether the accuracies differ by more than chance in the choice of examples, after adjustment."""
        return _below(self.accuracy_p)

    @property
    def perplexity_significant(self) -> bool | None:
        """Return whether the perplexities differ by more than chance in the choice of examples, after adjustment."""
        return _below(self.perplexity_p)

    @property
    def margin_significant(self) -> bool | None:
        """Return whether the mean margins differ by more than chance in the choice of examples, after adjustment."""
        return _below(self.margin_p)

    @property
    def significant(self) -> bool | None:
        """Return whether the main metric differs by more than chance: accuracy, margin or perplexity, the first."""
        if self.accuracy is not None:
            return self.accuracy_significant
        return self.margin_significant if self.margin is not None else self.perplexity_significant

    @property
    def accuracy_above_floor(self) -> bool | None:
        """Return whether the accuracies differ by more than numerical noise; None if that was not measured."""
        return _exceeds(self.accuracy, self.floor.accuracy if self.floor else None)

    @property
    def perplexity_above_floor(self) -> bool | None:
        """Return whether the perplexities differ by more than numerical noise; None if that was not measured."""
        return _exceeds(self.perplexity, self.floor.log_perplexity if self.floor else None)

    @property
    def margin_above_floor(self) -> bool | None:
        """Return whether the mean margins differ by more than numerical noise; None if that was not measured."""
        return _exceeds(self.margin, self.floor.margin if self.floor else None)


def compare_with_baselines(group: Group) -> dict[Path, Comparison]:
    """Compare each quantized run of the group with its baseline, by the run's folder; none without a baseline.

    The p values are adjusted over all of them, accuracies, perplexities and margins apart.
    """
    pairs = [(row, group.baseline_for(row)) for row in group.rows if not row.is_baseline]
    compared = compare_pairs(group, [(row, baseline) for row, baseline in pairs if baseline is not None])
    return {comparison.row.run.path: comparison for comparison in compared}


def compare_pairs(group: Group, pairs: Iterable[tuple[Row, Row]]) -> list[Comparison]:
    """Compare each of these runs of a group with the other one; the p values are adjusted over all of them."""
    noise = Noise.from_group(group)
    return _adjusted([_compare(row, other, noise) for row, other in pairs])


def explain_groups(results: Results) -> str | None:
    """Say into which groups the runs were parted, and by what; None with one group."""
    if len(results.groups) < 2:
        return None
    labels: dict[str, dict[str, None]] = {}
    for group in results.groups:
        for name, value in group.conditions.items():
            labels.setdefault(name, {})[value] = None
    knobs = [f"{name} ({', '.join(values)})" for name, values in labels.items() if len(values) > 1]
    text = (
        f"The runs are in {len(results.groups)} groups, which are never compared with each other, since a metric means "
        "the same only on the same examples of the same task for the same model. They differ in "
        f"{join_with_and(knobs)}."
    )
    made_in = explain_environments(row for group in results.groups for row in group.rows)
    return f"{text} {made_in}" if made_in else text


def align_outcomes(rows: Iterable[Row]) -> dict[Path, Outcomes]:
    """Return what runs answered to the same distinct examples, in one order, by the run's folder.

    The examples are those of the first run that has any; a run of others, or of other lengths of documents, is left
    out.
    """
    aligned: dict[Path, Outcomes] = {}
    base: Outcomes | None = None
    for row in rows:
        outcomes = read_outcomes(row.run, row.task or "")
        base = outcomes if base is None else base
        same = _aligned(base, outcomes) if base is not None and outcomes is not None else None
        if base is not None and same is not None and _same(base.weights, same.weights):
            aligned[row.run.path] = _distinct(same, base.firsts)
    return aligned


def _compare(row: Row, other: Row, noise: Noise) -> Comparison:
    """Compare two runs of a group, without adjusted p values, which take the family."""
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
        if meaningless := _why_answers_mean_nothing(each, outcomes):
            return replace(comparison, why_not=meaningless)
    identical = all(
        _same(x, y) for x, y in ((a.correct, b.correct), (a.loglikelihood, b.loglikelihood), (a.margin, b.margin))
    )
    firsts = a.firsts if a.firsts is not None else b.firsts  # one of an earlier version may know less
    examples, a, b = len(a), _distinct(a, firsts), _distinct(b, firsts)
    accuracy = perplexity = margin = note = None
    if a.correct is not None and b.correct is not None:
        accuracy = compare_accuracy(a.correct, b.correct)
    if a.loglikelihood is not None and b.loglikelihood is not None:
        note = _why_no_perplexity(row, other, a, b)
        if note is None:
            perplexity = compare_log_perplexity(a.loglikelihood, b.loglikelihood, a.weights)
    if a.margin is not None and b.margin is not None:
        note = note or _why_no_margin(row, other, a, b)
        if np.isfinite(a.margin).all() and np.isfinite(b.margin).all():
            margin = compare_means(a.margin, b.margin)
    if accuracy is None and perplexity is None and margin is None:
        return replace(comparison, why_not=note or "The two have no metric in common that is known for each example.")
    return replace(
        comparison,
        n=len(a),
        repeats=examples - len(a),
        accuracy=accuracy,
        perplexity=perplexity,
        margin=margin,
        identical=identical,
        floor=noise.floor(row, other),
        note=note,
    )


def _why_no_outcomes(row: Row) -> str:
    if not (row.run.path / SAMPLES_NAME).exists():
        return f"{row.run.run_id} has no {SAMPLES_NAME}, so nothing is known of single examples."
    why = why_unread(row.run) or f"holds no example of {row.task} that can be compared"
    return f"{SAMPLES_NAME} of {row.run.run_id} {why}."


def _why_no_perplexity(row: Row, other: Row, a: Outcomes, b: Outcomes) -> str | None:
    if not _same(a.weights, b.weights):
        return "The perplexities are not compared: the two do not agree on the documents' lengths."
    if a.weights is not None and not (0 < a.weights.sum() < math.inf and (a.weights >= 0).all()):
        return "The perplexities are not compared: the documents' lengths make no sense."
    infinite = _infinite(((other, a.loglikelihood), (row, b.loglikelihood)), "log-likelihoods are infinite")
    return f"The perplexities are not compared: {infinite}." if infinite else None


def _why_answers_mean_nothing(row: Row, outcomes: Outcomes) -> str | None:
    for values, what in ((outcomes.loglikelihood, "log-likelihoods"), (outcomes.margin, "margins")):
        if values is not None and (bad := int(np.isnan(values).sum())):
            return f"In {row.run.run_id} {bad:,} of {len(values):,} {what} are NaN, so its answers mean nothing."
    return None


def _why_no_margin(row: Row, other: Row, a: Outcomes, b: Outcomes) -> str | None:
    infinite = _infinite(((other, a.margin), (row, b.margin)), "are infinite")
    return f"The margins are not compared: {infinite}." if infinite else None


def _infinite(values_of: Iterable[tuple[Row, np.ndarray | None]], what: str) -> str:
    """Say how many values are infinite in each run; nothing where none are."""
    return " and ".join(
        f"in {row.run.run_id} {count:,} of {len(values):,} {what}"
        for row, values in values_of
        if values is not None and (count := int(np.isinf(values).sum()))
    )


def _aligned(a: Outcomes, b: Outcomes) -> Outcomes | None:
    """Return `b` in the order of `a`'s documents; None if the documents are not the same."""
    if a.keys is b.keys or np.array_equal(a.keys, b.keys):
        return b
    if a.keys.shape != b.keys.shape or a.keys.dtype.kind != b.keys.dtype.kind:
        return None
    order_a, order_b = (np.argsort(each.keys, kind="stable") for each in (a, b))
    if not np.array_equal(a.keys[order_a], b.keys[order_b]):
        return None
    order = np.empty_like(order_a)
    order[order_a] = order_b
    return replace(_taken(b, order), keys=a.keys, firsts=a.firsts)


def _distinct(outcomes: Outcomes, firsts: np.ndarray | None) -> Outcomes:
    """Return the outcomes of the examples with these numbers; all of them for None."""
    if firsts is None:
        return outcomes
    return _taken(outcomes, firsts)


def _taken(outcomes: Outcomes, order: np.ndarray) -> Outcomes:
    """Return the outcomes of the examples with these numbers, in this order."""
    correct, loglikelihood, weights, margin = (
        None if x is None else x[order]
        for x in (outcomes.correct, outcomes.loglikelihood, outcomes.weights, outcomes.margin)
    )
    return Outcomes(outcomes.keys[order], correct, loglikelihood, weights, margin=margin)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with p values adjusted over all of them.

    What was tested once counts once in the family; see `Comparison.test`.
    """

    def adjust(p: Callable[[Comparison], float | None]) -> list[float | None]:
        values = {comparison.test: value for comparison in comparisons if (value := p(comparison)) is not None}
        adjusted = dict(zip(values, holm(list(values.values())), strict=True))
        return [adjusted.get(comparison.test) for comparison in comparisons]

    accuracy = adjust(lambda each: each.accuracy.p if each.accuracy else None)
    perplexity = adjust(lambda each: each.perplexity.p if each.perplexity else None)
    margin = adjust(lambda each: each.margin.p if each.margin else None)
    return [
        replace(comparison, accuracy_p=accuracy_p, perplexity_p=perplexity_p, margin_p=margin_p)
        for comparison, accuracy_p, perplexity_p, margin_p in zip(
            comparisons, accuracy, perplexity, margin, strict=True
        )
    ]


def _below(p: float | None) -> bool | None:
    return None if p is None or math.isnan(p) else p < ALPHA


def _exceeds(measured: AccuracyDifference | MeanDifference | None, floor: float | None) -> bool | None:
    return None if measured is None or floor is None else abs(measured.difference) > floor
