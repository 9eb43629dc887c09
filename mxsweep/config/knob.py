"""Define what a knob's declaration says, once for all who ask. The knobs themselves are in ``knob_table.py``."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.config.effects import Values, always
from mxsweep.config.value_types import ValueType


class Scope(enum.Enum):
    """Say which runs a knob is part of the identity of."""

    BASELINE = "of every run, its baseline's too"
    RUN = "of a quantized run, not of its baseline"
    NONE = "of none: how fast, or under which name"
    SWEEP = "of none: how a sweep is gone about"


class Kind(enum.Enum):
    """Say what the text of a value is, which decides how the command line takes the text."""

    PLAIN = "a number, a word, or several"
    PATH = "a file or a folder that is read, or several in a mapping: as typed, and relative to where it was typed"
    FOLDER = "a folder that is written: as typed, unless it refers to other knobs"
    TEXT = "free text: as typed, whatever it looks like"


class _Unset(enum.Enum):
    UNSET = "no such value"


UNSET = _Unset.UNSET


@dataclass(frozen=True)
class Remedy:
    """Say what a remedy against the error of quantizing is called, and how strong its values are.

    Attributes:
        text: of a run that has it; {} is its value.
        names: texts of single values.
        ladder: values from the least that is done to the most.
    """

    text: str = "{}"
    names: tuple[tuple[str, str], ...] = ()
    ladder: Sequence[str] = ()


@dataclass(frozen=True)
class Knob:
    """Declare one knob.

    Attributes:
        path: where it stands in a config, as it is typed.
        help: what it is, in a line or two.
        type: of its value, with the check.
        scope: the runs whose identity it is part of.
        off: the value at which nothing is done: left out of a run's identity, what a baseline has, and what a record
            without the knob means. UNSET where no value is.
        effect: whether it has an effect on a run of these values.
        kind: what the text of a value is.
        label: what tables call it, and that they show it first; None where they call it by its path.
        shown_at: where a record has the value that tables show; None for the path.
        place: of identity: the entry of a run's identity that the knob decides, perhaps with others (see
            ``run_identity.py``); None where its value stands there by itself, under its path.
        is_group: whether options for it are in ``conf/PATH/``.
        tells_metrics_apart: metrics of runs that differ in it do not mean the same, so they are never compared.
        is_silent: a record leaves it out where it is off.
        is_note: what a run leaves besides its metrics, which tells no results apart.
        decided_by: labels of the knobs that decide its value where it was not set; None for the group that it is in.
        same: pairs of values that mean the same result, the second what tables show for both.
        remedy: what it does about the error of quantizing; None where it is no remedy.
        of_remedy: whether it says how a remedy is applied.
    """

    path: str
    help: str
    type: ValueType
    scope: Scope
    off: Any = UNSET
    effect: Callable[[Values], bool] = always
    kind: Kind = Kind.PLAIN
    label: str | None = None
    shown_at: str | None = None
    place: str | None = None
    is_group: bool = False
    tells_metrics_apart: bool = False
    is_silent: bool = False
    is_note: bool = False
    decided_by: tuple[str, ...] | None = None
    same: tuple[tuple[Any, Any], ...] = ()
    remedy: Remedy | None = None
    of_remedy: bool = False

    @property
    def name(self) -> str:
        """Return what tables and legends call the knob."""
        return self.label or self.path

    @property
    def group(self) -> str:
        """Return the group that the knob is a leaf of; "" at the top level."""
        return self.path.rpartition(".")[0]

    @property
    def is_of_remedies(self) -> bool:
        """Return whether the knob is a remedy, or says how one is applied."""
        return self.remedy is not None or self.of_remedy
