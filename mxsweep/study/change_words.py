"""Write a metric's change and its interval, the same in sentences, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mxsweep.results.metrics import is_perplexity, long_title
from mxsweep.study.finding import with_minus_signs

if TYPE_CHECKING:  # comparing takes scipy, and who only writes numbers does without it
    from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference

    Paired = AccuracyDifference | MeanDifference

MOST_PERCENT = 20  # a change of +1,900 % or −95 %
LEAST_FACTOR = 1.5  # a size of ± 50 %
MORE = "more than 10^300"


def percent(log_ratio: float, *beside: float) -> str:
    """Return a difference of logarithms as a change in %; of a factor of MOST_PERCENT or more that: "×45", "÷45".

    So is one that stands `beside` such a factor: "×14" in "[×14, ×122]".
    """
    most = max((abs(each) for each in (log_ratio, *beside) if not math.isnan(each)), default=0.0)
    if most < math.log(MOST_PERCENT) or math.isnan(log_ratio):
        return f"{math.expm1(log_ratio):+.1%}"
    sign = "×" if log_ratio > 0 else "÷"
    factor = _factor(abs(log_ratio))
    return f"> {sign}10^300" if factor == MORE else sign + factor


def _factor(log_ratio: float) -> str:
    try:
        factor = math.exp(log_ratio)
    except OverflowError:
        return MORE
    if math.isinf(factor):
        return MORE
    # Beside a large factor a change of some percent is one, too: "×1.004", and not "×1".
    return f"{factor:,.0f}" if 100 <= factor < 1e6 else f"{factor:.3f}" if factor < 1.1 else f"{factor:.3g}"


def format_change(metric: str, difference: float, *beside: float) -> str:
    """Return a metric's change, of a perplexity in %, or as a factor where those that stand `beside` are."""
    return percent(difference, *beside) if is_perplexity(metric) else f"{difference:+.4f}"


def format_interval(metric: str, measured: Paired, *beside: float) -> str:
    """Return the 95 % interval of a change, of changes that stand `beside` others; empty where there is none."""
    if math.isnan(measured.low):
        return ""
    return _interval(metric, measured.low, measured.high, measured.difference, *beside)


def ends_of(measured: Iterable[Paired]) -> list[float]:
    """Return the ends of all intervals: what each row of a table stands `beside`, so that it has one kind of number."""
    return [end for one in measured for end in (one.low, one.high)]


def format_span(metric: str, low: float, high: float) -> str:
    """Return two ends of changes, as a sentence has them: "[−5.0%, +9.8%]"."""
    return with_minus_signs(_interval(metric, low, high))


def _interval(metric: str, low: float, high: float, *beside: float) -> str:
    ends = [format_change(metric, end, low, high, *beside) for end in (low, high)]
    return f"[{ends[0]}, {ends[1]}]"


def format_measured(metric: str, measured: Paired) -> str:
    """Return a change and its interval, as a sentence has them."""
    return format_with_span(metric, measured.difference, measured.low, measured.high)


def format_with_span(metric: str, difference: float, low: float, high: float) -> str:
    """Return a change and the ends of its interval, as a sentence has them; the change alone where there are none."""
    change = format_change(metric, difference, low, high)
    return with_minus_signs(change if math.isnan(low) else f"{change} {_interval(metric, low, high, difference)}")


def format_size(metric: str, size: float) -> str:
    """Return a size that a change may have either way, of a perplexity that of its ratio: "2.1%", "a factor of 2.01".

    What grows by half or more is said as a factor: a perplexity that may double may halve, and none falls by 100 %.
    """
    if not is_perplexity(metric):
        return f"{size:.2g}"
    return f"{math.expm1(size):.1%}" if size < math.log(LEAST_FACTOR) else f"a factor of {_factor(size)}"


def format_bits(bits: float) -> str:
    """Return bits to three decimals: 4.125 is what eight bits of scale in blocks of 64 take, and not 4.12."""
    return f"{bits:.3f}".rstrip("0").rstrip(".")


def format_factor(log_ratio: float) -> str:
    """Return a ratio, given as its logarithm, between a tenth and ten to three decimals: "×2.758", "×0.963"."""
    if abs(log_ratio) < math.log(10):
        return f"×{math.exp(log_ratio):.3f}"
    factor = _factor(log_ratio)
    return "> ×10^300" if factor == MORE else f"×{factor}"


def metric_noun(metric: str) -> str:
    """Return what a sentence calls a metric."""
    return {"margin": "mean margin"}.get(metric, long_title(metric).replace("_", " "))
