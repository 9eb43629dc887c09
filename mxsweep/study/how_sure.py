"""Say how sure a verdict is: whether the examples are enough, and which difference so many of them show."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mxsweep.results.metrics import betterness
from mxsweep.results.rows import Row
from mxsweep.results.task_size import task_size
from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference, Z
from mxsweep.study.change_words import format_size, metric_noun
from mxsweep.study.comparison import Comparison
from mxsweep.study.configs_to_use import Config, Judged
from mxsweep.study.verdict_words import VerdictLine, name_together, say_examples

_FOUND = 0.8416212335729143  # the normal distribution's 80 % quantile: what is found in 4 of 5 cases


def say_sure(judged: Judged, metric: str, repeats: int) -> VerdictLine | None:
    """Say the smallest difference that this many examples show in 4 of 5 cases, by the median width of intervals.

    Those are of the configs that more examples may tell from the best, where there are any, else of all that are not
    identical with it, against it.

    Args:
        repeats: examples that were left out, since they ask the same as others.
    """
    configs, tests = judged.configs, judged.tests
    several, unclear = len(configs) > 1, judged.too_few
    told = judged.unclear if unclear else [one for one in configs if one not in judged.identical]
    of = [test for one, test in zip(configs, tests, strict=True) if one in told]
    paired = [test.paired for test in (of if several else [configs[0].test]) if test is not None and test.paired]
    size = _smallest_found(paired)
    if size is None:
        return None
    between = "" if unclear else " between two configs" if several else " between the config and its baseline"
    found = _found_text(paired[0].n, metric, size, several, between)
    lead, more = "", ""
    if unclear:
        lead = f"Too few examples to tell {name_together(judged.unclear)} apart"
        more = _of_whole_task(judged.use.row, metric, size)
    elif several and betterness(metric) and all(test is None or test.tells_apart for test in tests):
        lead = "Enough examples to tell the best from all others"
    text = f"{lead}: {found}{more}" if lead else f"{found[0].upper()}{found[1:]}"
    once = f" Left out, since they ask what others do: {say_examples(repeats)}." if repeats else ""
    return VerdictLine("How sure", f"{text}.{once} {_say_noise(configs)}", [], lead)


def say_sure_of_costs(configs: Sequence[Config], metric: str) -> VerdictLine | None:
    """Say the smallest difference from the baseline that this many examples show in 4 of 5 cases."""
    paired = [one.test.paired for one in configs if one.test.paired is not None]
    size = _smallest_found(paired)
    if size is None:
        return None
    found = _found_text(paired[0].n, metric, size, len(paired) > 1, " between a config and its baseline")
    return VerdictLine("How sure", f"{found}. {_say_noise(configs)}", [])


def count_repeats(rows: Sequence[Row], against: Mapping[Path, Comparison]) -> int:
    """Return how many examples comparisons left out, since they ask the same as others."""
    return max((against[row.run.path].repeats for row in rows if row.run.path in against), default=0)


def _smallest_found(paired: Sequence[AccuracyDifference | MeanDifference]) -> float | None:
    """Return the difference that is found in 4 of 5 cases, by the median width of these intervals; None of none."""
    halves = sorted((one.high - one.low) / 2 for one in paired if math.isfinite(one.high - one.low))
    half = halves[len(halves) // 2] if halves else 0.0
    return half * (Z + _FOUND) / Z if half > 0 else None


def _found_text(n: int, metric: str, size: float, several: bool, between: str) -> str:
    """Say which difference so many examples show; smaller ones may show, too, so it is no interval of any change."""
    typically = "typically " if several else ""
    of = f"{format_size(metric, size)} in {metric_noun(metric)}{between}"
    show = f"{say_examples(n)} {typically}show{'s' * (n == 1)}"
    return f"{show} a difference of {of} in 4 of 5 cases, a smaller one less often"


def _of_whole_task(row: Row, metric: str, size: float) -> str:
    """Say the difference that the whole task would show, given that of the examples measured."""
    whole, n = task_size(row), row.n
    if whole is None or not n:
        return ""
    if whole <= n:
        return "; the task has no more examples"
    return f"; all {whole:,} of the task, one of about {format_size(metric, size * math.sqrt(n / whole))}"


def _say_noise(configs: Sequence[Config]) -> str:
    if any(one.test.above_floor is not None for one in configs):
        return "Numerical noise was measured, and a difference within it is called none."
    return "Numerical noise was not measured (noise=4 does)."
