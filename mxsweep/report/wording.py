"""Write numbers and differences in words, the same in every table and on the page.

A cell shows as many digits as its standard error makes meaningful; the files for programs hold all of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mxsweep.results.metrics import betterness, decimals, is_loss
from mxsweep.results.rows import Row
from mxsweep.study.change_words import format_interval, percent
from mxsweep.study.compared_metric import metric_test

if TYPE_CHECKING:  # comparing takes scipy, and who only writes numbers does without it
    from mxsweep.statistics.paired_tests import AccuracyDifference, MeanDifference
    from mxsweep.study.comparison import Comparison

    Paired = AccuracyDifference | MeanDifference

ABSENT = "–"
SIGNIFICANT_MARK, NOISE_MARK = "∗", "∘"  # behind a difference in a paper
OVER_SEQUENCES = " over the held-out sequences of the run's seed"  # what runs that trained are paired over
MEGA = 1e6


def one_line(text: str | None, most: int = 2000) -> str:
    """Return a text as one line, cut where it is long."""
    line = " ".join((text or "").split())
    return line if len(line) <= most else line[: most - 3] + "..."


def format_value(value: float | None, stderr: float | None = None, digits: int | None = None) -> str:
    """Return a metric for reading: to two digits of its standard error or, where given, to `digits` decimals."""
    if value is None:
        return ABSENT
    error = stderr if stderr is not None and math.isfinite(stderr) and stderr > 0 else None
    if not math.isfinite(value):
        text = f"{value:g}"
    elif abs(value) >= 1e7:
        text = f"{value:.3e}"
    elif digits is not None or error:
        digits = digits if digits is not None else min(6, max(0, 1 - math.floor(math.log10(error or 1))))
        text = f"{value:.{digits}f}"
    else:
        text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
    if stderr is None:
        return text
    return f"{text} ± {stderr:.{digits}f}" if digits is not None else f"{text} ± {stderr:.2g}"


def metric_cell(row: Row, name: str) -> str:
    """Return a metric of a row, with its standard error, for reading."""
    return format_value(row.metrics.get(name), row.metrics.get(f"{name}_stderr"), decimals(name))


def difference(row: Row, baseline: Row | None, name: str) -> str:
    """Return the run's metric minus the baseline's, to the digits of the metric.

    A perplexity's size says little by itself, so that its difference is given in % as well.
    """
    value = row.metrics.get(name)
    base = baseline.metrics.get(name) if baseline and not row.is_baseline else None
    if value is None or base is None or not (math.isfinite(value) and math.isfinite(base)):
        return ABSENT
    if betterness(name) > 0 or is_loss(name):
        return f"{value - base:+.4f}"
    text = format_value(value, row.metrics.get(f"{name}_stderr")).split(" ")[0]
    form = "+.3e" if "e" in text else f"+.{len(text.partition('.')[2])}f"
    ratio = value / base if base else 0.0
    return f"{value - base:{form}}" + (f" ({percent(math.log(ratio))})" if ratio > 0 else "")


def change_in_percent(text: str) -> str:
    """Return the part in % of a perplexity's difference as `difference` writes it; the whole text where it has none."""
    return text.partition("(")[2].rstrip(")") or text


def paired(comparison: Comparison | None, name: str) -> Paired | None:
    """Return what comparing a metric example by example gave; None where it was not compared."""
    return metric_test(comparison, name).paired


def above_noise(comparison: Comparison | None, name: str) -> bool | None:
    """Return whether a metric's difference exceeds the numerical noise; None where it was not compared or measured."""
    return metric_test(comparison, name).above_floor if paired(comparison, name) is not None else None


def interval(comparison: Comparison | None, name: str) -> str:
    """Return the 95 % interval of a metric's difference: of a perplexity that of its ratio, in %; empty if unknown."""
    measured = paired(comparison, name)
    return "" if measured is None else format_interval(name, measured)


def p_value(p: float | None) -> str:
    """Return a p value for reading."""
    if p is None or math.isnan(p):
        return ABSENT
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def p_of(comparison: Comparison | None, name: str) -> float | None:
    """Return the p value of a metric's difference, adjusted by Holm's method; None where it was not compared."""
    return metric_test(comparison, name).p


def significance(comparison: Comparison | None, name: str) -> str:
    """Say whether a metric's difference is significant, and exceeds the numerical noise; empty if unknown."""
    known = metric_test(comparison, name)
    if known.p is None or math.isnan(known.p):
        return ""
    words = "significant" if known.significant else "not significant"
    noise = {None: "", True: "", False: ", within the numerical noise"}[known.above_floor]
    return words + noise


def size(count: float | None) -> str:
    """Return bytes as megabytes, for reading."""
    if count is None:
        return ABSENT
    return f"{count / MEGA:,.0f}" if count >= 100 * MEGA else f"{count / MEGA:.3g}"


def speed(value: float | None) -> str:
    """Return seconds, or examples a second, for reading."""
    return format_value(value, digits=1 if value is not None and value >= 10 else 2)
