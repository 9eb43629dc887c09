"""Name knobs and configs in words, for sentences and figures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mxsweep.results.groups import value_order
from mxsweep.results.rows import Row, label

TITLES = {"kv_quant": "KV", "ptq": "weight method", "custom_cuda": "custom CUDA"}
FORMAT_PARTS = ("block_size", "scale", "scale_bits")
SPEAKING = ("format", "ptq")  # knobs whose value says by itself what it is of
CACHED = ("kv_quant", "kv_quant.key", "kv_quant.value")  # their none is no cache that is absent


def knob_title(name: str) -> str:
    """Return what a person calls a knob: "block size" for block_size."""
    return TITLES.get(name) or name.replace("_", " ").replace(".", " ")


def value_text(name: str, values: Iterable[str]) -> str:
    """Return a knob with its value or, of values that come to the same, all of them: "scale bits 6 or 8"."""
    *others, last = (value_word(name, value) for value in values)
    text = f"{', '.join(others)} or {last}" if others else last
    return text if name in SPEAKING else f"{knob_title(name)} {text}"


def value_word(name: str, value: str) -> str:
    """Return what a person calls a knob's value: that keys and values stay as they are is "unquantized"."""
    return "unquantized" if name in CACHED and value == "none" else value


def goes_with_format(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the knobs that are parts of a format and have one value in each format, where rows have several."""
    found = []
    for name in names:
        values = {(label(row.knobs.get("format")), label(row.knobs.get(name, ""))) for row in rows}
        is_part = name in FORMAT_PARTS or name.startswith("format.")
        if is_part and len(values) == len({fmt for fmt, _ in values}) > 1:
            found.append(name)
    return found


def name_rows(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Name rows that came out the same by the values of these knobs; by their format where no knob tells them apart.

    Rows that are not all combinations of their values are named by the first, and counted.
    """
    by_knob = {
        name: {label(row.knobs[name]): row.knobs[name] for row in rows if name in row.knobs}
        for name in names
        if any(name in row.knobs for row in rows)
    }
    if not by_knob:
        return value_text("format", [label(rows[0].knobs.get("format"))])
    different = _different(rows, list(by_knob))
    if len(different) > 1 and math.prod(map(len, by_knob.values())) != len(different):
        return f"{name_rows(rows[:1], names)} (and {len(different) - 1} equal to it)"
    return ", ".join(value_text(name, _ordered(name, values)) for name, values in by_knob.items())


def are_all_combinations(rows: Sequence[Row], names: Sequence[str]) -> bool:
    """Return whether rows are all combinations of the values that they have of these knobs, so that one name fits."""
    counts = [len({label(row.knobs.get(name, "")) for row in rows}) for name in names]
    return math.prod(counts) == len(_different(rows, names))


def _different(rows: Sequence[Row], names: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(label(row.knobs.get(name, "")) for name in names) for row in rows}


def _ordered(name: str, values: Mapping[str, Any]) -> list[str]:
    return sorted(values, key=lambda text: value_order(name, values[text]))
