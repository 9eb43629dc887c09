"""Lay out the table of a group's runs for each output: its columns, and how differences stand beside values.

The columns are those of column_table.py and metric_columns.py. An output's layout says which of a column's value,
difference, interval, p value and verdict get a column of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mxsweep.report.column_table import MEASURED, knob_column
from mxsweep.report.columns import Change, Column, ComparedRow, Output
from mxsweep.report.metric_columns import metric_column
from mxsweep.report.table import Cell, Table
from mxsweep.report.wording import ABSENT, NOISE_MARK, SIGNIFICANT_MARK, p_value
from mxsweep.results.groups import Group, Results
from mxsweep.results.rows import Row
from mxsweep.results.studies import STUDY
from mxsweep.study.comparison import Comparison
from mxsweep.study.finding import with_minus_signs
from mxsweep.study.trained_configs import has_trainings


@dataclass(frozen=True)
class Facet:
    """Describe one of the columns that a declared column becomes.

    Attributes:
        title: in which {} is the column's title; "" for the title of the column's difference.
        cell: made of a row's difference.
        shown: whether any row has anything to show.
    """

    title: str
    cell: Callable[[Change], Cell]
    shown: Callable[[Sequence[Change]], bool] = lambda changes: True


def _tested(changes: Sequence[Change]) -> bool:
    return any(change.p is not None for change in changes)


def _judged(changes: Sequence[Change]) -> bool:
    return any(change.verdict for change in changes)


def _mark(verdict: str, noise: str, significant: str, other: str = "") -> str:
    return noise if "noise" in verdict else significant if verdict.startswith("significant") else other


def _interval(change: Change) -> Cell:
    return Cell(with_minus_signs(change.interval), change.low) if change.interval else Cell(ABSENT)


def _marked_p(change: Change) -> Cell:
    mark = f" {_mark(change.verdict, '○ noise', '●', '○')}" if change.verdict else ""
    return Cell(p_value(change.p) + mark, change.p)


def _marked_change(change: Change) -> Cell:
    return Cell((change.brief or change.text) + _mark(change.verdict, NOISE_MARK, SIGNIFICANT_MARK), change.number)


_CHANGE = Facet("", lambda change: Cell(with_minus_signs(change.text), change.number))
_WITH_INTERVAL = Facet("", lambda change: Cell(" ".join(filter(None, [change.text, change.interval])), change.number))
_IN_WORDS = Facet("Δ {} is", lambda change: Cell(change.verdict or ABSENT), _judged)
LAYOUTS: Mapping[Output, Sequence[Facet]] = {
    Output.TERMINAL: (Facet("", lambda change: Cell(change.text + _mark(change.verdict, "", SIGNIFICANT_MARK))),),
    Output.MARKDOWN: (_WITH_INTERVAL, Facet("p {}", lambda change: Cell(p_value(change.p), change.p), _tested)),
    Output.LATEX: (Facet("", _marked_change),),
    Output.PAGE: (_CHANGE, Facet("Δ {}, 95 %", _interval, _tested), Facet("p, {}", _marked_p, _tested)),
    Output.STEPS: (_WITH_INTERVAL, _IN_WORDS),
}


def run_table(
    results: Results, group: Group, output: Output, against: Mapping[Path, Comparison] | None = None
) -> Table:
    """Return the table of every run of a group; `against` are the runs' comparisons with their baselines, by folder."""
    return lay_out(run_columns(results, group, output), entries_of(group, against or {}), output)


def run_columns(results: Results, group: Group, output: Output) -> list[Column]:
    """Return the columns of a table of the group's runs: knobs that tell runs apart, metrics, further measurements."""
    names = [STUDY, *results.shown] if results.studies and STUDY not in results.shown else results.shown
    knobs = [knob_column(name) for name in names]
    metrics = [metric_column(name) for name in group.metric_names()]
    shown = [column for column in (*knobs, *metrics, *MEASURED) if column.shows(group.rows, output)]
    if has_trainings(group):  # which may have been evaluated on nothing else
        shown = [column for column in shown if any(column.value(row) is not None for row in group.rows)]
    return shown


def entries_of(group: Group, against: Mapping[Path, Comparison]) -> list[ComparedRow]:
    """Return a group's rows, each with what it is compared with."""
    return [
        ComparedRow(row, None if row.is_baseline else group.baseline_for(row), against.get(row.run.path))
        for row in group.rows
    ]


def lay_out(columns: Sequence[Column], entries: Sequence[ComparedRow], output: Output) -> Table:
    """Return the table of these rows: each column's values, and its differences as the output lays them out."""
    titles: list[str] = []
    cells: list[list[Cell]] = []
    text_columns: set[int] = set()
    for column in columns:
        text_columns |= {len(titles)} if column.is_text else set()
        titles.append(column.heading)
        cells.append([_value_cell(column, entry.row) for entry in entries])
        if column.change is None or output not in column.change_in or not any(entry.baseline for entry in entries):
            continue
        changes = [column.change(entry) for entry in entries]
        for facet in LAYOUTS[output]:
            if facet.shown(changes):
                titles.append((facet.title or column.change_title).format(column.heading))
                cells.append([facet.cell(change) for change in changes])
    rows = [list(row) for row in zip(*cells, strict=True)]
    ends = enumerate(pairwise(entry.row.is_baseline for entry in entries), 1)
    rules = frozenset(index for index, (above, below) in ends if above and not below)
    return Table("", titles, rows, frozenset(text_columns), rules)


def _value_cell(column: Column, row: Row) -> Cell:
    value = column.value(row)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(column.write(row), float(value) if is_number else None)
