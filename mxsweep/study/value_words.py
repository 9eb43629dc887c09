"""Say in words what the values of a knob do: which differ, which do not, and what depends on other knobs."""

import math
from collections.abc import Sequence

from mxsweep.results.knob_words import knob_title, value_text
from mxsweep.study.change_words import format_measured, format_size, metric_noun
from mxsweep.study.finding import join_with_and
from mxsweep.study.value_pairs import KnobValues, ValuePair


def describe_values(studied: KnobValues) -> list[str]:
    """Say what a knob does in lines: which values come to the same, which cannot be told apart, what interacts."""
    title, metric = knob_title(studied.knob), studied.metrics[0]
    lines = [
        f"{title} {' = '.join(values)}: every example has the same outcome, to the last digit."
        for values in _identical_sets(studied.pairs)
    ]
    if studied.bound:
        names = join_with_and([knob_title(name) for name in studied.bound])
        verbs = ("go", "differ") if len(studied.bound) > 1 else ("goes", "differs")
        lines.append(f"{names} {verbs[0]} with the format, and {verbs[1]} where it does.")
    lines += [f"{title} {said}" for said in _no_differences(studied, metric)]
    for each in studied.interactions:
        parts = [
            f"{format_measured(metric, measured)} with {value_text(each.other, [value])}" for value, measured in each.at
        ]
        lines.append(
            f"What {value_text(studied.knob, [each.high])} does against {each.low} depends on "
            f"{knob_title(each.other)}: {metric_noun(metric)} {join_with_and(parts)}."
        )
    return lines


def _no_differences(studied: KnobValues, metric: str) -> list[str]:
    """Say which values cannot be told apart: in a line of each pair, or in one where that is true of every pair."""
    apart = [pair for pair in studied.pairs if not pair.identical and metric in pair.tests]
    alike = [pair for pair in apart if not pair.tests[metric].tells_apart and not math.isnan(_size(pair, metric))]
    told = [(_no_difference(pair, metric), _size(pair, metric), pair) for pair in alike]
    noun = metric_noun(metric)
    if len(alike) == len(apart) > 1 and len({why for why, _, _ in told}) == 1:
        values = list(dict.fromkeys(value for pair in alike for value in (pair.low, pair.high)))
        size = max(size for _, size, _ in told)
        return [f"{', '.join(values)}: {told[0][0]} above {format_size(metric, size)} of {noun}."]
    return [f"{pair.low}, {pair.high}: {why} above {format_size(metric, size)} of {noun}." for why, size, pair in told]


def _size(pair: ValuePair, metric: str) -> float:
    measured = pair.tests[metric].measured
    return max(abs(measured.low), abs(measured.high))


def _no_difference(pair: ValuePair, metric: str) -> str:
    test = pair.tests[metric]
    noise = test.floor is not None and test.floor >= abs(test.measured.difference) and test.p < 0.05
    return "no difference that the numerical noise would not make" if noise else "no difference"


def summarize_values(studied: Sequence[KnobValues]) -> str:
    """Say in a sentence or two which knobs matter, by their largest difference, and which do not."""
    matter, not_matter = [], []
    for each in studied:
        metric = each.metrics[0]
        tested = [pair for pair in each.pairs if metric in pair.tests]
        telling = [pair for pair in tested if pair.tests[metric].tells_apart and not pair.identical]
        if telling:
            pair = max(telling, key=lambda one: abs(one.tests[metric].measured.difference))
            measured = pair.tests[metric].measured
            text = f"{value_text(each.knob, [pair.high])} against {pair.low}: {format_measured(metric, measured)}"
            matter.append((abs(measured.difference), text, metric))
        elif tested:
            not_matter.append(_why_not(each, tested, metric))
    parts = []
    if matter:
        matter.sort(key=lambda one: -one[0])
        parts.append(f"Of {metric_noun(matter[0][2])}, {'; '.join(text for _, text, _ in matter)}.")
    if not_matter:
        said = "; ".join(not_matter)
        parts.append(f"{said[0].upper()}{said[1:]}.")
    return " ".join(parts)


def _why_not(studied: KnobValues, pairs: Sequence[ValuePair], metric: str) -> str:
    values = list(dict.fromkeys(value for pair in pairs for value in (pair.low, pair.high)))
    if all(pair.identical for pair in pairs):
        return f"{value_text(studied.knob, values)}: identical"
    ends = [abs(end) for pair in pairs for m in [pair.tests[metric].measured] for end in (m.low, m.high)]
    size = max((end for end in ends if not math.isnan(end)), default=math.nan)
    above = "" if math.isnan(size) else f" above {format_size(metric, size)}"
    return f"{knob_title(studied.knob)} {', '.join(values)}: no difference{above or ' shown'}"


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
