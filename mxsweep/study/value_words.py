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
    for pair in studied.pairs:
        test = pair.tests.get(metric)
        if test is None or pair.identical or test.tells_apart:
            continue
        size = max(abs(test.measured.low), abs(test.measured.high))
        if math.isnan(size):
            continue
        noise = test.floor is not None and test.floor >= abs(test.measured.difference) and test.p < 0.05
        why = "no difference that the numerical noise would not make" if noise else "no difference"
        lines.append(
            f"{title} {pair.low}, {pair.high}: {why} above {format_size(metric, size)} of {metric_noun(metric)}."
        )
    for each in studied.interactions:
        parts = [
            f"{format_measured(metric, measured)} with {value_text(each.other, [value])}" for value, measured in each.at
        ]
        lines.append(
            f"What {value_text(studied.knob, [each.high])} does against {each.low} depends on "
            f"{knob_title(each.other)}: {metric_noun(metric)} {join_with_and(parts)}."
        )
    return lines


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
        parts.append(f"No difference: {'; '.join(not_matter)}.")
    return " ".join(parts)


def _why_not(studied: KnobValues, pairs: Sequence[ValuePair], metric: str) -> str:
    values = list(dict.fromkeys(value for pair in pairs for value in (pair.low, pair.high)))
    if all(pair.identical for pair in pairs):
        return f"{value_text(studied.knob, values)} (identical)"
    ends = [abs(end) for pair in pairs for m in [pair.tests[metric].measured] for end in (m.low, m.high)]
    size = max((end for end in ends if not math.isnan(end)), default=math.nan)
    above = "" if math.isnan(size) else f" above {format_size(metric, size)}"
    return f"{knob_title(studied.knob)} {', '.join(values)} (none{above})"


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
