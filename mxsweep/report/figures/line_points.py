"""Decide which lines a figure against a knob has, and where their points stand.

Lines that would lie on top of each other stand a little apart along x. More than MOST_LINES lines tell nobody anything:
they become one line for each value of the knob that explains most of what differs, the median over the rest, with the
range from the lowest to the highest run.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.report.figures.figure import finite
from mxsweep.report.figures.quantity import Quantity
from mxsweep.results.groups import value_order
from mxsweep.results.rows import Row, label

MOST_LINES = 24
APART = 0.36  # of the room between two places: how far the first and the last line stand apart
APART_ALONE = 0.8  # where there is one place only, points stand side by side


@dataclass(frozen=True)
class Point:
    """Hold what is drawn at one place of a line: a run, or the median of several."""

    place: float
    value: float
    low: float | None
    high: float | None
    rows: list[Row]
    segment: int  # points of one segment are joined


@dataclass(frozen=True)
class Line:
    """Hold a line: a combination of knobs, or a value of one knob over many combinations."""

    name: str
    points: list[Point]


def places_of(knob: str, rows: Sequence[Row]) -> dict[Any, float]:
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
    return "whole axis" if knob == "block_size" and text == "0" else text


def combinations(rows: Sequence[Row], others: Sequence[str], knob: str) -> dict[str, list[Row]]:
    """Return the rows of each line, by the line's name: the combination of the other knobs."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        text = ", ".join(f"{name}={label(row.knobs[name])}" for name in others if name in row.knobs)
        if not text:  # knobs that are the same in all rows, or have no effect on this one
            text = f"format={label(row.knobs.get('format'))}" if knob != "format" else "all runs"
        members.setdefault(text, []).append(row)
    return members


def lines_of_runs(
    members: Mapping[str, list[Row]], knob: str, places: Mapping[Any, float], quantity: Quantity
) -> list[Line]:
    """Return a line for each combination of knobs, a point for each of its runs."""
    count = len(members)
    lines = []
    for index, (name, some) in enumerate(members.items()):
        shift = _shift(index, count, places)
        points: list[Point] = []
        for row in sorted(some, key=lambda row: places[label(row.knobs[knob])]):
            value, error = finite(quantity.value(row)), finite(quantity.error(row))
            if value is None:
                continue
            low, high = (value - error, value + error) if error else (None, None)
            place = places[label(row.knobs[knob])] + shift
            points.append(Point(place, value, low, high, [row], _segment(knob, row.knobs[knob], len(points))))
        lines.append(Line(name, points))
    return lines


def _shift(index: int, count: int, places: Mapping[Any, float]) -> float:
    if count < 2:
        return 0.0
    if len(places) == 1:
        return APART_ALONE * ((index + 0.5) / count - 0.5)
    where = sorted(places.values())
    room = min(right - left for left, right in itertools.pairwise(where))
    # Two lines stand as close as the first two of a dozen would.
    return room * APART * (index - (count - 1) / 2) / max(count - 1, 6)


def _segment(knob: str, value: Any, index: int) -> int:
    """Return which segment of a line a value is in: no line leads from a block length to a tile."""
    return 0 if knob != "block_size" or _is_length(value) else index + 1


def median_lines(
    rows: Sequence[Row], others: Sequence[str], knob: str, places: Mapping[Any, float], quantity: Quantity
) -> tuple[list[Line], str]:
    """Return a line of medians for each value of the knob that explains most of what differs, and that knob."""
    measured = [row for row in rows if finite(quantity.value(row)) is not None]

    def at(row: Row, name: str) -> tuple[str, str]:
        return label(row.knobs[knob]), label(row.knobs.get(name, ""))

    def spread(name: str) -> float:
        """Sum the absolute deviations from the median that are left where `name` is known."""
        alike: dict[tuple[str, str], list[float]] = {}
        for row in measured:
            alike.setdefault(at(row, name), []).append(quantity.value(row) or 0.0)
        return sum(abs(v - statistics.median(some)) for some in alike.values() for v in some)

    few = [name for name in others if len({label(row.knobs.get(name, "")) for row in rows}) <= MOST_LINES]
    explaining = min(few or others[:1], key=spread)
    alike: dict[str, dict[str, list[Row]]] = {}
    for row in measured:
        place, value = at(row, explaining)
        alike.setdefault(value, {}).setdefault(place, []).append(row)
    lines = []
    for index, (value, by_place) in enumerate(list(alike.items())[:MOST_LINES]):
        points = []
        for place in sorted(by_place, key=lambda text: places[text]):
            values = [quantity.value(row) or 0.0 for row in by_place[place]]
            low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
            x = places[place] + _shift(index, len(alike), places)
            points.append(Point(x, statistics.median(values), low, high, by_place[place], 0))
        lines.append(Line(f"{explaining}={value}", points))
    return lines, explaining
