"""Name what a run does to keys and values by the option of ``kv_quant`` that does all of it, as ``rescue4``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from mxsweep.config import knobs
from mxsweep.config.effects import Values
from mxsweep.config.option_files import option_names, read_option

GROUP = "kv_quant"


def kv_option(values: Values) -> str | None:
    """Return the option that does what a run of these values does, and more than an element format; None without one.

    How blocks and scales of keys and values are is no part of it: an option that does not say so leaves it to the run.

    Args:
        values: by the knobs' paths.
    """
    return next((name for name, leaves in _options().items() if _are_of(values, leaves)), None)


def is_kv_option(name: Any) -> bool:
    """Return whether this is the name of an option that does more than choose element formats."""
    return isinstance(name, str) and name in _options()


def element_format(name: Any) -> Any:
    """Return the name of the element formats that an option chooses; what names such formats as it is."""
    if not is_kv_option(name):
        return name
    key, value = (_options()[name][f"{GROUP}.{kind}"] for kind in ("key", "value"))
    return key if key == value else f"k:{key},v:{value}"


def done_beyond(name: Any) -> dict[str, Any]:
    """Return the remedies of keys and values that an option applies, by the knobs' paths; nothing of another name."""
    if not is_kv_option(name):
        return {}
    return {path: _options()[name][path] for path in kv_remedies()}


def kv_remedies() -> dict[str, Any]:
    """Return what each remedy of keys and values is where nothing is done, by the knobs' paths."""
    return {path: knob.off for path, knob in knobs.remedies().items() if knob.group == GROUP}


@functools.cache
def _options() -> dict[str, dict[str, Any]]:
    """Return what each option comes to that does more than choose element formats, by the knobs' paths."""
    found = {}
    for name in option_names(GROUP):
        leaves = {f"{GROUP}.{leaf}": value for leaf, value in (read_option(GROUP, name) or {}).items()}
        if not kv_remedies().keys().isdisjoint(leaves):
            found[name] = kv_remedies() | leaves
    return found


def _are_of(values: Values, leaves: Mapping[str, Any]) -> bool:
    """Return whether a run's values are these, but for those that have no effect on it."""
    table = knobs.names()
    return all(values.get(path) == value or not table[path].effect(values) for path, value in leaves.items())
