"""The columns of every table of runs, each declared once.

A declaration says how a column is called in files (`name`) and in tables (`title`), what its value is for a row, how
the value is written, how it differs from the baseline's, and in which outputs it stands. The table in the terminal,
results.md, results.tex, results.csv, results.parquet, the page's cards and its full table follow from it.

    knob_column     a column of a knob; which knobs a table shows is decided by what varies among its runs
    metric_column   a column of a metric of lm-eval's, with standard error, difference, interval and p value
    MEASURED        the columns of what else a run measured, of what became of it, and where it lies
    tensor_columns  the columns of errors of quantizing by kind of tensor, which stand in files only

To add a column, add a line to MEASURED.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mxsweep.report.wording import (
    ABSENT,
    change_in_percent,
    difference,
    format_value,
    interval,
    metric_cell,
    p_of,
    paired,
    significance,
    size,
    speed,
)
from mxsweep.results.metrics import betterness, known_metric, short_title
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_errors import KINDS, tensor_figures
from mxsweep.study.compare import Comparison

Value = bool | int | float | str | None


class Output(StrEnum):
    """Name the places where columns stand."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    LATEX = "latex"
    PAGE = "page"  # the page's full table
    DATA = "data"  # results.csv, results.parquet and load_table
    HEADLINE = "headline"  # the table at the top of results.md
    CARD = "card"  # the same on the page
    STEPS = "steps"  # what the remedies win back


TABLES = frozenset({Output.TERMINAL, Output.MARKDOWN, Output.LATEX, Output.PAGE, Output.DATA})
EVERYWHERE = frozenset(Output)
DATA_ONLY = frozenset({Output.DATA})
SHARES = ("saturated", "flushed")  # of the elements of a kind of tensor


@dataclass(frozen=True)
class Entry:
    """Hold a row and what it is compared with.

    Attributes:
        row: the run.
        baseline: None for a baseline, and where there is none.
        comparison: the two, example by example; None where that is not known or not wanted.
    """

    row: Row
    baseline: Row | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Change:
    """Hold a value's difference from the baseline's.

    Attributes:
        text: for a table.
        number: what the text is sorted by.
        brief: for a paper, where it differs from `text`.
        card: for a card, where it differs from `text`.
        interval: 95 %, in words; "" where it is not known.
        low: lower end, which intervals are sorted by.
        p: adjusted by Holm's method; None where nothing was tested.
        verdict: whether the difference is significant and above the noise, in words.
    """

    text: str
    number: float | None = None
    brief: str = ""
    card: str = ""
    interval: str = ""
    low: float | None = None
    p: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Field:
    """Describe a column of the files for programs: values of one type, None where there is none."""

    name: str
    kind: type | None  # None: that of the values
    value: Callable[[Entry], Value]


@dataclass(frozen=True)
class Column:
    """Declare a column.

    Attributes:
        name: in files for programs.
        value: of a row; None where there is none.
        write: the value for reading, standard error included.
        kind: type of the values in files for programs; None where it depends on the values, as with knobs.
        title: in tables for reading; the name where none is given.
        card_title: on a card; the title where none is given.
        outputs: where the column stands.
        change: the difference from the baseline, where there is one.
        change_title: the title of the difference, in which {} is the column's.
        change_in: where the difference stands.
        more: further columns of files for programs, which belong to this one: standard error, interval, p.
        keeps_empty: stands in tables for reading even where no row has a value.
        where_varied: outputs in which the column stands only where rows differ in it.
        is_text: left-aligned.
    """

    name: str
    value: Callable[[Row], Any]
    write: Callable[[Row], str]
    kind: type | None = float
    title: str = ""
    card_title: str = ""
    outputs: frozenset[Output] = TABLES
    change: Callable[[Entry], Change] | None = None
    change_title: str = "Δ {}"
    change_in: frozenset[Output] = EVERYWHERE
    more: tuple[Field, ...] = ()
    keeps_empty: bool = False
    where_varied: frozenset[Output] = frozenset()
    is_text: bool = False

    @property
    def heading(self) -> str:
        """The title in tables for reading."""
        return self.title or self.name

    @property
    def fields(self) -> list[Field]:
        """The columns of files for programs."""
        return [Field(self.name, self.kind, lambda entry: self.value(entry.row)), *self.more]

    def shows(self, rows: Sequence[Row], output: Output) -> bool:
        """Return whether the column stands in a table for reading of these rows."""
        if output not in self.outputs:
            return False
        values = {self.value(row) for row in rows}
        if output in self.where_varied:
            return len(values) > 1
        return self.keeps_empty or any(value is not None for value in values)


def knob_column(name: str) -> Column:
    """Declare the column of a knob; a knob without effect on a run has no value there."""
    return Column(
        name,
        lambda row: _plain(row.knobs.get(name)),
        lambda row: label(row.knobs[name]) if name in row.knobs else ABSENT,
        kind=None,
        outputs=EVERYWHERE - {Output.CARD, Output.STEPS},
        is_text=True,
    )


def metric_column(metric: str) -> Column:
    """Declare the column of a metric under the metric's own name."""
    return _metric_column(metric, lambda row: metric)


def metric_data_columns(rows: Sequence[Row]) -> list[Column]:
    """Declare the columns that hold every metric of the rows, each once.

    `acc` and `ppl` are always there; `ppl` is the perplexity or, of a task without one, the word perplexity. A metric
    whose name is another column's is called `metric.` and its name.
    """
    perplexity = _metric_column("ppl", lambda row: row.ppl_name, like="perplexity")
    declared = [metric_column("acc"), perplexity]
    names = {name for row in rows for name in row.metrics if not name.endswith("_stderr") and name != row.ppl_name}
    return declared + [
        _metric_column(name, lambda row, name=name: None if name == row.ppl_name else name)  # type: ignore[misc]
        for name in sorted(names - {"acc"})
    ]


def _metric_column(name: str, metric_of: Callable[[Row], str | None], like: str | None = None) -> Column:
    """Declare a column of the metric that `metric_of` names for a row; it is of the kind of the metric `like`."""
    like = like or name
    judged = betterness(like) != 0
    judged_only = frozenset() if judged else frozenset({Output.HEADLINE, Output.STEPS})

    def value(row: Row) -> float | None:
        return row.metrics.get(metric_of(row) or "")

    def error(entry: Entry) -> float | None:
        return entry.row.metrics.get(f"{metric_of(entry.row)}_stderr")

    def change(entry: Entry) -> Change:
        metric, comparison = metric_of(entry.row) or "", entry.comparison
        text = difference(entry.row, entry.baseline, metric)
        measured = paired(comparison, metric)
        return Change(
            text,
            _difference(value(entry.row), value(entry.baseline) if entry.baseline else None),
            brief=(change_in_percent(text) if known_metric(metric).is_perplexity else text).replace("-", "−", 1),
            interval=interval(comparison, metric),
            low=measured.low if measured else None,
            p=p_of(comparison, metric),
            verdict=significance(comparison, metric),
        )

    return Column(
        name,
        value,
        lambda row: metric_cell(row, metric_of(row) or ""),
        title=short_title(name),
        outputs=EVERYWHERE - judged_only,
        change=change if judged else None,
        more=(Field(f"{name}_stderr", float, error), *_difference_fields(name, like, metric_of, value)),
        keeps_empty=True,
    )


def _difference_fields(
    name: str, like: str, metric_of: Callable[[Row], str | None], value: Callable[[Row], float | None]
) -> list[Field]:
    """Return the fields of a metric's difference from the baseline; none of a metric that nothing is concluded from."""
    known = known_metric(like)
    if not known.rank:
        return []

    def from_baseline(of: Callable[[float | None, float | None], float | None]) -> Callable[[Entry], Value]:
        return lambda entry: of(value(entry.row), value(entry.baseline)) if entry.baseline else None

    fields = [Field(f"{name}_difference", float, from_baseline(_difference))]
    if not (known.counts or known.is_perplexity):
        return fields

    def from_pairs(of: Callable[[Any], float], form: Callable[[float], float] = float) -> Callable[[Entry], Value]:
        def read(entry: Entry) -> Value:
            measured = paired(entry.comparison, metric_of(entry.row) or "")
            return None if measured is None else form(of(measured))

        return read

    ends = f"{name}_difference"
    form: Callable[[float], float] = float
    if known.is_perplexity:
        ends, form = f"{name}_ratio", _exp
        fields.append(Field(ends, float, from_baseline(_ratio)))
    return [
        *fields,
        Field(f"{ends}_low", float, from_pairs(lambda measured: measured.low, form)),
        Field(f"{ends}_high", float, from_pairs(lambda measured: measured.high, form)),
        Field(f"{name}_p", float, lambda entry: p_of(entry.comparison, metric_of(entry.row) or "")),
        Field(f"{name}_p_unadjusted", float, from_pairs(lambda measured: measured.p)),
        Field(f"{name}_above_noise", bool, lambda entry: _above_noise(entry.comparison, metric_of(entry.row) or "")),
    ]


def measured(
    name: str, value: Callable[[Row], Any], write: Callable[[Any], str] = format_value, **declared: Any
) -> Column:
    """Declare a column whose value is written by `write`, an absent one as such; `declared` as in :class:`Column`."""

    def text(row: Row) -> str:
        found = value(row)
        return ABSENT if found is None else write(found)

    return Column(name, value, text, **declared)


def ratio_to_baseline(value: Callable[[Row], float | None], card: str) -> Callable[[Entry], Change]:
    """Return what says a value as a multiple of the baseline's; `card` is the format of the ratio on a card."""

    def change(entry: Entry) -> Change:
        ratio = _ratio(value(entry.row), value(entry.baseline)) if entry.baseline else None
        return Change(ABSENT) if ratio is None else Change(f"{ratio:.2f}", ratio, card=card.format(ratio))

    return change


def _ratio_field(name: str, value: Callable[[Row], float | None]) -> Field:
    return Field(
        f"{name}_ratio",
        float,
        lambda entry: _ratio(value(entry.row), value(entry.baseline)) if entry.baseline else None,
    )


def _recorded(*path: str) -> Callable[[Row], float | None]:
    return lambda row: row.number(*path)


def _note(*path: str) -> Callable[[Row], str | None]:
    return lambda row: row.text(*path)


def _of_distance(name: str) -> Callable[[Entry], Value]:
    return lambda entry: entry.row.number("diagnostics", "distance", entry.row.task or "", name)


def _bytes(row: Row) -> float | None:
    return row.parameter_bytes


def _rate(row: Row) -> float | None:
    return row.examples_per_sec


SIZED = frozenset(EVERYWHERE - {Output.TERMINAL})
MEASURED: list[Column] = [
    measured(
        "kl_nats",
        lambda row: row.kl_nats,
        "{:.4g}".format,
        title="KL, nats",
        outputs=frozenset({Output.PAGE, Output.DATA}),
        more=(Field("kl_nats_stderr", float, _of_distance("kl_nats_stderr")),),
    ),
    measured(
        "top1_agreement",
        lambda row: row.top1_agreement,
        "{:.2%}".format,
        title="same top token",
        outputs=frozenset({Output.PAGE, Output.DATA}),
        more=(Field("top1_agreement_stderr", float, _of_distance("top1_agreement_stderr")),),
    ),
    measured(
        "bits_per_weight",
        lambda row: row.bits_per_weight,
        title="bits/weight",
        card_title="bits per weight",
        outputs=SIZED,
    ),
    measured("bits_per_parameter", _recorded("diagnostics", "bits_per_parameter"), outputs=DATA_ONLY),
    measured(
        "parameter_bytes",
        _bytes,
        size,
        kind=int,
        title="parameters, MB",
        outputs=frozenset({Output.PAGE, Output.DATA, Output.HEADLINE, Output.CARD}),
        change=ratio_to_baseline(_bytes, "{:.0%} of the baseline"),
        change_in=frozenset({Output.CARD}),
        more=(_ratio_field("parameter_bytes", _bytes),),
    ),
    measured(
        "n",
        lambda row: row.n,
        "{:g}".format,
        kind=int,
        keeps_empty=True,
        where_varied=frozenset({Output.TERMINAL, Output.MARKDOWN}),
        outputs=TABLES - {Output.LATEX},
    ),
    measured("remedies_s", lambda row: row.remedies_s, speed, outputs=frozenset({Output.STEPS, Output.DATA})),
    measured("load_s", _recorded("timing", "load_s"), outputs=DATA_ONLY),
    measured("quantize_s", _recorded("timing", "quantize_s"), outputs=DATA_ONLY),
    measured("eval_time_s", lambda row: row.eval_time_s, speed, keeps_empty=True, outputs=TABLES - {Output.LATEX}),
    measured("total_s", _recorded("timing", "total_s"), outputs=DATA_ONLY),
    measured(
        "examples/sec",
        _rate,
        speed,
        card_title="simulated, examples/sec",
        keeps_empty=True,
        outputs=EVERYWHERE - {Output.LATEX, Output.STEPS},
        change=ratio_to_baseline(_rate, "{:.2f} × the baseline"),
        change_title="speed / baseline",
        change_in=frozenset({Output.HEADLINE, Output.CARD}),
        more=(_ratio_field("examples/sec", _rate),),
    ),
    measured("peak_host_bytes", _recorded("memory", "peak_host_bytes"), kind=int, outputs=DATA_ONLY),
    measured("peak_gpu_bytes", _recorded("memory", "peak_gpu_bytes"), kind=int, outputs=DATA_ONLY),
    measured("batch_tokens_used", _recorded("memory", "batch_tokens"), kind=int, outputs=DATA_ONLY),
    measured("is_baseline", lambda row: row.is_baseline, label, kind=bool, outputs=DATA_ONLY),
    measured("status", lambda row: row.run.status, str, kind=str, outputs=DATA_ONLY),
    measured("reason", lambda row: row.run.reason, str, kind=str, outputs=DATA_ONLY),
    measured("started_at", _note("started_at"), str, kind=str, outputs=DATA_ONLY),
    measured("device_name", _note("environment", "device_name"), str, kind=str, outputs=DATA_ONLY),
    measured("config_hash", _note("config_hash"), str, kind=str, outputs=DATA_ONLY),
    measured(
        "run_id",
        lambda row: row.run.run_id,
        str,
        kind=str,
        is_text=True,
        outputs=EVERYWHERE - {Output.LATEX, Output.CARD},
    ),
    measured("folder", lambda row: str(row.run.path), str, kind=str, outputs=DATA_ONLY),
]
# What a row is compared with, in files for programs.
COMPARED = (
    Field("baseline", str, lambda entry: entry.baseline.run.run_id if entry.baseline else None),
    Field("n_compared", int, lambda entry: entry.comparison.n if entry.comparison else None),
    Field("not_compared", str, lambda entry: _why_not(entry.comparison)),
)


def tensor_columns(rows: Iterable[Row]) -> list[Column]:
    """Declare the columns of the errors of quantizing, of each kind of tensor that any row measured."""
    kinds = {kind for row in rows for kind in tensor_figures(row)}

    def column(kind: str, name: str, value: Callable[[dict[str, Any]], Any]) -> Column:
        def read(row: Row) -> float | None:
            figures = tensor_figures(row).get(kind)
            found = None if figures is None else value(figures)
            return None if found is None else float(found)

        return measured(f"{kind}_{name}", read, outputs=DATA_ONLY)

    return [
        column(kind, name, value)
        for kind in KINDS
        if kind in kinds
        for name, value in (
            ("sqnr_db", lambda figures: figures.get("sqnr_db")),
            ("rmse", lambda figures: figures.get("rmse")),
            ("saturated", lambda figures: figures["saturated"] / figures["elements"]),
            ("flushed", lambda figures: figures["flushed"] / figures["elements"]),
            ("clamped", lambda figures: figures["clamped"] / figures["blocks"]),
        )
    ]


def _plain(value: Any) -> Value:
    """Return a knob's value as files hold it: a mapping or a list as a text."""
    return value if value is None or isinstance(value, bool | int | float | str) else label(value)


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _exp(log_ratio: float) -> float:
    try:
        return math.exp(log_ratio)
    except OverflowError:
        return math.inf


def _above_noise(comparison: Comparison | None, metric: str) -> bool | None:
    if paired(comparison, metric) is None or comparison is None:
        return None
    is_perplexity = known_metric(metric).is_perplexity
    return comparison.perplexity_above_floor if is_perplexity else comparison.accuracy_above_floor


def _why_not(comparison: Comparison | None) -> str | None:
    return (comparison.why_not or comparison.note) if comparison else None
