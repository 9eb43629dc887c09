"""Test all values of a knob against each other, averaged over the other knobs, and whether those change what it does.

A pair of values is compared over the combinations of other knobs that both were run in: of each example the mean of its
outcomes over them, and of these the paired test. Pairs of one knob are a family of tests, its interactions another.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mxsweep.results.groups import Group, Results, value_order
from mxsweep.results.knob_words import goes_with_format
from mxsweep.results.metrics import LOSS, is_loss, is_margin, is_perplexity
from mxsweep.results.outcomes import Outcomes
from mxsweep.results.rows import Row, label
from mxsweep.statistics.paired_tests import (
    ALPHA,
    AccuracyDifference,
    MeanDifference,
    compare_accuracy,
    compare_log_perplexity,
    compare_means,
    holm,
)
from mxsweep.study.comparison import align_outcomes
from mxsweep.study.headline import loss_metric
from mxsweep.study.knob_effects import runs_by_value
from mxsweep.study.noise_floor import Noise
from mxsweep.study.silent_tasks import has_no_pairs

MOST_VALUES = 10  # of a knob, of which all pairs are compared; of more, neighbours and the two ends
Runs = list[tuple[Row, Row]]
Context = tuple[str | None, ...]  # values of knobs; None where one has no effect
UNKNOWN = object()  # the value of a knob that has no effect on a run


@dataclass(frozen=True)
class PairTest:
    """Hold a metric's difference of two values of a knob, the later minus the earlier.

    Attributes:
        measured: averaged over the other knobs, over the same examples.
        p: adjusted by Holm's method over the knob's pairs.
        floor: how large a difference the numerical noise makes by itself; None where that was not measured.
    """

    measured: AccuracyDifference | MeanDifference
    p: float
    floor: float | None = None

    @property
    def tells_apart(self) -> bool:
        """Return whether the values differ by more than chance, and more than the numerical noise where it is known."""
        return self.p < ALPHA and (self.floor is None or abs(self.measured.difference) > self.floor)


@dataclass(frozen=True)
class ValuePair:
    """Hold two values of a knob, in its order, compared; `identical` where every example came out the same."""

    low: str
    high: str
    runs: Runs
    tests: dict[str, PairTest]  # by metric
    identical: bool


@dataclass(frozen=True)
class Interaction:
    """Hold how differently two values of a knob compare at two values of another knob.

    Attributes:
        low, high: the values of the knob.
        other: the other knob.
        at: its two values, and the difference at each.
        p: of the difference of the two differences, adjusted over the knob's interactions.
    """

    low: str
    high: str
    other: str
    at: tuple[tuple[str, AccuracyDifference | MeanDifference], tuple[str, AccuracyDifference | MeanDifference]]
    p: float


@dataclass(frozen=True)
class KnobValues:
    """Hold what a knob's values do.

    Attributes:
        metrics: the metric that tells most apart, and the main one.
        more_values: whether it has more values than are all compared.
        bound: of formats the knobs that go with them, which differ where a format does.
    """

    knob: str
    metrics: list[str]
    pairs: list[ValuePair]
    interactions: list[Interaction] = field(default_factory=list)
    more_values: bool = False
    bound: list[str] = field(default_factory=list)


def study_values(results: Results, group: Group) -> list[KnobValues]:
    """Compare the values of every knob that quantized runs of the group differ in; nothing of knobs without a pair.

    Trainings with several seeds are compared by config (see `training_ranking`), and not here; nor are runs of which
    the task tells nothing.
    """
    if has_no_pairs(group):
        return []
    metrics = list(dict.fromkeys(name for name in (loss_metric(group), group.main_metric()) if name))
    examples = Examples(group)
    rows = [row for row in group.rows if not row.is_baseline]
    studied = []
    for knob in results.shown:
        bound = goes_with_format(results.shown, rows) if knob == "format" else []
        others = [name for name in results.shown if name not in (knob, *bound)]
        contexts = [each for each in runs_by_value(rows, knob, others) if len(each) > 1]
        if contexts:
            found = _study_knob(knob, others, contexts, metrics, examples)
            studied.append(replace(found, bound=bound))
    return [_without_mirrored(each, studied[:i]) for i, each in enumerate(studied) if each.metrics]


def _without_mirrored(studied: KnobValues, before: Sequence[KnobValues]) -> KnobValues:
    """Return a knob without the interactions that are said of the other knob already."""
    said = {each.knob for each in before if any(one.other == studied.knob for one in each.interactions)}
    return replace(studied, interactions=[one for one in studied.interactions if one.other not in said])


def _study_knob(
    knob: str, others: Sequence[str], contexts: Sequence[Sequence[Row]], metrics: Sequence[str], examples: "Examples"
) -> KnobValues:
    values = {label(row.knobs[knob]): row.knobs[knob] for rows in contexts for row in rows}
    ordered = sorted(values, key=lambda text: value_order(knob, values[text]))
    by_value = [{label(row.knobs[knob]): row for row in rows} for rows in contexts]
    many = len(ordered) > MOST_VALUES
    chosen = [*itertools.pairwise(ordered), (ordered[0], ordered[-1])] if many else itertools.combinations(ordered, 2)
    pairs = []
    for low, high in chosen:
        both = [(each[low], each[high]) for each in by_value if low in each and high in each]
        runs = list({(a.run.path, b.run.path): (a, b) for a, b in both}.values())
        tests = {name: test for name in metrics if (test := examples.test(runs, name)) is not None} if runs else {}
        if tests:
            pairs.append(ValuePair(low, high, runs, tests, examples.identical(runs)))
    pairs = _adjusted(pairs, metrics)
    known = [name for name in metrics if any(name in pair.tests for pair in pairs)]
    found = _interactions(pairs, others, known[0], examples) if known else []
    return KnobValues(knob, known, pairs, found, many)


def _adjusted(pairs: Sequence[ValuePair], metrics: Sequence[str]) -> list[ValuePair]:
    """Return the pairs with p values adjusted over all of them, by metric; pairs that came out the same count once."""
    adjusted: dict[str, dict[AccuracyDifference | MeanDifference, float]] = {}
    for name in metrics:
        measured = list(dict.fromkeys(pair.tests[name].measured for pair in pairs if name in pair.tests))
        adjusted[name] = dict(zip(measured, holm([each.p for each in measured]), strict=True))
    return [
        replace(pair, tests={name: replace(one, p=adjusted[name][one.measured]) for name, one in pair.tests.items()})
        for pair in pairs
    ]


def _interactions(
    pairs: Sequence[ValuePair], others: Sequence[str], metric: str, examples: "Examples"
) -> list[Interaction]:
    """Return, of the pair that differs most, the other knobs whose values change the difference, significantly.

    At both values of such a knob the difference is averaged over the combinations of the rest that both were run in:
    over others it could change with what else is different. Of each such knob the two values with the smallest p. All
    that were tested are a family.
    """
    told = [pair for pair in pairs if metric in pair.tests and not pair.identical]
    if not told:
        return []
    pair = max(told, key=lambda each: abs(each.tests[metric].measured.difference))
    tried: list[Interaction] = []
    for other in others:
        by_value: dict[str, Runs] = {}
        for low, high in pair.runs:
            if other in low.knobs and other in high.knobs and label(low.knobs[other]) == label(high.knobs[other]):
                by_value.setdefault(label(low.knobs[other]), []).append((low, high))
        rest = _rest(pair.runs, others, other)
        for first, second in itertools.islice(itertools.combinations(by_value, 2), MOST_VALUES**2):
            runs = _in_common(by_value[first], by_value[second], rest)
            if not runs[0]:
                continue
            tests = [examples.test(each, metric) for each in runs]
            p = examples.interaction_p(*runs, metric)
            if p is not None and tests[0] is not None and tests[1] is not None:
                at = ((first, tests[0].measured), (second, tests[1].measured))
                tried.append(Interaction(pair.low, pair.high, other, at, p))
    best: dict[str, Interaction] = {}
    for each, p in zip(tried, holm([each.p for each in tried]), strict=True):
        if p < ALPHA and (each.other not in best or p < best[each.other].p):
            best[each.other] = replace(each, p=p)
    return list(best.values())


def _rest(runs: Runs, others: Sequence[str], knob: str) -> list[str]:
    """Return the other knobs but for one and, where that is the format, for those that go with it."""
    bound = goes_with_format(others, [row for both in runs for row in both]) if knob == "format" else []
    return [name for name in others if name != knob and name not in bound]


def _in_common(first: Runs, second: Runs, rest: Sequence[str]) -> tuple[Runs, Runs]:
    """Return of both the pairs of runs that agree with one of the others in the rest of the knobs.

    A knob that has no effect on a run agrees with any value.
    """

    def context(both: tuple[Row, Row]) -> Context:
        known = [next((row.knobs[name] for row in both if name in row.knobs), UNKNOWN) for name in rest]
        return tuple(None if value is UNKNOWN else label(value) for value in known)

    ours, theirs = [(context(both), both) for both in first], [(context(both), both) for both in second]
    with_theirs, with_ours = _agrees(theirs), _agrees(ours)
    return [both for key, both in ours if with_theirs(key)], [both for key, both in theirs if with_ours(key)]


def _agrees(known: Sequence[tuple[Context, tuple[Row, Row]]]) -> Callable[[Context], bool]:
    """Return what says whether a context agrees with one of these."""
    contexts = {key for key, _ in known}
    partial = [key for key in contexts if None in key]

    def agrees(key: Context) -> bool:
        others = contexts if None in key else partial
        return key in contexts or any(
            all(x is None or y is None or x == y for x, y in zip(key, other, strict=True)) for other in others
        )

    return agrees


class Examples:
    """Hold what a group's runs answered to the same examples, and average and test it."""

    def __init__(self, group: Group) -> None:
        self._outcomes = align_outcomes(group.rows)
        self._noise = Noise.from_group(group)
        self._means: dict[tuple[str, frozenset[Path]], np.ndarray | None] = {}

    def test(self, runs: Runs, metric: str) -> PairTest | None:
        """Test a metric's mean difference over pairs of runs; None where an outcome is unknown or not finite."""
        lows, highs = [low for low, _ in runs], [high for _, high in runs]
        a, b = self._mean(lows, metric), self._mean(highs, metric)
        if a is None or b is None:
            return None
        measured: AccuracyDifference | MeanDifference
        if is_perplexity(metric) or is_loss(metric):
            measured = compare_log_perplexity(a, b, self._outcomes[lows[0].run.path].weights)
        elif is_margin(metric) or len(runs) > 1:
            measured = compare_means(a, b)
        else:
            measured = compare_accuracy(a > 0.5, b > 0.5)
        return PairTest(measured, measured.p, self._floor(runs, metric))

    def interaction_p(self, first: Runs, second: Runs, metric: str) -> float | None:
        """Return the p value of the difference of two mean differences, unadjusted; None where one is unknown."""
        means = [self._mean([pair[i] for pair in runs], metric) for runs in (first, second) for i in (0, 1)]
        known = [mean for mean in means if mean is not None]
        if len(known) < 4:
            return None
        a, b = known[1] - known[0], known[3] - known[2]
        if is_perplexity(metric) or is_loss(metric):
            return compare_log_perplexity(a, b, self._outcomes[first[0][0].run.path].weights).p
        return compare_means(a, b).p

    def identical(self, runs: Runs) -> bool:
        """Return whether all pairs of runs have the same outcomes, to the last digit."""
        return all(
            a is not None
            and b is not None
            and all(
                (x is None and y is None) or (x is not None and y is not None and np.array_equal(x, y))
                for x, y in ((a.correct, b.correct), (a.loglikelihood, b.loglikelihood), (a.margin, b.margin))
            )
            for a, b in ((self._outcomes.get(low.run.path), self._outcomes.get(high.run.path)) for low, high in runs)
        )

    def _mean(self, rows: Sequence[Row], metric: str) -> np.ndarray | None:
        key = metric, frozenset(row.run.path for row in rows)
        if key not in self._means:
            self._means[key] = _mean_of([self._values(row, metric) for row in rows])
        return self._means[key]

    def _values(self, row: Row, metric: str) -> np.ndarray | None:
        outcomes = self._outcomes.get(row.run.path)
        values = None if outcomes is None else _values_of(outcomes, row, metric)
        return values if values is not None and np.isfinite(values).all() else None

    def _floor(self, runs: Runs, metric: str) -> float | None:
        """Return the mean floor, which is what noise makes of a mean if it moves all pairs alike, and less if not."""
        floors = [self._noise.floor(high, low) for low, high in runs]
        name = "log_perplexity" if is_perplexity(metric) else "margin" if is_margin(metric) else "accuracy"
        values = [getattr(floor, name) for floor in floors if floor is not None]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None


def _mean_of(values: Iterable[np.ndarray | None]) -> np.ndarray | None:
    known = list(values)
    some = [each for each in known if each is not None]
    return None if not some or len(some) < len(known) else np.mean(some, axis=0)


def _values_of(outcomes: Outcomes, row: Row, metric: str) -> np.ndarray | None:
    """Return the outcomes that a metric is the mean of; None where they are not known."""
    if is_perplexity(metric) or is_loss(metric):
        return outcomes.loglikelihood if metric in (row.ppl_name, LOSS) else None
    if is_margin(metric):
        return outcomes.margin
    if metric == row.accuracy_name and outcomes.correct is not None:
        return outcomes.correct.astype(np.float64)
    return None
