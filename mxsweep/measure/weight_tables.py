"""Write errors of weights as text: one config in full, or several side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cmp_to_key
from typing import Any

from tabulate import tabulate

from mxsweep.measure.weight_errors import Inspected
from mxsweep.statistics.decibels import compare_db


def one_text(inspected: Inspected) -> str:
    """Return a table with a row for each weight, and one for all weights."""
    rows = [_row(tensor.module, tensor.row()) for tensor in inspected.tensors]
    formats = {str(tensor.fmt) for tensor in inspected.tensors}
    if len(formats) > 1:
        rows = [row | {"format": str(tensor.fmt)} for row, tensor in zip(rows, inspected.tensors, strict=True)]
    table = _table([*rows, _row("all weights", inspected.total)])
    return f"{inspected.label}: {', '.join(sorted(formats))}, {inspected.bits_per_weight:.2f} bits a weight\n\n{table}"


def side_by_side_text(inspected: Sequence[Inspected]) -> str:
    """Return tables of each weight's SQNR in every config, and of the configs' totals, and which config is best."""
    sqnr = [{tensor.module: tensor.statistics.sqnr_db for tensor in one.tensors} for one in inspected]
    modules = list(dict.fromkeys(module for of_one in sqnr for module in of_one))
    rows = []
    for module in modules:
        values = [of_one.get(module) for of_one in sqnr]
        row = {"weight": module} | {one.label: _db(value) for one, value in zip(inspected, values, strict=True)}
        rows.append(row | _better(inspected, values))
    totals = [one.total["sqnr_db"] for one in inspected]
    row = {"weight": "all weights"} | {one.label: _db(value) for one, value in zip(inspected, totals, strict=True)}
    rows.append(row | _better(inspected, totals))
    details = [
        {"config": one.label, "bits/weight": f"{one.bits_per_weight:.2f}"}
        | {name: value for name, value in _row("", one.total).items() if name != "weight"}
        for one in inspected
    ]
    return f"SQNR in dB\n\n{_table(rows)}\n\nOver all weights\n\n{_table(details)}\n\n{verdict(inspected)}"


def verdict(inspected: Sequence[Inspected]) -> str:
    """Say which of two or more configs keeps the weights best, by how much, and in how many weights."""
    totals = [one.total["sqnr_db"] for one in inspected]
    first, next_best = _two_best(totals)
    best, second = inspected[first], inspected[next_best]
    if compare_db(totals[first], totals[next_best]) == 0:
        return f"{best.label} and {second.label} keep the weights equally well."
    others = [
        {tensor.module: tensor.statistics.sqnr_db for tensor in one.tensors} for one in inspected if one is not best
    ]
    wins = sum(
        all(compare_db(tensor.statistics.sqnr_db, of_one.get(tensor.module)) > 0 for of_one in others)
        for tensor in best.tensors
    )
    bits = best.bits_per_weight - second.bits_per_weight
    cost = "the same bits" if bits == 0 else f"{abs(bits):.2f} {'more' if bits > 0 else 'fewer'} bits a weight"
    than = second.label if len(inspected) == 2 else f"{second.label}, the next best,"
    by = _distance(totals[first], totals[next_best])
    return (
        f"{best.label} keeps the weights better than {than}{f' by {by} dB' if by else ''} over all of them, at {cost}; "
        f"it is the best in {wins:,} of {len(best.tensors):,} weights."
    )


def _better(inspected: Sequence[Inspected], values: Sequence[float | None]) -> dict[str, str]:
    """Return the best of a row and its distance from the next; nothing where both are equal."""
    first, second = _two_best(values)
    if compare_db(values[first], values[second]) == 0:
        return {"better": "-", "by": "-"}
    return {"better": inspected[first].label, "by": _distance(values[first], values[second]) or "-"}


def _two_best(values: Sequence[float | None]) -> list[int]:
    """Return where the best value is, and the next best; of equal ones the first."""
    key = cmp_to_key(compare_db)
    return sorted(range(len(values)), key=lambda index: key(values[index]), reverse=True)[:2]


def _distance(value: float | None, other: float | None) -> str:
    """Return how far apart two ratios are, in dB; "" where one is infinite, or there is none."""
    if value is None or other is None or not math.isfinite(value - other):
        return ""
    return f"{value - other:.2f}"


def _row(name: str, numbers: dict[str, Any]) -> dict[str, str]:
    low, high, limit = (numbers[key] for key in ("exponent_min", "exponent_max", "exponent_limit"))
    unlike = numbers["unlike_exact"]
    return {
        "weight": name,
        "SQNR dB": _db(numbers["sqnr_db"]),
        "RMSE": f"{numbers['rmse']:.3g}",
        "saturated": f"{numbers['saturated'] / numbers['elements']:.3%}",
        "flushed": f"{numbers['flushed'] / numbers['elements']:.3%}",
        "clamped": f"{numbers['clamped']:,} of {numbers['blocks']:,}",
        "exponents": "-" if low is None else f"{low} to {high}" + ("" if limit is None else f" (±{limit})"),
        "unlike exact": "-" if unlike is None else f"{unlike:,}",
    }


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(rows: Sequence[dict[str, str]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(key, "") for key in keys] for row in rows]
    align = ["left" if key in ("weight", "config", "better", "format") else "right" for key in keys]
    return tabulate(cells, headers=keys, disable_numparse=True, colalign=align)
