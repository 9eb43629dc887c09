"""Say in words what the values of a knob do: which differ, which do not, and what depends on other knobs."""

import math
from collections.abc import Sequence

from mxsweep.results.knob_words import knob_title, value_text, value_word
from mxsweep.results.rows import label
from mxsweep.statistics.paired_tests import ALPHA
from mxsweep.study.change_words import format_measured, format_span, metric_noun
from mxsweep.study.finding import join_with_and
from mxsweep.study.value_pairs import KnobValues, ValuePair

MOST_AVERAGED = 3  # knobs of each of which it is said what it is averaged over
MOST_MATTERING = 5  # knobs that are named with what they do


def describe_values(studied: KnobValues) -> list[str]:
    """Say what a knob does in lines: which values come to the same, which cannot be told apart, what interacts."""
    metric = studied.metrics[0]
    lines = [
        f"{value_text(studied.knob, values)}: every example has the same outcome, to the last digit."
        for values in _identical_sets(studied.pairs)
    ]
    if studied.bound:
        names = join_with_and([knob_title(name) for name in studied.bound])
        verbs = ("go", "differ") if len(studied.bound) > 1 else ("goes", "differs")
        lines.append(f"{names} {verbs[0]} with the format, and {verbs[1]} where it does.")
    lines += [f"{knob_title(studied.knob)} {said}" for said in _no_differences(studied, metric)]
    for each in studied.interactions:
        parts = [
            f"{format_measured(metric, measured)} with {value_text(each.other, [value])}" for value, measured in each.at
        ]
        lines.append(
            f"What {value_text(studied.knob, [each.high])} does against {value_word(studied.knob, each.low)} depends "
            f"on {knob_title(each.other)}: {metric_noun(metric)} {join_with_and(parts)}."
        )
    return lines


def _no_differences(studied: KnobValues, metric: str) -> list[str]:
    """Say which values cannot be told apart: in a line of each pair, or in one where that is true of every pair."""
    apart = [pair for pair in studied.pairs if not pair.identical and metric in pair.tests]
    alike = [pair for pair in apart if not pair.tests[metric].tells_apart and _span([pair], metric)]
    told = [(_no_difference(pair, metric), pair) for pair in alike]
    noun = metric_noun(metric)
    if len(alike) == len(apart) > 1 and len({why for why, _ in told}) == 1:
        values = _values(studied.knob, alike)
        return [f"{', '.join(values)}: {told[0][0]}, within {_span(alike, metric)} of {noun}."]
    return [
        f"{', '.join(_values(studied.knob, [pair]))}: {why}, within {_span([pair], metric)} of {noun}."
        for why, pair in told
    ]


def _values(knob: str, pairs: Sequence[ValuePair]) -> list[str]:
    return list(dict.fromkeys(value_word(knob, value) for pair in pairs for value in (pair.low, pair.high)))


def _span(pairs: Sequence[ValuePair], metric: str) -> str:
    """Return what the intervals of all pairs lie within, of the later value against the earlier; empty if unknown."""
    measured = [pair.tests[metric].measured for pair in pairs]
    known = [one for one in measured if not math.isnan(one.low)]
    return format_span(metric, min(one.low for one in known), max(one.high for one in known)) if known else ""


def _no_difference(pair: ValuePair, metric: str) -> str:
    test = pair.tests[metric]
    noise = test.floor is not None and test.floor >= abs(test.measured.difference) and test.p < ALPHA
    return "no difference that the numerical noise would not make" if noise else "no difference shown"


def summarize_values(studied: Sequence[KnobValues]) -> str:
    """Say in a sentence or two which knobs matter, by their largest difference, and which do not.

    Differences are averaged over the other knobs, which is said where any of them does something.
    """
    matter, untold = [], []
    for each in studied:
        metric = each.metrics[0]
        tested = [pair for pair in each.pairs if metric in pair.tests]
        telling = [pair for pair in tested if pair.tests[metric].tells_apart and not pair.identical]
        if telling:
            pair = max(telling, key=lambda one: abs(one.tests[metric].measured.difference))
            measured = pair.tests[metric].measured
            against = f"{value_text(each.knob, [pair.high])} against {value_word(each.knob, pair.low)}"
            over = _averaged(each, [pair], studied)
            matter.append((abs(measured.difference), against, over, format_measured(metric, measured), metric))
        elif tested:
            untold.append((each, tested, metric))
    not_matter = [_why_not(*each, studied, studied) for each in untold]
    if len(not_matter) > MOST_AVERAGED:
        not_matter = [_why_not(*each, studied, ()) for each in untold] + ["each averaged over the other knobs"]
    parts = []
    if matter:
        matter.sort(key=lambda one: -one[0])
        few = len(matter) <= MOST_AVERAGED
        texts = [f"{against}{over if few else ''}: {size}" for _, against, over, size, _ in matter[:MOST_MATTERING]]
        more = f"; {len(matter) - MOST_MATTERING} more, by less" if len(matter) > MOST_MATTERING else ""
        averaged = (
            "" if few or not any(over for _, _, over, _, _ in matter) else " (each averaged over the other knobs)"
        )
        parts.append(f"Of {metric_noun(matter[0][-1])}{averaged}, {'; '.join(texts)}{more}.")
    if not_matter:
        said = "; ".join(not_matter)
        parts.append(f"{said[0].upper()}{said[1:]}.")
    return " ".join(parts)


def _averaged(studied: KnobValues, pairs: Sequence[ValuePair], all_studied: Sequence[KnobValues]) -> str:
    """Name the other knobs that the runs of these pairs have several values of, but for those that do nothing."""
    rows = [row for pair in pairs for both in pair.runs for row in both]
    over = [
        knob_title(each.knob)
        for each in all_studied
        if each.knob != studied.knob
        and not all(pair.identical for pair in each.pairs)
        and len({label(row.knobs[each.knob]) for row in rows if each.knob in row.knobs}) > 1
    ]
    over = [title for title in over if title not in {knob_title(name) for name in studied.bound}]
    return f", averaged over {join_with_and(over)}" if over else ""


def _why_not(
    studied: KnobValues,
    pairs: Sequence[ValuePair],
    metric: str,
    all_studied: Sequence[KnobValues],
    averaging: Sequence[KnobValues],
) -> str:
    """Say why nothing is said of a knob; `averaging` are those of which it is said that they are averaged over."""
    values = _values(studied.knob, pairs)
    if all(pair.identical for pair in pairs):
        return f"{value_text(studied.knob, values)}: identical"
    span = _span(pairs, metric)
    within = f", within {span}" if span else ""
    averaged = _averaged(studied, pairs, averaging)
    depends = (
        f", but what it does depends on {join_with_and(others)}" if (others := _depends(studied, all_studied)) else ""
    )
    why = ", or ".join(dict.fromkeys(_no_difference(pair, metric) for pair in pairs if not pair.identical))
    return f"{knob_title(studied.knob)} {', '.join(values)}{averaged}: {why}{within}{depends}"


def _depends(studied: KnobValues, all_studied: Sequence[KnobValues]) -> list[str]:
    """Name the knobs that change what a knob does; of two such knobs the interaction stands at one of them."""
    names = [one.other for one in studied.interactions]
    names += [each.knob for each in all_studied for one in each.interactions if one.other == studied.knob]
    return [knob_title(name) for name in dict.fromkeys(names)]


def _identical_sets(pairs: Sequence[ValuePair]) -> list[list[str]]:
    """Return values that are identical with each other."""
    sets: list[list[str]] = []
    for pair in pairs:
        if pair.identical:
            known = next((one for one in sets if pair.low in one or pair.high in one), None)
            if known is None:
                sets.append([pair.low, pair.high])
            else:
                known += [value for value in (pair.low, pair.high) if value not in known]
    return sets
