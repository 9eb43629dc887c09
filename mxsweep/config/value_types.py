"""Type the values of knobs: each type checks a value as composed, and says what is allowed.

A check raises ConfigError with one sentence that names the knob, the value and what is allowed. What depends on other
knobs (a file that must hold a task's field, a tile that only weights can have) is checked where those are known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.config.checks import check_choice, check_flag, check_integer
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted

MOST_OF_A_BLOCK = 2**24  # elements: more than an axis has


@dataclass(frozen=True)
class ValueType:
    """Take any value: what is wrong with it is known only together with other knobs, or where it is used.

    Attributes:
        allowed: what is allowed, in words for the help and for messages.
    """

    allowed: str = ""

    def check(self, knob: str, value: Any) -> None:
        """Raise ConfigError unless the value can be the knob's."""


@dataclass(frozen=True)
class Choice(ValueType):
    """Take one of several words, which may be registered later, or "auto" or None where these are allowed, too."""

    words: Sequence[str] = ()
    or_auto: bool = False
    or_null: bool = False

    def check(self, knob: str, value: Any) -> None:
        further = ["null"] * self.or_null
        if not (value is None and self.or_null) and not (value == "auto" and self.or_auto):
            check_choice(knob, value, (*self.words, *further))

    def choices(self) -> tuple[str, ...]:
        """Return the words as they are typed."""
        return (*["auto"] * self.or_auto, *self.words, *["null"] * self.or_null)


@dataclass(frozen=True)
class Flag(ValueType):
    """Take a yes or no; ``words`` are further values, which leave the answer to something else.

    The one reader of flags: of knobs, and of fields inside ``modules``.
    """

    words: tuple[str, ...] = ()

    def check(self, knob: str, value: Any) -> None:
        if not isinstance(value, str) or value not in self.words:
            check_flag(knob, value)


@dataclass(frozen=True)
class Whole(ValueType):
    """Take a whole number from ``low`` to ``high`` (None: without end); ``words`` are further values."""

    low: int = 0
    high: int | None = None
    words: tuple[str | None, ...] = ()

    def check(self, knob: str, value: Any) -> None:
        if not (value is None or isinstance(value, str)) or value not in self.words:
            check_integer(knob, value, self.low, self.high, self.allowed)


@dataclass(frozen=True)
class Number(ValueType):
    """Take a finite number from ``low`` (itself where ``with_low``) to ``high``; None where ``or_null``."""

    low: float = 0.0
    high: float = math.inf
    with_low: bool = True
    or_null: bool = False

    def check(self, knob: str, value: Any) -> None:
        if value is None and self.or_null:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not self.low <= value <= self.high or (value == self.low and not self.with_low):
            raise ConfigError(f"{knob}: {quoted(value)} is not allowed; allowed: {self.allowed}")


@dataclass(frozen=True)
class Text(ValueType):
    """Take a text that is not empty; None where ``or_null``."""

    or_null: bool = False

    def check(self, knob: str, value: Any) -> None:
        if not (isinstance(value, str) and value) and not (value is None and self.or_null):
            raise ConfigError(f"{knob}: {quoted(value)} must be a word{' or null' if self.or_null else ''}")


WORD = Text("a word")
WORD_OR_NULL = Text("a word, or null", or_null=True)


@dataclass(frozen=True)
class Pattern(ValueType):
    """Take a text that a regular expression matches as a whole; ``what`` is what other texts are not."""

    expression: str = ""
    what: str = ""

    def check(self, knob: str, value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(self.expression, value):
            raise ConfigError(f"{knob}: {quoted(value)} is not {self.what}; allowed: {self.allowed}")


@dataclass(frozen=True)
class Listing(ValueType):
    """Take a name or a list of names; where there are ``words``, one or more of them, each once."""

    words: tuple[str, ...] = ()

    def check(self, knob: str, value: Any) -> None:
        names = as_names(value) if self.words else ()
        if self.words and (not names or any(name in names[:index] for index, name in enumerate(names))):
            raise ConfigError(f"{knob}: {quoted(names)} must name one or more, each once")
        for name in names:
            check_choice(knob, name, self.words)


@dataclass(frozen=True)
class Mapping(ValueType):
    """Take several values under names of the user's own, as patterns of modules: one knob, whatever is in it."""


@dataclass(frozen=True)
class Operand(Mapping):
    """Take what an operand of a matrix product becomes: "auto", "none", a format by its name, or fields of one.

    A name of none, and a field that is none, are refused when the format is made.
    """

    def check(self, knob: str, value: Any) -> None:
        if value is not None and not (isinstance(value, str) and value) and not isinstance(value, dict):
            raise ConfigError(f"{knob}: {quoted(value)} is not a format; allowed: {self.allowed}")


@dataclass(frozen=True)
class ByTensor(Mapping):
    """Take a value of ``one`` for all tensors, or a mapping with one for weights and one for activations."""

    one: ValueType = ValueType()

    def check(self, knob: str, value: Any) -> None:
        if not isinstance(value, dict):
            self.one.check(knob, value)
            return
        if set(value) != {"weight", "activation"}:
            raise ConfigError(
                f"{knob}: {quoted(value)} is not allowed; allowed: one value, or {{weight: X, activation: Y}} with both"
            )
        for kind, of_kind in value.items():
            self.one.check(f"{knob}.{kind}", of_kind)


@dataclass(frozen=True)
class Block(ValueType):
    """Take a block of elements that share a scale: a length, or rows and columns of a tile; "auto" where allowed."""

    or_auto: bool = False

    def check(self, knob: str, value: Any) -> None:
        if self.or_auto and value == "auto":
            return
        sizes = value if isinstance(value, list) else [value]
        whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
        no_tile = whole and isinstance(value, list) and (len(value) != 2 or min(value) < 1)
        if not whole or no_tile or min(sizes) < 0 or max(sizes) > MOST_OF_A_BLOCK:
            raise ConfigError(
                f"{knob}: {quoted(value)} is not a block; allowed: a whole number of 1 or more, up to 2^24, 0 for the "
                "whole axis, or [rows,columns] for a tile of a weight"
            )


@dataclass(frozen=True)
class Element(ValueType):
    """Take an element format, or "none"; a name of none is refused when the format is made."""


@dataclass(frozen=True)
class Checked(ValueType):
    """Take a value with a check of its own."""

    with_check: Callable[[str, Any], None] = lambda knob, value: None

    def check(self, knob: str, value: Any) -> None:
        self.with_check(knob, value)


def as_names(value: Any) -> tuple[Any, ...]:
    """Return a name, or a list of names, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)
