"""Decide which lines a figure against a knob has, and where their points stand.

Combinations of other knobs that came out the same are one line. More than MOST_LINES lines tell nobody anything: they
become one line for each value of the knob that explains most of what differs, averaged over the rest.
"""

import itertools
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.report.figures.quantity import FIRST, Estimate, Quantity
from mxsweep.results.groups import value_order
from mxsweep.results.knob_words import name_rows, value_text, value_word
from mxsweep.results.rows import Row, label

MOST_LINES = 12
APART = 0.24  # of the room between two places: how far the first and the last line stand apart, so that intervals show
APART_ALONE = 0.8  # where there is one place only, points stand side by side
ALL = "all runs"


@dataclass(frozen=True)
class Point:
    """Hold what is drawn at one place of a line: a run, runs that came out the same, or the average of several."""

    place: float
    estimate: Estimate
    rows: list[Row]
    segment: int  # points of one segment are joined


@dataclass(frozen=True)
class Line:
    """Hold a line: a combination of knobs, several that came out the same, or a value of one knob over all others.

    Where no combination of the others was run at all values of the knob, points differ in more than the knob: the line
    is not balanced, and no stroke joins them.
    """

    name: str
    points: list[Point]
    is_balanced: bool = True


@dataclass(frozen=True)
class Lines:
    """Hold the lines of a figure, and where the values of the knob stand.

    `explaining` is the knob of averaged lines, `combinations` how many they are averaged over.
    """

    lines: list[Line]
    places: Mapping[str, float]
    explaining: str | None = None
    combinations: int = 0
    is_averaged: bool = False
    is_balanced: bool = True  # whether all places of a line are averaged over the same combinations
    left_out: int = 0  # lines of one place, where others have several


def lines_against(knob: str, rows: Sequence[Row], others: Sequence[str], quantity: Quantity) -> Lines:
    """Return the lines of `quantity` against `knob`; `others` tell lines apart."""
    members: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        members.setdefault(tuple(label(row.knobs.get(name, "")) for name in others), []).append(row)
    same: dict[frozenset[tuple[str, Hashable]], list[Row]] = {}
    for some in members.values():
        outcomes = {(label(row.knobs[knob]), quantity.outcome(row)) for row in some}
        if any(outcome is not FIRST for _, outcome in outcomes):  # the first alone says nothing
            same.setdefault(frozenset(outcomes), []).extend(some)
    has_several = {key: len({place for place, _ in key}) > 1 for key in same}
    left_out = 0
    if any(has_several.values()):
        left_out = sum(not several for several in has_several.values())
        same = {key: some for key, some in same.items() if has_several[key]}
    drawn = [row for some in same.values() for row in some]
    places = places_of(knob, drawn)
    if len(same) > MOST_LINES:
        return _averaged(knob, drawn, others, places, quantity, left_out)
    lines = []
    # Of a single line: what it is of.
    telling = [name for name in others if len(same) == 1 or _tells_apart(name, list(same.values()))]
    for index, some in enumerate(same.values()):
        by_place: dict[str, list[Row]] = {}
        for row in some:
            by_place.setdefault(label(row.knobs[knob]), []).append(row)
        shift = _shift(index, len(same), places)
        points: list[Point] = []
        for place in sorted(by_place, key=lambda text: places[text]):
            alike: dict[Hashable, list[Row]] = {}
            for row in by_place[place]:
                alike.setdefault(quantity.outcome(row), []).append(row)
            for runs in alike.values():
                if (estimate := quantity.estimate(runs[:1])) is not None:
                    segment = _segment(knob, runs[0].knobs[knob], len(points))
                    points.append(Point(places[place] + shift, estimate, runs, segment))
        lines.append(Line(_name(some, telling, knob), points))
    return Lines(lines, places, left_out=left_out)


def _tells_apart(name: str, lines: Sequence[Sequence[Row]]) -> bool:
    """Return whether a knob differs between lines: one of which all lines hold the same values does not."""
    return len({frozenset(label(row.knobs.get(name, "")) for row in some) for some in lines}) > 1


def _name(rows: Sequence[Row], others: Sequence[str], knob: str) -> str:
    """Name a line by the other knobs; by its format, where none of them has an effect on it."""
    if any(name in row.knobs for row in rows for name in others) or knob != "format":
        return name_rows(rows, others)
    return ALL


def _averaged(
    knob: str,
    rows: Sequence[Row],
    others: Sequence[str],
    places: Mapping[str, float],
    quantity: Quantity,
    left_out: int,
) -> Lines:
    measured = [(row, estimate.value) for row in rows if (estimate := quantity.estimate([row])) is not None]

    def spread(name: str) -> float:
        """Sum the absolute deviations from the median that are left where `name` is known."""
        alike: dict[tuple[str, str], list[float]] = {}
        for row, value in measured:
            alike.setdefault((label(row.knobs[knob]), label(row.knobs.get(name, ""))), []).append(value)
        return sum(abs(v - statistics.median(some)) for some in alike.values() for v in some)

    few = [name for name in others if len({label(row.knobs.get(name, "")) for row in rows}) <= MOST_LINES]
    explaining = min(few, key=spread, default=None)
    rest = [name for name in others if name != explaining]
    alike: dict[str, dict[str, dict[tuple[str, ...], Row]]] = {}
    for row, _ in measured:
        value = label(row.knobs.get(explaining, "none")) if explaining else ""
        context = tuple(label(row.knobs.get(name, "")) for name in rest)
        alike.setdefault(value, {}).setdefault(label(row.knobs[knob]), {}).setdefault(context, row)
    lines: list[Line] = []
    balanced = True
    for index, (value, by_place) in enumerate(alike.items()):
        common = set.intersection(*map(set, by_place.values()))
        balanced = balanced and bool(common)
        points: list[Point] = []
        for place in sorted(by_place, key=lambda text: places[text]):
            some = [row for context, row in by_place[place].items() if context in common or not common]
            if (estimate := quantity.estimate(some)) is not None:
                segment = _segment(knob, some[0].knobs[knob], len(points)) if common else len(points)
                points.append(Point(places[place] + _shift(index, len(alike), places), estimate, some, segment))
        lines.append(Line(value_text(explaining, [value]) if explaining else ALL, points, bool(common)))
    combinations = len({tuple(label(row.knobs.get(name, "")) for name in others) for row in rows})
    return Lines(lines, places, explaining, combinations, True, balanced, left_out)


def places_of(knob: str, rows: Sequence[Row]) -> dict[str, float]:
    """Return each value's place on the x axis: block lengths at their log2, others right of them, else one by one."""
    values = list({label(row.knobs[knob]): row.knobs[knob] for row in rows}.values())
    lengths = sorted(value for value in values if knob == "block_size" and _is_length(value))
    places = {label(value): math.log2(value) for value in lengths}
    first = max(places.values(), default=0.0) + 1
    rest = sorted((value for value in values if label(value) not in places), key=lambda value: value_order(knob, value))
    return places | {label(value): first + index for index, value in enumerate(rest)}


def _is_length(block_size: Any) -> bool:
    """Return whether a block is a length: neither the whole axis (0) nor a tile ("16x16")."""
    return isinstance(block_size, int) and block_size > 0


def place_name(knob: str, text: str) -> str:
    """Return what a place on the x axis is called."""
    return "whole axis" if knob == "block_size" and text == "0" else value_word(knob, text)


def _shift(index: int, count: int, places: Mapping[str, float]) -> float:
    if count < 2:
        return 0.0
    if len(places) == 1:
        return APART_ALONE * ((index + 0.5) / count - 0.5)
    where = sorted(places.values())
    room = min(right - left for left, right in itertools.pairwise(where))
    # Two lines stand as close as the first two of many would.
    return room * APART * (index - (count - 1) / 2) / max(count - 1, 4)


def _segment(knob: str, value: Any, index: int) -> int:
    """Return which segment of a line a value is in: no line leads from a block length to a tile."""
    return 0 if knob != "block_size" or _is_length(value) else index + 1
