"""Name knobs and configs in words, for sentences and figures."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mxsweep.config.kv_options import is_kv_option, kv_remedies
from mxsweep.results.groups import value_order
from mxsweep.results.remedies import no_remedies, remedy_words
from mxsweep.results.rows import Row, label

KV = "kv_quant"
TITLES = {
    KV: "KV",
    "ptq": "weight method",
    "custom_cuda": "custom CUDA",
    "rotation.matmuls": "rotated products",
    "kv_quant.key_axis": "axis of keys",
    "kv_quant.rope": "keys against RoPE",
    "kv_quant.first": "first tokens kept",
    "kv_quant.recent": "last tokens kept",
    "kv_quant.scales": "KV scales by",
    "kv_quant.smooth": "smoothing of keys",
}
FORMAT_PARTS = ("block_size", "scale", "scale_bits", "scale_rounding", "rounding")
ALL_LINEAR = "q+k+v+o+gate+up+down"  # products, as rotation.matmuls has them
ALWAYS_SAID = ("format", KV, "ptq")
MOST_SAID = 4  # knobs in a name, before usual values go unsaid
SPEAKING = ("format", "ptq")  # knobs whose value says by itself what it is of
NOTHING_DONE = {  # what is said of a remedy that is off, where most have it on
    "kv_quant.first": "no first tokens kept",
    "kv_quant.recent": "no last tokens kept",
    "kv_quant.rotation": "keys not rotated",
    "kv_quant.smooth": "keys not smoothed",
    "ptq.budget": "no budget of bits",
    "rotation.residual": "residual stream not rotated",
}
NOTHING_USUAL: Mapping[str, Any] = {}
CACHED = (KV, "kv_quant.key", "kv_quant.value")  # their none is no cache that is absent
_OF_EACH = re.compile(r"(?P<first>[wk]):(?P<one>[^,:]+),(?P<second>[av]):(?P<other>[^,:]+)")  # "w:int8,a:none"
_TENSORS = {"w": "weights", "a": "activations", "k": "keys", "v": "values"}


def knob_title(name: str) -> str:
    """Return what a person calls a knob: "block size" for block_size."""
    return TITLES.get(name) or name.replace("_", " ").replace(".", " ")


def value_text(name: str, values: Iterable[str]) -> str:
    """Return a knob with its value or, of values that come to the same, all of them: "scale bits 6 or 8"."""
    values = list(values)
    words = [value_word(name, value) for value in values]
    text = enumerate_names(words, "or")
    speaks = name in SPEAKING or any(map(_of_each(name), values))
    return f"{knob_title(name)} {text}" if not speaks or words == ["none"] else text


def enumerate_names(names: Sequence[str], last: str = "") -> str:
    """Join names one after another, a word before the `last` where one is given: "a, b or c".

    By semicolons where a name holds a comma, which would read as two: "a, seed 1; b; or c".
    """
    between = "; " if any("," in name for name in names) else ", "
    if not last or len(names) < 2:
        return between.join(names)
    return f"{between.join(names[:-1])}{between if between == '; ' else ' '}{last} {names[-1]}"


def value_word(name: str, value: str) -> str:
    """Return what a person calls a knob's value.

    Keys and values that stay as they are are "unquantized"; "w:int8,a:none" is "weights in int8"; the products of all
    linear layers are not listed.
    """
    if name in CACHED and value == "none":
        return "unquantized"
    if name == "rotation.matmuls":
        return value.replace(ALL_LINEAR, "all linear")
    found = _of_each(name)(value)
    if found is None:
        return value
    formats = {_TENSORS[found["first"]]: found["one"], _TENSORS[found["second"]]: found["other"]}
    return " and ".join(f"{tensors} in {fmt}" for tensors, fmt in formats.items() if fmt != "none")


def _of_each(name: str) -> Callable[[str], re.Match[str] | None]:
    """Return what reads a value of a knob that says a format of each of two kinds of tensor; None of any other."""
    return _OF_EACH.fullmatch if name in ("format", KV) else lambda value: None


def goes_with_format(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return the knobs that are parts of a format and have one value in each format, where rows have several."""
    found = []
    for name in names:
        values = {(label(row.knobs.get("format")), label(row.knobs.get(name, ""))) for row in rows}
        is_part = name in FORMAT_PARTS or name.startswith("format.")
        if is_part and len(values) == len({fmt for fmt, _ in values}) > 1:
            found.append(name)
    return found


def usual_values(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """Return of many knobs the value that more than half of the rows have which have any; nothing of few knobs."""
    if len(names) <= MOST_SAID:
        return {}
    usual: dict[str, Any] = {}
    for name in names:
        values = [row.knobs[name] for row in rows if name in row.knobs]
        counts = Counter(map(label, values))
        text, count = counts.most_common(1)[0] if values else ("", 0)
        if name not in ALWAYS_SAID and 2 * count > len(values):
            usual[name] = next(value for value in values if label(value) == text)
    return usual


def usual_text(usual: Mapping[str, Any], row: Row | None = None) -> str:
    """Return usual values in words, but for remedies that are off; where a row is given, those that it has."""
    said = {name: {label(value): value} for name, value in usual.items()}
    has = {name: row is None or label(row.knobs.get(name)) in values for name, values in said.items()}
    off = no_remedies()
    there = {name: values for name, values in said.items() if has[name] and not _has_only(name, values, off)}
    return ", ".join(_text(name, values, off) for name, values in there.items())


def name_rows(rows: Sequence[Row], names: Sequence[str], usual: Mapping[str, Any] = NOTHING_USUAL) -> str:
    """Name rows that came out the same by the values of these knobs; by their format where no knob tells them apart.

    `usual` values go unsaid where anything else is to be said, and so do remedies that are off, but for those that are
    usually on. Rows that are not all combinations of their values are named by the first, and counted.
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
        return f"{name_rows(rows[:1], names, usual)} (and {len(different) - 1} equal to it)"
    by_knob = _with_kv_whole(rows, by_knob)
    alone, off = _alone(rows, by_knob), no_remedies()
    unsaid = {**off, **usual}
    said = {name: values for name, values in by_knob.items() if not _has_only(name, values, unsaid)} or by_knob
    left = {name: values for name, values in said.items() if not alone or name not in ("format", KV)}
    texts = [_text(name, values, off) for name, values in left.items()]
    return ", ".join([alone, *texts] if alone else texts)


def _with_kv_whole(rows: Sequence[Row], by_knob: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what rows are named by, with all that is done to keys and values where their format is named.

    An option says all of it; to a format belong the remedies that the rows which quantize keys and values have in
    common, which tell no rows apart: by the element format alone the name would be that of another run.
    """
    cached = [row for row in rows if label(row.knobs.get(KV)) != "none"]
    if KV not in by_knob or not cached:
        return dict(by_knob)
    off = kv_remedies()
    if any(is_kv_option(row.knobs[KV]) for row in cached):
        return {name: values for name, values in by_knob.items() if name not in off}
    first = cached[0].knobs
    shared = {
        name: {label(first[name]): first[name]}
        for name, nothing in off.items()
        if name in first.keys() - by_knob.keys()
        and first[name] != nothing
        and all(row.knobs.get(name) == first[name] for row in cached)
    }
    return {**by_knob, **shared}


def _text(name: str, values: Mapping[str, Any], off: Mapping[str, Any]) -> str:
    only = next(iter(values.values())) if len(values) == 1 and name in off else None
    words = remedy_words(name, only) if only is not None and name not in ("ptq", "rotation") else ""
    words = NOTHING_DONE.get(name, "") if _has_only(name, values, off) else words
    return words or value_text(name, _ordered(name, values) if len(values) > 1 else values)


def _has_only(name: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Return whether a knob has its `known` value and no other; never of ptq, for rounding to nearest is said, too."""
    return name != "ptq" and name in known and list(values) == [label(known[name])]


def _alone(rows: Sequence[Row], by_knob: Mapping[str, Mapping[str, Any]]) -> str:
    """Return in words what is quantized alone, where that is less than linear layers: "values alone in fp4_e2m1"."""
    values = [list(by_knob.get(name, ())) for name in ("format", KV)]
    if [len(each) for each in values] != [1, 1] or any(row.knobs.get("modules") for row in rows):
        return ""
    (linear,), (cached,) = values
    if linear == "none" and cached != "none":
        words = value_word(KV, cached)
        if words == cached:
            return f"keys and values alone in {cached}"
        return f"{words} alone" if " and " in words else words.replace(" in ", " alone in ")
    words = value_word("format", linear)
    return words.replace(" in ", " alone in ") if cached == "none" and linear != words and " and " not in words else ""


def are_all_combinations(rows: Sequence[Row], names: Sequence[str]) -> bool:
    """Return whether rows are all combinations of the values that they have of these knobs, so that one name fits."""
    counts = [len({label(row.knobs.get(name, "")) for row in rows}) for name in names]
    return math.prod(counts) == len(_different(rows, names))


def _different(rows: Sequence[Row], names: Sequence[str]) -> set[tuple[str, ...]]:
    return {tuple(label(row.knobs.get(name, "")) for name in names) for row in rows}


def _ordered(name: str, values: Mapping[str, Any]) -> list[str]:
    return sorted(values, key=lambda text: value_order(name, values[text]))
