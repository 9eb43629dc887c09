"""Write a table of texts in Markdown and in LaTeX; a terminal has plain_table.py, and the page its own HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tabulate import LATEX_ESCAPE_RULES, SEPARATING_LINE, tabulate

from mxsweep.report.wording import ABSENT, NOISE_MARK, SIGNIFICANT_MARK
from mxsweep.terminal.escapes import for_markdown, printable

NOTHING = "None."  # what a Markdown table without rows says
# What tabulate leaves as it is: symbols that LaTeX wants as commands, and two that the OT1 encoding prints as others.
SYMBOLS = {
    "±": r"$\pm$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "–": "--",
    "|": r"\textbar{}",
    '"': r"{\char34}",  # \textquotedbl wants the T1 encoding
    SIGNIFICANT_MARK: "$^*$",
    NOISE_MARK: r"$^\circ$",
}


@dataclass(frozen=True)
class Cell:
    """Hold what a cell reads, and what it is sorted by where that is a number."""

    text: str
    sort: float | None = None

    @property
    def key(self) -> str | None:
        """Return the number to sort by, as JavaScript reads it; of NaN none, which comes last."""
        return None if self.sort is None or math.isnan(self.sort) else repr(float(self.sort)).replace("inf", "Infinity")


@dataclass(frozen=True)
class Table:
    """Hold titles and rows.

    Attributes:
        caption: a title above the table; "" for none.
        columns: a title for each column.
        rows: a cell for each column.
        text_columns: the columns of texts, by index, which stand left-aligned where numbers stand right-aligned.
        rule_before: the rows, by index, above which a rule is drawn.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    text_columns: frozenset[int] = frozenset()
    rule_before: frozenset[int] = frozenset()

    @cached_property
    def numeric(self) -> set[int]:
        """Return the columns that hold numbers, by index: the page right-aligns them, and sorts by the numbers."""
        return {i for i in range(len(self.columns)) if any(row[i].key is not None for row in self.rows)}

    @property
    def texts(self) -> list[list[str]]:
        """Return what the cells read."""
        return [[cell.text for cell in row] for row in self.rows]

    def without(self, title: str) -> Table:
        """Return the table without the column of this title."""
        kept = [index for index, name in enumerate(self.columns) if name != title]
        rows = [[row[index] for index in kept] for row in self.rows]
        text_columns = frozenset(kept.index(index) for index in self.text_columns if index in kept)
        return Table(self.caption, [self.columns[index] for index in kept], rows, text_columns, self.rule_before)


def text_cells(texts: Iterable[str]) -> list[Cell]:
    """Return cells that are sorted as texts."""
    return [Cell(text) for text in texts]


def number_cell(value: Any, form: str) -> Cell:
    """Return a number in this format; an absent cell for what is no number."""
    return Cell(format(value, form), value) if isinstance(value, int | float) else Cell(ABSENT)


def share_cell(count: float | None, total: float | None) -> Cell:
    """Return a count as a share of the total; an absent cell where either is not known."""
    return Cell(f"{count / total:.3%}", count / total) if count is not None and total else Cell(ABSENT)


def markdown(table: Table) -> str:
    """Return the table in GitHub's Markdown; a sentence where it has no rows."""
    if not table.rows:
        return NOTHING
    texts = [[for_markdown(text) for text in row] for row in table.texts]
    headers = [for_markdown(name) for name in table.columns]
    return tabulate(texts, headers=headers, tablefmt="github", disable_numparse=True)


def latex(table: Table) -> str:
    """Return the table as a LaTeX tabular in booktabs style."""
    rows: list[Sequence[str] | str] = []
    for index, texts in enumerate(table.texts):
        rows += [SEPARATING_LINE] if index in table.rule_before else []
        rows.append([" ".join(printable(text).split()) for text in texts])
    align = ["left" if index in table.text_columns else "right" for index in range(len(table.columns))]
    text = tabulate(rows, table.columns, tablefmt="latex_booktabs", disable_numparse=True, colalign=align)
    return "\n".join(_with_symbols(" ".join(line.split())) for line in text.splitlines())


def escape_latex(text: str) -> str:
    """Return a text that LaTeX prints as it stands."""
    return _with_symbols("".join(LATEX_ESCAPE_RULES.get(c, c) for c in " ".join(printable(text).split())))


def _with_symbols(text: str) -> str:
    return "".join(SYMBOLS.get(c, c) for c in text)
