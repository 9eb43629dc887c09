"""Say where smaller blocks make a kind of tensor worse, what goes with it, and which other knob reverses it.

A smaller block has a scale nearer to its elements, so that one expects less error of it. It is not so where the scale's
rounding cuts the largest element of many blocks: of those there are more, the smaller the blocks are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.formats.recipe import TENSOR_KINDS
from mxsweep.results.groups import Group
from mxsweep.results.knob_words import value_text
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_bases import are_comparable
from mxsweep.results.tensor_errors import KIND_TITLES
from mxsweep.study.comparison import Comparison, compare_pairs
from mxsweep.study.finding import Finding, format_range, note_sampling, run_ids

KNOB = "block_size"
FOLLOWS = "arithmetic"  # a knob that goes with others: native has no other scale rounding than floor
LEAST_DB = 0.2  # of a change worth a sentence
SHARES = {"saturated": "were cut to the largest value that their scale allows", "flushed": "became zero"}
Config = tuple[str | None, ...]


@dataclass(frozen=True)
class Ends:
    """Hold the runs of one config with its smallest and its largest block."""

    config: Config  # the values of the other knobs
    small: Row
    large: Row

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the two block sizes."""
        return self.small.knobs[KNOB], self.large.knobs[KNOB]

    def change(self, kind: str) -> float:
        """Return the signal over error with small blocks minus that with large ones, dB; NaN if not known, or if the
        two are in two metrics.
        """
        if not are_comparable(self.small, self.large, kind):
            return math.nan
        small, large = (_number(row, kind, "sqnr_db") for row in (self.small, self.large))
        return small - large if math.isfinite(small) and math.isfinite(large) else math.nan


@dataclass(frozen=True)
class Reversal:
    """Hold configs in which small blocks are worse, and those, of another value of one knob, in which they are better.

    Attributes:
        knob: its name; "" of configs that no other one reverses.
        values: the knob's values, where small blocks are worse and where they are better, each with the arithmetic
            where that differs, too.
    """

    sizes: tuple[int, int]
    knob: str
    values: tuple[str, str]
    worse: tuple[Ends, ...]
    better: tuple[Ends, ...]


def describe_block_sizes(shown: Sequence[str], group: Group) -> Iterable[Finding]:
    """Say of each kind of tensor where smaller blocks have less signal over error; `shown` tell runs apart."""
    others = [name for name in shown if name != KNOB]
    ends = list(_ends(group.rows, others)) if KNOB in shown else []
    compared = {each.row.run.path: each for each in compare_pairs(group, [(one.small, one.large) for one in ends])}
    for kind in TENSOR_KINDS:
        for found in find_reversals(ends, others, kind):
            costs = [compared[one.small.run.path] for one in found.worse]
            runs = [row for one in (*found.worse, *found.better) for row in (one.small, one.large)]
            yield Finding("error", _text(found, kind, costs), run_ids(runs))


def find_reversals(ends: Sequence[Ends], names: Sequence[str], kind: str) -> list[Reversal]:
    """Find where small blocks make a kind of tensor worse: by the one other knob that reverses it, or by none.

    Args:
        names: the knobs that `Ends.config` has the values of.
    """
    worse = [one for one in ends if one.change(kind) <= -LEAST_DB]
    better = [one for one in ends if one.change(kind) >= LEAST_DB]
    pairs: dict[tuple[Any, ...], list[tuple[Ends, Ends]]] = {}
    for one in worse:
        for other in better:
            differing = [i for i, (a, b) in enumerate(zip(one.config, other.config, strict=True)) if a != b]
            chosen = [i for i in differing if names[i] != FOLLOWS] or differing
            if len(chosen) == 1 and one.sizes == other.sizes:
                (i,) = chosen
                both_differ = len(differing) > 1
                values = _value(one.config, i, names, both_differ), _value(other.config, i, names, both_differ)
                pairs.setdefault((one.sizes, names[i], values), []).append((one, other))
    found = [
        Reversal(
            sizes,
            knob,
            values,
            tuple({id(a): a for a, _ in both}.values()),
            tuple({id(b): b for _, b in both}.values()),
        )
        for (sizes, knob, values), both in pairs.items()
    ]
    reversed_ones = {id(one) for each in found for one in each.worse}
    alone: dict[tuple[int, int], list[Ends]] = {}
    for one in worse:
        if id(one) not in reversed_ones:
            alone.setdefault(one.sizes, []).append(one)
    return found + [Reversal(sizes, "", ("", ""), tuple(each), ()) for sizes, each in alone.items()]


def _value(config: Config, index: int, names: Sequence[str], with_arithmetic: bool) -> str:
    value = config[index] or "none"
    return f"{value} {FOLLOWS}={config[list(names).index(FOLLOWS)] or 'none'}" if with_arithmetic else value


def _ends(rows: Sequence[Row], others: Sequence[str]) -> Iterable[Ends]:
    families: dict[Config, dict[int, Row]] = {}
    for row in rows:
        size = row.knobs.get(KNOB)
        if not row.is_baseline and isinstance(size, int) and size > 0:  # 0 is the whole axis, whatever its length
            config = tuple(label(row.knobs[name]) if name in row.knobs else None for name in others)
            families.setdefault(config, {}).setdefault(size, row)
    for config, by_size in families.items():
        if len(by_size) > 1:
            yield Ends(config, by_size[min(by_size)], by_size[max(by_size)])


def _text(found: Reversal, kind: str, costs: Sequence[Comparison]) -> str:
    small, large = found.sizes
    where = f" with {_knob_text(found, 0)}" if found.knob else ""
    text = (
        f"Smaller blocks make {KIND_TITLES[kind]}{note_sampling(kind)} worse{where}: in blocks of {small} against "
        f"{large}, {_against(found.worse, kind, rising=True)}"
    )
    if factors := [math.exp(cost.perplexity.difference) for cost in costs if cost.perplexity]:
        distinct = {cost.test: cost for cost in costs if cost.perplexity}.values()
        significant = sum(bool(cost.perplexity_significant) for cost in distinct)
        text += (
            f"; perplexity is {format_range(factors, '.3f')} times that in blocks of {large}, with all that is "
            f"quantized in such blocks ({significant} of {len(distinct)} significant)"
        )
    if not found.knob:
        return f"{text}."
    reverses = _knob_text(found, 1)
    said = f"{reverses[0].upper()}{reverses[1:]} reverses it: {_against(found.better, kind, rising=False)}."
    return f"{text}. {said}"


def _knob_text(found: Reversal, index: int) -> str:
    """Return the knob that reverses a direction in words, with one of its values and the arithmetic that goes along."""
    value, _, arithmetic = found.values[index].partition(f" {FOLLOWS}=")
    return value_text(found.knob, [value]) + (f", {value_text(FOLLOWS, [arithmetic])}" if arithmetic else "")


def _against(ends: Sequence[Ends], kind: str, rising: bool) -> str:
    """Set signal over error with small blocks against that with large ones, and shares that go with it.

    Args:
        rising: whether shares are named that are larger in small blocks only, which is what makes these worse.
    """
    small, large = ([_number(row, kind, "sqnr_db") for row in rows] for rows in _both(ends))
    parts = [
        f"signal over error is {format_range(small, '.1f')} against {format_range(large, '.1f')} dB",
    ]
    for name, words in SHARES.items():
        shares = [[_share(row, kind, name) for row in rows] for rows in _both(ends)]
        rises = all(a > b for a, b in zip(*shares, strict=True))
        if rises or (not rising and name == "saturated"):
            texts = [format_range(each, ".2%") for each in shares]
            parts.append(f"{texts[0]} against {texts[1]} of the elements {words}")
    return ", and ".join(parts)


def _both(ends: Sequence[Ends]) -> tuple[list[Row], list[Row]]:
    return [one.small for one in ends], [one.large for one in ends]


def _number(row: Row, kind: str, name: str) -> float:
    value = row.tensors.get(kind, {}).get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _share(row: Row, kind: str, name: str) -> float:
    return _number(row, kind, name) / (_number(row, kind, "elements") or math.nan)
