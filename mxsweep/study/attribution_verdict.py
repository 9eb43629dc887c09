"""Answer what a study of single kinds of tensor was made for: which part costs most, and whether costs add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import name_rows
from mxsweep.results.metrics import is_margin, is_perplexity
from mxsweep.statistics.paired_tests import MeanDifference
from mxsweep.study.attribution import ATTRIBUTION_TITLE, Attribution, Cost, Sum, format_nats, kinds_text
from mxsweep.study.change_words import format_factor, format_with_span
from mxsweep.study.compared_metric import metric_test
from mxsweep.study.comparison import compare_pairs
from mxsweep.study.finding import join_with_and, run_ids, with_minus_signs
from mxsweep.study.paired_values import ACCURACY, LOG_PERPLEXITY, MARGIN
from mxsweep.study.tensor_kinds import Kinds
from mxsweep.study.verdict_words import VerdictLine

MOST_CONFIGS = 2  # whose parts are told on the first screen
COSTS_MOST, TOGETHER, OTHERS = "Costs most", "Together", "Others"
PERPLEXITY = "perplexity"
NOUNS = {LOG_PERPLEXITY: PERPLEXITY, MARGIN: "mean margin lost", ACCURACY: "accuracy lost"}


def asks_what_costs_what(group: Group, found: Sequence[Attribution]) -> bool:
    """Return whether all quantized runs are parts of configs that were taken apart into single kinds of tensor."""
    apart = [one for one in found if len(_single(one)) == len(one.whole) > 1]
    parts = {row.run.path for one in apart for row in one.runs.values()}
    return bool(apart) and parts >= {row.run.path for row in group.rows if not row.is_baseline}


def say_what_costs_what(results: Results, group: Group, found: Sequence[Attribution]) -> list[VerdictLine]:
    """Say of configs that were taken apart which part costs most, and whether the parts' costs add up.

    It is said of the first MOST_CONFIGS, and then how many more there are.
    """
    lines = []
    for one in found[:MOST_CONFIGS]:
        where = f"{_name(results, group, one, one.whole)}: " if len(found) > 1 else ""
        lines += [line for line in (_say_most(results, group, one, where), _say_together(results, group, one)) if line]
    return [*lines, *_say_others(found[MOST_CONFIGS:])]


def _say_others(found: Sequence[Attribution]) -> list[VerdictLine]:
    """Say how many more configs were taken apart, and where what their parts cost is to be found."""
    if not found:
        return []
    were, their = ("config was", "its") if len(found) == 1 else ("configs were", "their")
    said = f"{len(found)} more {were} taken apart: what {their} parts cost stands below, under {ATTRIBUTION_TITLE}."
    return [VerdictLine(OTHERS, said, run_ids([one.runs[one.whole] for one in found]))]


def _single(one: Attribution) -> list[Kinds]:
    return [kinds for kinds in one.runs if len(kinds) == 1]


def _say_most(results: Results, group: Group, one: Attribution, where: str) -> VerdictLine | None:
    costs = [(kinds, cost) for kinds in _single(one) if (cost := one.costs.get(kinds)) is not None]
    if len(costs) < 2:
        return None
    costs.sort(key=lambda item: -item[1].difference)
    (most, cost), *others = costs
    name = _name(results, group, one, most)
    lead = f"{where}{name}: {NOUNS[one.quantity]} {_cost_text(one.quantity, cost)}"
    lead = f"{lead[0].upper()}{lead[1:]}" if not where else lead
    rest = "; ".join(f"{_name(results, group, one, kinds)} {_cost_text(one.quantity, each)}" for kinds, each in others)
    unclear = _not_told(group, one, most, [kinds for kinds, _ in others])
    if not unclear:
        said = "significantly more than every other part"
    else:
        said = f"but not measurably more than {join_with_and([kinds_text(kinds) for kinds in unclear])}"
    return VerdictLine(COSTS_MOST, f"{lead}, {said}. Then {rest}.", run_ids([one.runs[most]]), lead)


def _not_told(group: Group, one: Attribution, most: Kinds, others: Sequence[Kinds]) -> list[Kinds]:
    """Return the parts that the examples do not tell from the one that costs most; p adjusted over all of them."""
    row = one.runs[most]
    compared = compare_pairs(group, [(row, one.runs[kinds]) for kinds in others])
    tests = [metric_test(each, _metric(group, one)) for each in compared]
    return [kinds for kinds, test in zip(others, tests, strict=True) if not test.tells_apart]


def _metric(group: Group, one: Attribution) -> str:
    """Return the name of the metric that costs are of."""
    of = {LOG_PERPLEXITY: is_perplexity, MARGIN: is_margin}.get(one.quantity)
    names = [name for name in group.metric_names() if of is not None and of(name)]
    return names[0] if names else group.main_metric() or ""


def _say_together(results: Results, group: Group, one: Attribution) -> VerdictLine | None:
    """Say what all costs beside what its single kinds cost, then the same of the sets between."""
    sums = [each for each in one.sums if all(len(part) == 1 for part in each.parts)]
    sums.sort(key=lambda each: -len(each.whole))
    if not sums or sums[0].whole != one.whole:
        return None
    whole, *between = sums
    lead = _lead(one.quantity, whole)
    text = f"{lead}. {_set_text(results, group, one, whole)}"
    for each in between:
        text += f"; {_set_text(results, group, one, each)}"
    return VerdictLine(TOGETHER, f"{text}.", run_ids([one.runs[one.whole]]), lead)


def _lead(quantity: str, whole: Sum) -> str:
    """Say whether costs add up; of a perplexity, whose logarithms are added, whether its ratios multiply."""
    are_ratios = quantity == LOG_PERPLEXITY
    if not whole.is_significant:
        return f"The costs cannot be told from {'ratios that multiply' if are_ratios else 'adding up'}"
    more = "more" if whole.excess.difference > 0 else "less"
    if are_ratios:
        return f"The costs do not multiply: together they are {more} than the product of their ratios"
    return f"The costs do not add up: together they are {more} than their sum"


def _set_text(results: Results, group: Group, one: Attribution, each: Sum) -> str:
    name = _name(results, group, one, each.whole) if each.whole == one.whole else kinds_text(each.whole)
    total, parts = each.total + each.excess.difference, _parts_text(each)
    told = "" if each.is_significant else ", not told apart"
    if one.quantity == LOG_PERPLEXITY:
        return (
            f"{name}: {PERPLEXITY} {format_factor(total)}, where {parts} by themselves multiply to "
            f"{format_factor(each.total)} (excess {_ratio_text(each.excess)}{told})"
        )
    return (
        f"{name}: {_size(total)}, where {parts} by themselves make {_size(each.total)} "
        f"(excess {format_nats(each.excess)}{told})"
    )


def _ratio_text(excess: MeanDifference) -> str:
    """Return what the product of the parts' ratios is to be multiplied by, and its 95 % interval where it has one."""
    text = format_factor(excess.difference)
    return text if math.isnan(excess.low) else f"{text} [{format_factor(excess.low)}, {format_factor(excess.high)}]"


def _parts_text(each: Sum) -> str:
    return join_with_and([kinds_text(part) for part in each.parts])


def _name(results: Results, group: Group, one: Attribution, kinds: Kinds) -> str:
    quantized = [row for row in group.rows if not row.is_baseline]
    names = [n for n in results.shown if len({str(row.knobs.get(n)) for row in quantized if n in row.knobs}) > 1]
    return name_rows([one.runs[kinds]], names)


def _size(difference: float) -> str:
    return with_minus_signs(f"{difference:+.3g}")


def _cost_text(quantity: str, cost: Cost) -> str:
    if quantity == LOG_PERPLEXITY:
        return format_with_span(PERPLEXITY, cost.difference, cost.low, cost.high)
    return format_nats(cost)
