"""Bring what was typed beside a runtime together with what the runtime sets; contradictions are refused. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mxsweep.config.runtimes import ACTIVATION, OF_RUNTIMES, RUNTIMES
from mxsweep.formats import MXFormat
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted, written


def choose(runtime: str, values: dict[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's values with the runtime's defaults of the knobs that it leaves to its user.

    Args:
        values: of the run's knobs.
        explicit: those that were set.

    Raises:
        ConfigError: one that was set to what the runtime does not offer.
    """
    known = RUNTIMES.get(runtime)
    for knob, allowed in known.choices.items() if known else ():
        if knob not in explicit:
            values = values | {knob: allowed[0]}
        elif explicit[knob] not in allowed:
            raise ConfigError(
                f"{knob}: {quoted(explicit[knob])} does not go with runtime={runtime}; allowed with it: "
                f"{', '.join(allowed)}"
            )
    return values


def tensor_scales(runtime: str, has: Mapping[str, bool], explicit: Mapping[str, Any]) -> dict[str, str]:
    """Return the runtime's values of the knobs SHARED and ACTIVATION where some format has what they are of.

    Args:
        has: whether weights, for SHARED, and inputs, for ACTIVATION, have per-tensor scales.
        explicit: the knobs that were set.

    Raises:
        ConfigError: one was set to what the runtime does not do.
    """
    known = RUNTIMES.get(runtime)
    values: dict[str, str] = {}
    for knob, value in known.tensor_scales.items() if known else ():
        given = isinstance(explicit.get(knob), int | float)  # a scale of inputs that is given, not calibrated
        if not has[knob] or given:
            continue
        if explicit.get(knob, value) != value:
            further = ", a number" if knob == ACTIVATION else ""
            raise ConfigError(
                f"{knob}: {quoted(explicit[knob])} does not go with runtime={runtime}; allowed with it: "
                f"{value}{further}"
            )
        values[knob] = value
    return values


def refuse_rules(runtime: str, rules: Iterable[str]) -> None:
    """Raise ConfigError for rules of formats that were set, by their names, beside a runtime, which has its own."""
    for rule in rules if runtime in RUNTIMES else ():
        raise ConfigError(
            f"format.{rule}: does not go with runtime={runtime}, whose rules are its own; allowed: none given"
        )


def refuse_contradictions(runtime: str, explicit: Mapping[str, Any], formats: Sequence[MXFormat]) -> None:
    """Refuse a knob that was set to another value than the runtime has for one of the run's formats.

    Raises:
        ConfigError: as said.
    """
    for knob in (knob for knob in OF_RUNTIMES if knob in explicit):
        for fmt in formats:
            by_element = knob == "scale_rounding" and fmt.element_format.scale_rounding
            without = knob == "scale_rounding" and not fmt.scale_format.is_power_of_two
            if getattr(fmt, knob) != explicit[knob] and not by_element and not without:
                raise ConfigError(
                    f"{knob}: {quoted(explicit[knob])} does not go with runtime={runtime}, which computes {fmt}; "
                    f"allowed with it: {written(getattr(fmt, knob))}, or none given"
                )
