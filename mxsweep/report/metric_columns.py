"""Declare the columns of a task's metrics: value, standard error, difference, interval and p value.

Which metrics there are is known from the runs. What is concluded from a metric stands in mxsweep/results/metrics.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mxsweep.report.columns import (
    EVERYWHERE,
    Change,
    Column,
    ComparedRow,
    Field,
    Output,
    Value,
    against_baseline,
    difference_of,
    ratio,
)
from mxsweep.report.wording import (
    above_noise,
    change_in_percent,
    difference,
    interval,
    metric_cell,
    p_of,
    paired,
    significance,
)
from mxsweep.results.metrics import betterness, known_metric, short_title
from mxsweep.results.rows import Row

MetricOf = Callable[[Row], str | None]  # which metric of a row a column holds; None for none


def metric_column(metric: str) -> Column:
    """Declare the column of a metric under the metric's own name."""
    return _column(metric, lambda row: metric)


def metric_data_columns(rows: Sequence[Row]) -> list[Column]:
    """Declare the columns that hold every metric of the rows, each once.

    `acc` and `ppl` are always there; `ppl` is the perplexity or, of a task without one, the word perplexity.
    """
    perplexity = _column("ppl", lambda row: row.ppl_name, like="perplexity")
    names = {name for row in rows for name in row.metrics if not name.endswith("_stderr") and name != row.ppl_name}
    return [metric_column("acc"), perplexity, *(_further_column(name) for name in sorted(names - {"acc"}))]


def _further_column(name: str) -> Column:
    """Declare the column of a metric for rows where the column `ppl` does not hold it."""
    return _column(name, lambda row: None if name == row.ppl_name else name)


def _column(name: str, metric_of: MetricOf, like: str | None = None) -> Column:
    """Declare a column of the metric that `metric_of` names for a row; it is of the kind of the metric `like`."""
    like = like or name
    is_judged = betterness(like) != 0

    def value(row: Row) -> float | None:
        return row.metrics.get(metric_of(row) or "")

    def error(entry: ComparedRow) -> float | None:
        return entry.row.metrics.get(f"{metric_of(entry.row)}_stderr")

    number = against_baseline(value, difference_of)

    def change(entry: ComparedRow) -> Change:
        metric, comparison = metric_of(entry.row) or "", entry.comparison
        text = difference(entry.row, entry.baseline, metric)
        by_example = paired(comparison, metric)
        return Change(
            text,
            number(entry),
            brief=(change_in_percent(text) if known_metric(metric).is_perplexity else text).replace("-", "−", 1),
            interval=interval(comparison, metric),
            low=by_example.low if by_example else None,
            p=p_of(comparison, metric),
            verdict=significance(comparison, metric),
        )

    error_field = Field(f"{name}_stderr", "one standard error of the metric of the run by itself", float, error)
    return Column(
        name,
        known_metric(like).help,
        value,
        lambda row: metric_cell(row, metric_of(row) or ""),
        title=short_title(name),
        outputs=EVERYWHERE if is_judged else EVERYWHERE - {Output.STEPS},
        change=change if is_judged else None,
        more=(error_field, *_difference_fields(name, like, metric_of, value)),
        keeps_empty=True,
    )


def _difference_fields(name: str, like: str, metric_of: MetricOf, value: Callable[[Row], float | None]) -> list[Field]:
    """Return the fields of a metric's difference from the baseline; none of a metric that nothing is concluded from."""
    known = known_metric(like)
    if not known.rank:
        return []
    from_baseline = against_baseline(value, difference_of)
    fields = [Field(f"{name}_difference", "the run's metric minus the baseline's", float, from_baseline)]
    if not (known.counts or known.is_perplexity or known.is_margin or known.is_loss):
        return fields
    of_what = f"{name}_difference"
    form: Callable[[float], float] = float
    if known.is_perplexity:  # of which the logarithms are compared
        of_what, form = f"{name}_ratio", _exp
        text = "the run's perplexity divided by the baseline's"
        fields.append(Field(of_what, text, float, against_baseline(value, ratio)))
    compared = "log-perplexity" if known.is_perplexity else "the margins" if known.is_margin else "the losses"
    t_test = f"a paired t test of {compared}"
    test = "McNemar's exact test" if known.counts else t_test
    return [
        *fields,
        Field(
            f"{of_what}_low", "lower end of its 95 % interval", float, _by_example(metric_of, lambda one: form(one.low))
        ),
        Field(
            f"{of_what}_high",
            "upper end of its 95 % interval",
            float,
            _by_example(metric_of, lambda one: form(one.high)),
        ),
        Field(
            f"{name}_p",
            f"p value of {test}, adjusted by Holm's method over the runs of a table",
            float,
            lambda entry: p_of(entry.comparison, metric_of(entry.row) or ""),
        ),
        Field(f"{name}_p_unadjusted", "the same p value by itself", float, _by_example(metric_of, lambda one: one.p)),
        Field(
            f"{name}_above_noise",
            "whether the difference exceeds what numerical noise makes by itself; empty without noise=n",
            bool,
            lambda entry: above_noise(entry.comparison, metric_of(entry.row) or ""),
        ),
    ]


def _by_example(metric_of: MetricOf, part: Callable[[Any], float]) -> Callable[[ComparedRow], Value]:
    """Return what reads a part of a metric's comparison example by example; None where there is none."""

    def read(entry: ComparedRow) -> Value:
        compared = paired(entry.comparison, metric_of(entry.row) or "")
        return None if compared is None else part(compared)

    return read


def _exp(log_ratio: float) -> float:
    try:
        return math.exp(log_ratio)
    except OverflowError:
        return math.inf
