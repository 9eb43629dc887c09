"""Read published orderings and differences of trained configs, as a reference file holds them.

They stand below `orderings` and `differences` of a reference (conf/reference/mx_training.yaml explains the form).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mxsweep.formats.training import OPERANDS
from mxsweep.results.metrics import LOSS
from mxsweep.results.trainings import MEASURED
from mxsweep.study.operand_features import BASELINE, Conditions, is_pattern

SNR = "snr_db"
MEASURES = (LOSS, SNR)
_ORDERING = ("name", "source", "measure", "operands", "where", "order", "within")
_ITEM = ("name", "is", "from", "to")
_DIFFERENCE = ("name", "source", "is", "nats")


class BadOrderingError(ValueError):
    """Say in one sentence, which begins with the place, what is wrong."""


@dataclass(frozen=True, eq=False)
class Item:
    """Hold a config of an ordering by its conditions, or a change from one to another, of which the gain is meant."""

    name: str
    conditions: Conditions
    to: Conditions | None = None  # of a gain; `conditions` are then those that it starts from

    @property
    def is_baseline(self) -> bool:
        """Return whether the item is the baseline."""
        return BASELINE in self.conditions


@dataclass(frozen=True)
class Ordering:
    """Hold configs in the order that somebody found.

    Attributes:
        source: where it was published.
        measure: LOSS, or SNR of the operands.
        operands: of SNR: which of them.
        where: conditions on all items.
        levels: worst first (of gains the least); items of one level are equal.
        within: nats, or dB, within which two are taken for equal.
    """

    name: str
    source: str
    measure: str
    operands: tuple[str, ...]
    where: Conditions
    levels: tuple[tuple[Item, ...], ...]
    within: float


@dataclass(frozen=True)
class PublishedDifference:
    """Hold how much more than the baseline a config's loss was, from the least to the most that was reported, nats."""

    name: str
    source: str
    conditions: Conditions
    low: float
    high: float


@dataclass(frozen=True)
class PublishedTrainings:
    """Hold what a reference says of trainings."""

    orderings: Sequence[Ordering] = field(default_factory=list)
    differences: Sequence[PublishedDifference] = field(default_factory=list)


def read_published(content: dict[str, Any]) -> PublishedTrainings:
    """Read both lists of a reference. Raises BadOrderingError."""
    lists = {}
    for name in ("orderings", "differences"):
        lists[name] = content.get(name) or []
        if not isinstance(lists[name], list):
            raise BadOrderingError(f"{name}: {lists[name]!r} is no list")
    return PublishedTrainings(
        [_ordering(f"orderings[{i}]", one) for i, one in enumerate(lists["orderings"])],
        [_difference(f"differences[{i}]", one) for i, one in enumerate(lists["differences"])],
    )


def _ordering(where: str, content: Any) -> Ordering:
    one = _mapping(where, content, _ORDERING)
    measure = one.get("measure", LOSS)
    if measure not in MEASURES:
        raise BadOrderingError(f"{where}.measure: {measure!r} is not known; allowed: {', '.join(MEASURES)}")
    operands = one.get("operands", list(OPERANDS))
    if not isinstance(operands, list) or not set(operands) <= set(MEASURED):
        raise BadOrderingError(f"{where}.operands: {operands!r} is no list of operands; allowed: {', '.join(MEASURED)}")
    order = one.get("order")
    if not isinstance(order, list) or len(order) < 2:
        raise BadOrderingError(f"{where}.order: {order!r} is no list of two or more, the worst first")
    levels = []
    for i, level in enumerate(order):
        items = level if isinstance(level, list) else [level]
        levels.append(tuple(_item(f"{where}.order[{i}]", item) for item in items))
    return Ordering(
        _text(f"{where}.name", one.get("name")),
        _text(f"{where}.source", one.get("source")),
        measure,
        tuple(operands),
        _conditions(f"{where}.where", one.get("where") or {}),
        tuple(levels),
        _number(f"{where}.within", one.get("within", 0.005 if measure == LOSS else 0.5)),
    )


def _item(where: str, content: Any) -> Item:
    one = _mapping(where, content, _ITEM)
    name = _text(f"{where}.name", one.get("name"))
    if ("is" in one) == ("from" in one) or ("from" in one) != ("to" in one):
        raise BadOrderingError(f"{where}: {name} has neither `is` alone nor `from` with `to`")
    if "is" in one:
        return Item(name, _conditions(f"{where}.is", one["is"]))
    return Item(name, _conditions(f"{where}.from", one["from"]), _conditions(f"{where}.to", one["to"]))


def _difference(where: str, content: Any) -> PublishedDifference:
    one = _mapping(where, content, _DIFFERENCE)
    nats = one.get("nats")
    nats = nats if isinstance(nats, list) else [nats, nats]
    if len(nats) != 2:
        raise BadOrderingError(f"{where}.nats: {nats!r} is neither a number nor two")
    low, high = sorted(_number(f"{where}.nats", value) for value in nats)
    name, source = (_text(f"{where}.{key}", one.get(key)) for key in ("name", "source"))
    return PublishedDifference(name, source, _conditions(f"{where}.is", one.get("is")), low, high)


def _conditions(where: str, value: Any) -> Conditions:
    if not isinstance(value, dict) or not all(isinstance(pattern, str) for pattern in value):
        raise BadOrderingError(f"{where}: {value!r} is no mapping of features to their values")
    for pattern in value:
        if not is_pattern(pattern):
            raise BadOrderingError(f"{where}: {pattern} names no feature, as fprop.weight.element, *.grad.rounding do")
    return value


def _mapping(where: str, value: Any, allowed: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadOrderingError(f"{where}: {value!r} is no mapping")
    for name in value:
        if name not in allowed:
            raise BadOrderingError(f"{where}.{name} is not known; allowed: {', '.join(allowed)}")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadOrderingError(f"{where}: {value!r} is no text")
    return " ".join(value.split())


def _number(where: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadOrderingError(f"{where}: {value!r} is no number")
    return float(value)
