"""Tables as the page shows them: texts, and the numbers behind them that they are sorted by."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mxsweep.report.wording import ABSENT, interval
from mxsweep.results.metrics import is_perplexity
from mxsweep.study.compare import Comparison


@dataclass(frozen=True)
class Cell:
    """A table's cell: what it reads, and what it is sorted by where that is a number."""

    text: str
    sort: float | None = None

    @property
    def key(self) -> str | None:
        """The number to sort by, as JavaScript reads it; of NaN none, which comes last."""
        return None if self.sort is None or math.isnan(self.sort) else repr(float(self.sort)).replace("inf", "Infinity")


@dataclass(frozen=True)
class Table:
    """Columns and rows; `numeric` are the columns of numbers, by index."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]

    @cached_property
    def numeric(self) -> set[int]:
        """The columns that hold numbers, which stand right-aligned."""
        return {i for i in range(len(self.columns)) if any(row[i].key is not None for row in self.rows)}


def number_cell(value: Any, form: str) -> Cell:
    """A number in this format; nothing of what is none."""
    return Cell(format(value, form), value) if isinstance(value, int | float) else Cell(ABSENT)


def interval_cell(comparison: Comparison | None, name: str) -> Cell:
    """The 95 % interval of a metric's difference, sorted by its lower end."""
    text = interval(comparison, name)
    if comparison is None or not text:
        return Cell(ABSENT)
    measured = comparison.perplexity if is_perplexity(name) else comparison.accuracy
    return Cell(text, measured.low if measured else None)


def share_cell(count: float | None, total: float | None) -> Cell:
    """A count as a share of the total; nothing where either is not known."""
    return Cell(f"{count / total:.3%}", count / total) if count is not None and total else Cell(ABSENT)
