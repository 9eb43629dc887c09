"""Name what each run of a collection does to keys and values, by one value of the knob kv_quant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mxsweep.config.knobs import by_place
from mxsweep.config.kv_options import GROUP, kv_option, kv_remedies
from mxsweep.results.rows import Row, label


def with_kv_options(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with an option for their kv_quant where it does all that is done to keys and values, as rescue4.

    By the option alone a run is named and compared then, in tables, axes and sentences alike. All rows keep their
    element formats, and are told apart by what is done beyond, where some run does part of that or what no option does:
    as where one of an option's parts is swept.
    """
    options = [_option(row) for row in rows]
    if any(option is None and _does_more(row) for row, option in zip(rows, options, strict=True)):
        return list(rows)
    return [
        row if option is None else replace(row, knobs=row.knobs | {GROUP: option})
        for row, option in zip(rows, options, strict=True)
    ]


def _option(row: Row) -> str | None:
    return None if label(row.knobs.get(GROUP)) == "none" else kv_option(by_place(row.knobs))


def _does_more(row: Row) -> bool:
    """Return whether a run does more to keys and values than choosing their formats."""
    return any(row.knobs.get(name, nothing) != nothing for name, nothing in kv_remedies().items())
