"""Write errors of weights as text: one config in full, or several side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from mxsweep.measure.weight_errors import Inspected


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
    ordered = sorted(inspected, key=lambda one: _rank(one.total["sqnr_db"]), reverse=True)
    best, second = ordered[:2]
    gap = best.total["sqnr_db"] - second.total["sqnr_db"]
    if not gap > 0:
        return f"{best.label} and {second.label} keep the weights equally well."
    others = [
        {tensor.module: tensor.statistics.sqnr_db for tensor in one.tensors} for one in inspected if one is not best
    ]
    wins = sum(
        all(_rank(tensor.statistics.sqnr_db) > _rank(of_one.get(tensor.module)) for of_one in others)
        for tensor in best.tensors
    )
    bits = best.bits_per_weight - second.bits_per_weight
    cost = "the same bits" if bits == 0 else f"{abs(bits):.2f} {'more' if bits > 0 else 'fewer'} bits a weight"
    than = second.label if len(inspected) == 2 else f"{second.label}, the next best,"
    return (
        f"{best.label} keeps the weights better than {than} by {gap:.2f} dB over all of them, at {cost}; it is the "
        f"best in {wins:,} of {len(best.tensors):,} weights."
    )


def _better(inspected: Sequence[Inspected], values: Sequence[float | None]) -> dict[str, str]:
    """Return the best of a row and its distance from the next; nothing where both are equal."""
    ordered = sorted(range(len(inspected)), key=lambda index: _rank(values[index]), reverse=True)
    first, second = values[ordered[0]], values[ordered[1]]
    gap = _rank(first) - _rank(second)
    if not gap > 0:
        return {"better": "-", "by": "-"}
    return {"better": inspected[ordered[0]].label, "by": f"{gap:.2f}" if math.isfinite(gap) else "-"}


def _rank(value: float | None) -> float:
    """Return what configs are ordered by: NaN, which a block without a scale brings, is the worst."""
    return -math.inf if value is None or math.isnan(value) else value


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
