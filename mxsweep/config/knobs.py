"""Derive from the table of knobs each list of knobs that a part of mxsweep needs.

Every function looks at the table when it is called, so that a knob that is added to the table is in all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from mxsweep.config.effects import Values
from mxsweep.config.knob import UNSET, Kind, Knob, Scope
from mxsweep.config.knob_table import TABLE
from mxsweep.config.value_types import Element, Mapping, ValueType
from mxsweep.terminal.written_values import written

HYDRA = "hydra"
Derived = TypeVar("Derived")


def _from_table(derive: Callable[[Sequence[Knob]], Derived]) -> Callable[[], Derived]:
    """Return a function of the table as it is, which works anything out anew only where the table has changed.

    Tables of results ask what is derived so of every run, several times.
    """
    known: list[tuple[list[Knob], Derived]] = []

    @wraps(derive)
    def derived() -> Derived:
        table = list(TABLE.values())
        if not known or known[0][0] != table:
            known[:] = [(table, derive(table))]
        return known[0][1]

    return derived


def all_knobs() -> list[Knob]:
    """Return every knob in the table's order."""
    return list(TABLE.values())


def get(path: str) -> Knob | None:
    """Return the knob of a path, or None."""
    return TABLE.get(path)


# The command line


def paths() -> tuple[str, ...]:
    """Return the knobs that name files and folders to read, which count from the folder that they were typed in."""
    return _of_kind(Kind.PATH)


def folders() -> tuple[str, ...]:
    """Return the knobs that name folders to write."""
    return _of_kind(Kind.FOLDER)


def free_text() -> tuple[str, ...]:
    """Return the knobs whose value is text, whatever it looks like: a commit 3e56378 is no number."""
    return _of_kind(Kind.TEXT)


def groups_with_own_values() -> tuple[str, ...]:
    """Return the groups of which a value makes sense where no option has its name: ``block_size=48``."""
    return tuple(knob.path for knob in TABLE.values() if knob.is_group and type(knob.type) is not ValueType)


@_from_table
def mappings(table: Sequence[Knob]) -> tuple[str, ...]:
    """Return the knobs whose value is a mapping with keys of the user's own: leaves all the same."""
    return tuple(knob.path for knob in table if isinstance(knob.type, Mapping))


def decides_no_result(key: str) -> bool:
    """Return whether a knob, or a group of them, is part of no run's identity."""
    return key.startswith(HYDRA) or _all_of(key, Scope.NONE, Scope.SWEEP)


def is_of_sweep(key: str) -> bool:
    """Return whether a knob, or a group of them, says how a sweep is gone about, and nothing of a run."""
    return key.startswith(HYDRA) or _all_of(key, Scope.SWEEP)


def is_knob(key: str) -> bool:
    """Return whether there is a knob or a group of this path; Hydra's own are none."""
    return not key.startswith(HYDRA) and key in TABLE and key != "sweep"


def no_such_knob(key: str) -> str:
    """Return what to say of a knob that is not there."""
    near = difflib.get_close_matches(key, sorted(filter(is_knob, TABLE)), n=1)
    hint = f" (near it: {near[0]})" if near else ""
    return f"{key}: there is no such knob{hint}; `python -m mxsweep --help` lists what there is"


# The config of a run, and of its baseline


def leaves(group: str = "") -> list[Knob]:
    """Return the knobs that a run's config has below a group, or at the top level."""
    return leaves_by_group().get(group, [])


def leaves_by_group() -> dict[str, list[Knob]]:
    """Return the knobs that a run's config has, by the group that they are below, "" for the top level."""
    above = {path[:end] for path in TABLE for end, letter in enumerate(path) if letter == "."}
    found: dict[str, list[Knob]] = {}
    for path, knob in TABLE.items():
        named = path not in ("experiment", "sweep", "stamp") and not path.startswith(HYDRA)
        if named and path not in above:  # a config holds a value there, and no further knobs
            found.setdefault(knob.group, []).append(knob)
    return found


def groups() -> list[str]:
    """Return the groups with knobs below them; Hydra's own are none."""
    return [group for group in leaves_by_group() if group]


def check(path: str, value: Any, name: str | None = None) -> None:
    """Check a knob's value, or one of the same kind that goes by another name. Raises ConfigError."""
    TABLE[path].type.check(name or path, value)


def decides_only_quantized(key: str) -> bool:
    """Return whether a baseline has no use for a knob or a group: it is of quantized runs' identity alone.

    The name of what was chosen, which may be in a group beside, is of no identity.
    """
    return _all_of(key, Scope.RUN, Scope.NONE) and not _all_of(key, Scope.NONE)


def switches() -> dict[str, Any]:
    """Return the value of each knob at which nothing is quantized, nor done about it."""
    return {knob.path: knob.off for knob in TABLE.values() if knob.scope is Scope.RUN and knob.off is not UNSET}


def baseline_words() -> list[str]:
    """Return the overrides, in Hydra's grammar, that make any run its baseline.

    Leaves as well as groups: an experiment may have set a leaf, over which a group chosen here would not win.
    """
    words = {path: written(value) for path, value in switches().items()}
    return [f"{path}='{word}'" if TABLE[path].is_group else f"{path}={word}" for path, word in words.items()]


# What tables show


@_from_table
def labels(table: Sequence[Knob]) -> dict[str, str]:
    """Return where a record has each knob that tables have a label for, by label."""
    return {knob.label: knob.shown_at or knob.path for knob in table if knob.label}


def by_place(named: Values) -> dict[str, Any]:
    """Return values by where a record has them, as conditions take them, of values by the names that tables give."""
    places = labels()
    return {places.get(name, name): value for name, value in named.items()}


@_from_table
def names(table: Sequence[Knob]) -> dict[str, Knob]:
    """Return the knobs by the names that tables give them."""
    return {knob.name: knob for knob in table}


def element_groups() -> tuple[str, ...]:
    """Return the groups that choose element formats: what a person sets to "none" for nothing to be quantized."""
    return tuple(knob.path for knob in TABLE.values() if isinstance(knob.type, Element) and knob.is_group)


def quantizers() -> tuple[str, ...]:
    """Return the knobs that name an element format: where all are "none", nothing is quantized."""
    return tuple(knob.path for knob in TABLE.values() if isinstance(knob.type, Element) and not knob.is_group)


def telling_metrics_apart(labelled: bool) -> tuple[str, ...]:
    """Return the names of the knobs in which runs that are compared agree: those with a label and the task, or others.

    Metrics of runs that differ in one of them do not mean the same.
    """
    telling = [knob for knob in TABLE.values() if knob.tells_metrics_apart]
    by_name = sorted((knob for knob in telling if knob.is_group), key=lambda knob: _COMPARED_FIRST.index(knob.path))
    return tuple(knob.name for knob in (by_name if labelled else telling) if knob.is_group == labelled)


_COMPARED_FIRST = ("model", "task", "limit")  # the order of titles


def decided_by(name: str) -> tuple[str, ...]:
    """Return the names of the knobs that decide a knob's value where it was not set."""
    knob = names().get(name)
    if knob is not None and knob.decided_by is not None:
        return knob.decided_by
    return tuple(name.split(".")[:-1][:1])


def notes() -> tuple[str, ...]:
    """Return the knobs that say what a run leaves besides its metrics: they tell no results apart."""
    return tuple(knob.path for knob in TABLE.values() if knob.is_note)


@_from_table
def remedies(table: Sequence[Knob]) -> dict[str, Knob]:
    """Return the knobs that are remedies by the names that tables give them: of weights, rotations, keys and values."""
    found = [knob for knob in table if knob.remedy is not None]
    order = list(dict.fromkeys(knob.path.partition(".")[0] for knob in found))
    return {knob.name: knob for knob in sorted(found, key=lambda knob: order.index(knob.path.partition(".")[0]))}


@_from_table
def of_run_and_kv(table: Sequence[Knob]) -> tuple[str, ...]:
    """Return the knobs that keys and values have for themselves: the run's where they are not set."""
    prefix = "kv_quant."
    paths = {knob.path for knob in table}
    own = [knob.path for knob in table if knob.path.startswith(prefix) and knob.remedy is None]
    return tuple(path.removeprefix(prefix) for path in own if path[len(prefix) :] in paths)


def is_unsaid(path: str, value: Any) -> bool:
    """Return whether a record leaves a knob out, as one that does nothing."""
    return path in TABLE and TABLE[path].is_silent and value == TABLE[path].off


def effective(values: Values) -> dict[str, Any]:
    """Return a record's values without those that have no effect, and with what it means by leaving out some.

    What a record of an earlier version leaves out are remedies, and options of keys and values; what any record leaves
    out are knobs that go unsaid where they are off.

    Args:
        values: by path, a value that tables show under a label where the record has it. Those of no knob stay.
    """
    options = [knob for knob in TABLE.values() if knob.place == "kv_options"]
    silent = [knob for knob in TABLE.values() if knob.is_silent]
    implied = {knob.shown_at or knob.path: knob.off for knob in (*remedies().values(), *options, *silent)}
    implied |= {f"kv_quant.{leaf}": values[leaf] for leaf in of_run_and_kv() if leaf in values}
    by_place = TABLE | {knob.shown_at: knob for knob in TABLE.values() if knob.shown_at}
    return {
        path: _shown(by_place.get(path), value)
        for path, value in {**implied, **values}.items()
        if path not in by_place or by_place[path].effect(values)
    }


def _shown(knob: Knob | None, value: Any) -> Any:
    return next((shown for other, shown in knob.same if other == value), value) if knob is not None else value


def _of_kind(kind: Kind) -> tuple[str, ...]:
    return tuple(knob.path for knob in TABLE.values() if knob.kind is kind)


def _all_of(key: str, *scopes: Scope) -> bool:
    """Return whether a knob, or every knob below a group, has one of these scopes."""
    prefix = f"{key}."
    below = [knob.scope for path, knob in TABLE.items() if path == key or path.startswith(prefix)]
    return bool(below) and all(scope in scopes for scope in below)
