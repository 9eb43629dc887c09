"""Find what quantizing each kind of tensor costs by itself, and whether the costs add up to that of all together.

A run quantizes some kinds of tensor: weights, activations, keys, values. Where another quantizes fewer of them, those
in the same formats, and nothing else is different, its cost is a part of the first one's. The cost is the change of
log-perplexity from the baseline, in nats. Costs add up where a run's is the sum of those of runs that quantize its
kinds between them, each kind once; the excess over that sum is a mean over examples as each cost is, so that its
interval is paired, too. Of a task without a perplexity the cost is the mean margin that is lost or, without margins,
the accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mxsweep.config.knobs import element_groups
from mxsweep.formats.recipe import TENSOR_KINDS
from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import name_rows
from mxsweep.results.rows import Row, label
from mxsweep.results.studies import STUDY
from mxsweep.results.tensor_errors import KIND_TITLES
from mxsweep.statistics.paired_tests import ALPHA, AccuracyDifference, MeanDifference, compare_log_perplexity, holm
from mxsweep.study.comparison import Comparison
from mxsweep.study.finding import Finding, join_with_and, run_ids
from mxsweep.study.paired_values import ACCURACY, LOG_PERPLEXITY, MARGIN, paired_values
from mxsweep.study.tensor_kinds import LINEAR, Kinds, is_calibrated_so, kinds_of, signature

ATTRIBUTION_TITLE = "What costs what"  # of the tables of all that was found
UNITS = {LOG_PERPLEXITY: "in nats", MARGIN: "in nats", ACCURACY: "in shares of the examples"}


@dataclass(frozen=True)
class Sum:
    """Hold a run's cost beside the sum of its parts' costs.

    Attributes:
        whole: the kinds that the run quantizes.
        parts: those of each part.
        excess: the run's cost minus what it would be if costs added up.
        total: the sum of the parts' costs.
        p: of the excess, adjusted by Holm's method over the sums of the group.
    """

    whole: Kinds
    parts: tuple[Kinds, ...]
    excess: MeanDifference
    total: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Return whether the costs do not add up, by more than chance in the choice of examples."""
        return self.p < ALPHA


@dataclass(frozen=True)
class Cost:
    """Hold what a run costs, above 0 where it is worse than its baseline, with its 95 % interval and adjusted p."""

    difference: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True)
class Attribution:
    """Hold what costs what under the formats of one run.

    Attributes:
        config: the knobs that tell the run from other quantized ones of its group; "" where none does.
        runs: of each set of kinds the run that quantizes them alone, from single kinds to all of them.
        quantity: what a cost is the change of for the worse: LOG_PERPLEXITY, MARGIN or ACCURACY.
        costs: of the same runs, where they could be compared with their baselines.
        sums: of runs of several kinds, by the fewest and by the most parts.
    """

    config: str
    runs: dict[Kinds, Row]
    quantity: str
    costs: dict[Kinds, Cost]
    sums: list[Sum]

    @property
    def whole(self) -> Kinds:
        """Return the kinds that the run of all parts quantizes."""
        return max(self.runs, key=len)


def find_attributions(results: Results, group: Group, comparisons: Mapping[Path, Comparison]) -> list[Attribution]:
    """Find the runs of a group whose kinds of tensor other runs quantize between them; the largest of them only.

    Runs that trained, and those that choose formats under a budget of bits, which are other ones with other kinds, are
    left out. `comparisons` are the runs' comparisons with their baselines, by folder.
    """
    apart = [STUDY] if STUDY in results.shown else []  # whose same runs came out differently
    known = [(row, kinds) for row in group.rows if (kinds := kinds_of(row))]
    by_signature: dict[str, Row] = {}
    for row, kinds in known:
        by_signature.setdefault(signature(row, kinds, apart), row)
    sets = {kinds for _, kinds in known}
    families = []
    for row, kinds in known:
        of_parts = {part: by_signature.get(signature(row, part, apart)) for part in sets if part < kinds}
        members = {
            part: other for part, other in of_parts.items() if other is not None and is_calibrated_so(other, row)
        }
        members[kinds] = row
        if by_signature[signature(row, kinds, apart)] is row and any(_partitions(kinds, members)):
            families.append(dict(sorted(members.items(), key=lambda item: _order(item[0]))))
    inner = {each.run.path for one in families for kinds, each in one.items() if kinds != max(one, key=len)}
    families = [one for one in families if one[max(one, key=len)].run.path not in inner]
    found = []
    for runs in families:
        compared = {kinds: each for kinds, row in runs.items() if (each := comparisons.get(row.run.path)) is not None}
        quantity = _quantity(list(compared.values()))
        costs = {kinds: cost for kinds, each in compared.items() if (cost := _cost(each, quantity)) is not None}
        found.append(Attribution("", runs, quantity, costs, list(_sums(group, runs, quantity))))
    return _named(results, _adjusted(found))


def _quantity(compared: Sequence[Comparison]) -> str:
    """Return what costs are of: the quantity that tells most apart of those that some run has."""
    known = {LOG_PERPLEXITY: "perplexity", MARGIN: "margin", ACCURACY: "accuracy"}
    there = (name for name, field in known.items() if any(getattr(each, field) is not None for each in compared))
    return next(there, LOG_PERPLEXITY)


def _cost(compared: Comparison, quantity: str) -> Cost | None:
    if quantity == LOG_PERPLEXITY:
        change = compared.perplexity
        return None if change is None else Cost(change.difference, change.low, change.high, compared.perplexity_p)
    is_margin = quantity == MARGIN
    lost: AccuracyDifference | MeanDifference | None = compared.margin if is_margin else compared.accuracy
    p = compared.margin_p if is_margin else compared.accuracy_p
    return None if lost is None else Cost(-lost.difference, -lost.high, -lost.low, p)


def describe_attributions(found: Sequence[Attribution]) -> Iterable[Finding]:
    """Say of each what its single kinds cost, from the most to the least, and whether that is what all of them cost."""
    for one in found:
        single = [(kinds, one.costs.get(kinds)) for kinds in one.runs if len(kinds) == 1 and kinds != one.whole]
        known = [(kinds, cost) for kinds, cost in single if cost is not None]
        known.sort(key=lambda item: -item[1].difference)
        parts = [f"{format_nats(cost)} ({kinds_text(kinds)})" for kinds, cost in known]
        if not parts:
            continue
        where = f"With {one.config}, q" if one.config else "Q"
        text = (
            f"{where}uantizing one kind of tensor alone {_changes(one.quantity)} {join_with_and(parts)}, "
            f"{UNITS[one.quantity]} with 95 % intervals."
        )
        of_all = [each for each in one.sums if each.whole == one.whole]
        if of_all:
            text += f" {_sum_text(max(of_all, key=lambda each: len(each.parts)))}"
        yield Finding("attribution", text, run_ids(one.runs.values()))


def _changes(quantity: str) -> str:
    return "changes log-perplexity by" if quantity == LOG_PERPLEXITY else f"costs this much {quantity}:"


def _sum_text(each: Sum) -> str:
    names = join_with_and([kinds_text(part) for part in each.parts])
    excess = format_nats(each.excess)
    if not each.is_significant:
        return (
            f"Together they cost {each.total + each.excess.difference:.3g}, which cannot be told from the sum of the "
            f"costs of {names}, {each.total:.3g} (difference {excess})."
        )
    more = "more" if each.excess.difference > 0 else "less"
    return (
        f"Together they cost {each.total + each.excess.difference:.3g}, {more} than the sum of the costs of {names}, "
        f"{each.total:.3g} (difference {excess}): the costs do not add up."
    )


def format_nats(difference: Cost | MeanDifference) -> str:
    """Return a difference and its 95 % interval as text."""
    low, high = difference.low, difference.high
    return f"{difference.difference:+.3g} [{low:+.3g}, {high:+.3g}]".replace("-", "−")


def kinds_text(kinds: Kinds) -> str:
    """Name kinds of tensor: "keys and values", "linear layers" (their weights and activations), "all"."""
    if len(kinds) == len(TENSOR_KINDS):
        return "all"
    if kinds == set(LINEAR):
        return "linear layers"
    return join_with_and([KIND_TITLES[kind] for kind in TENSOR_KINDS if kind in kinds])


def _order(kinds: Kinds) -> tuple[int, list[int]]:
    return len(kinds), [TENSOR_KINDS.index(kind) for kind in TENSOR_KINDS if kind in kinds]


def _partitions(kinds: Kinds, members: Mapping[Kinds, Row]) -> Iterator[tuple[Kinds, ...]]:
    """Yield the ways to make kinds of two or more sets that have a run each and no kind in common."""
    for part in members:
        if part < kinds and min(kinds, key=TENSOR_KINDS.index) in part:
            rest = kinds - part
            if rest in members:
                yield part, rest
            yield from ((part, *others) for others in _partitions(rest, members))


def _sums(group: Group, runs: Mapping[Kinds, Row], quantity: str) -> Iterator[Sum]:
    for kinds, row in runs.items():
        ways = sorted(_partitions(kinds, runs), key=len)
        baseline = group.baseline_for(row)
        for parts in {tuple(way): None for way in (ways[:1] + ways[-1:])}:
            if baseline is None:
                continue
            paired = paired_values([baseline, row, *(runs[part] for part in parts)], quantity)
            if paired is None:
                continue
            base, together, *alone = paired.values
            expected = base + sum(each - base for each in alone)
            excess = compare_log_perplexity(expected, together, paired.weights)
            total = compare_log_perplexity(base, expected, paired.weights).difference
            yield Sum(kinds, tuple(sorted(parts, key=_order)), excess, total, excess.p)


def _adjusted(found: Sequence[Attribution]) -> list[Attribution]:
    """Return the attributions with the p values of their sums adjusted over all of them."""
    adjusted = iter(holm([each.p for one in found for each in one.sums]))
    return [
        Attribution(
            one.config,
            one.runs,
            one.quantity,
            one.costs,
            [Sum(each.whole, each.parts, each.excess, each.total, next(adjusted)) for each in one.sums],
        )
        for one in found
    ]


def _named(results: Results, found: Sequence[Attribution]) -> list[Attribution]:
    """Return the attributions with names, which are those of the knobs that tell their runs of all parts apart."""
    wholes = [one.runs[one.whole] for one in found]
    telling = [name for name in results.shown if len({label(row.knobs.get(name, "")) for row in wholes}) > 1]
    names = telling or [name for name in element_groups() if name in results.shown]
    configs = [name_rows([row], names) if names else "" for row in wholes]
    return [replace(one, config=name) for name, one in zip(configs, found, strict=True)]
