"""Define what a column of a table of runs is; column_table.py declares the columns, each once.

A declaration says how a column is called in files (`name`) and in tables (`title`), what its value is for a row, how
the value is written, how it differs from the baseline's, and in which outputs it stands. The table in the terminal,
results.md, results.tex, results.csv, results.parquet and the page's full table follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mxsweep.report.wording import ABSENT, format_value
from mxsweep.results.rows import Row
from mxsweep.study.comparison import Comparison

Value = bool | int | float | str | None


class Output(StrEnum):
    """Name the places where columns stand."""

    TERMINAL = "terminal"
    MARKDOWN = "results.md"
    LATEX = "results.tex"
    PAGE = "page"  # its full table
    DATA = "data"  # results.csv, results.parquet and mxsweep.load
    STEPS = "steps"  # what the remedies win back


TABLES = frozenset({Output.TERMINAL, Output.MARKDOWN, Output.LATEX, Output.PAGE, Output.DATA})
EVERYWHERE = frozenset(Output)
DATA_ONLY = frozenset({Output.DATA})


@dataclass(frozen=True)
class ComparedRow:
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
        interval: 95 %, in words; "" where it is not known.
        low: lower end, which intervals are sorted by.
        p: adjusted by Holm's method; None where nothing was tested.
        verdict: whether the difference is significant and above the noise, in words.
    """

    text: str
    number: float | None = None
    brief: str = ""
    interval: str = ""
    low: float | None = None
    p: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Field:
    """Describe a column of the files for programs: values of one type, None where there is none.

    Attributes:
        name: in the files.
        help: what it holds, with the unit.
        kind: type of the values; None where it depends on the values.
        value: of a row and what it is compared with.
    """

    name: str
    help: str
    kind: type | None
    value: Callable[[ComparedRow], Value]


@dataclass(frozen=True)
class Column:
    """Declare a column.

    Attributes:
        name: in files for programs.
        help: what it holds, with the unit.
        value: of a row; None where there is none.
        write: the value for reading, standard error included.
        kind: type of the values in files for programs; None where it depends on the values, as with knobs.
        title: in tables for reading; the name where none is given.
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
    help: str
    value: Callable[[Row], Any]
    write: Callable[[Row], str]
    kind: type | None = float
    title: str = ""
    outputs: frozenset[Output] = TABLES
    change: Callable[[ComparedRow], Change] | None = None
    change_title: str = "Δ {}"
    change_in: frozenset[Output] = EVERYWHERE
    more: tuple[Field, ...] = ()
    keeps_empty: bool = False
    where_varied: frozenset[Output] = frozenset()
    is_text: bool = False

    @property
    def heading(self) -> str:
        """Return the title in tables for reading."""
        return self.title or self.name

    @property
    def fields(self) -> list[Field]:
        """Return the columns of files for programs."""
        return [Field(self.name, self.help, self.kind, lambda entry: self.value(entry.row)), *self.more]

    def shows(self, rows: Sequence[Row], output: Output) -> bool:
        """Return whether the column stands in a table for reading of these rows."""
        if output not in self.outputs:
            return False
        values = {self.value(row) for row in rows}
        if output in self.where_varied:
            return len(values) > 1
        return self.keeps_empty or any(value is not None for value in values)


def measured_column(
    name: str, help: str, value: Callable[[Row], Any], write: Callable[[Any], str] = format_value, **declared: Any
) -> Column:
    """Declare a column whose value is written by `write`, an absent one as such; `declared` as in :class:`Column`."""

    def text(row: Row) -> str:
        number = value(row)
        return ABSENT if number is None else write(number)

    return Column(name, help, value, text, **declared)


def recorded_column(name: str, help: str, *path: str, kind: type = float, **declared: Any) -> Column:
    """Declare a column of files for programs that holds what a record has at a path."""

    def value(row: Row) -> Value:
        return row.text(*path) if kind is str else row.number(*path)

    return measured_column(name, help, value, str, kind=kind, outputs=DATA_ONLY, **declared)


def against_baseline(
    value: Callable[[Row], float | None], combine: Callable[[float | None, float | None], float | None]
) -> Callable[[ComparedRow], float | None]:
    """Return what combines a row's value with its baseline's; None for a baseline, and where there is none."""
    return lambda entry: None if entry.baseline is None else combine(value(entry.row), value(entry.baseline))


def ratio_to_baseline(value: Callable[[Row], float | None]) -> Callable[[ComparedRow], Change]:
    """Return what says a value as a multiple of the baseline's."""
    read = against_baseline(value, ratio)

    def change(entry: ComparedRow) -> Change:
        number = read(entry)
        return Change(ABSENT) if number is None else Change(f"{number:.2f}", number)

    return change


def ratio_field(name: str, value: Callable[[Row], float | None]) -> Field:
    """Declare the column of files for programs that holds a value as a multiple of the baseline's."""
    return Field(f"{name}_ratio", f"{name} divided by the baseline's", float, against_baseline(value, ratio))


def difference_of(value: float | None, base: float | None) -> float | None:
    """Return a value minus the baseline's; None where either is not known."""
    return None if value is None or base is None else value - base


def ratio(value: float | None, base: float | None) -> float | None:
    """Return a value divided by the baseline's; None where either is not known, or the baseline's is zero."""
    return None if value is None or not base else value / base
