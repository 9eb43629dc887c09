"""When a knob has an effect: conditions on the values of the others.

A knob without effect on a run is no part of its identity, is not recorded, and is no difference between two runs. Each
condition takes a run's values by the knobs' paths, as a config or a record has them; a value that is not there was not
recorded, because it had no effect, or because there was no such knob yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


def always(_: Values) -> bool:
    """Return True."""
    return True


def quantizes(values: Values) -> bool:
    """Return whether any tensor gets a format."""
    linear = any(values.get(f"format.{name}", "none") != "none" for name in ("weight", "activation"))
    return linear or quantizes_kv(values) or any(_of_modules(values, "weight", "activation"))


def quantizes_weights(values: Values) -> bool:
    """Return whether some weight gets a format."""
    return values.get("format.weight", "none") != "none" or any(_of_modules(values, "weight"))


def quantizes_kv(values: Values) -> bool:
    """Return whether keys or values get a format."""
    return any(values.get(f"kv_quant.{name}", "none") != "none" for name in ("key", "value"))


def quantizes_keys(values: Values) -> bool:
    """Return whether keys get a format."""
    return bool(values.get("kv_quant.key", "none") != "none")


def searches_scales(values: Values) -> bool:
    """Return whether the scales of weights are searched, as GPTQ does, too."""
    return quantizes_weights(values) and values.get("ptq.method", "rtn") != "rtn"


def solves_gptq(values: Values) -> bool:
    """Return whether weights are chosen by GPTQ."""
    return quantizes_weights(values) and values.get("ptq.method") == "gptq"


def has_budget(values: Values) -> bool:
    """Return whether the formats of weights are chosen under a bit budget."""
    return quantizes_weights(values) and values.get("ptq.budget") is not None


def rotates(values: Values) -> bool:
    """Return whether operands are rotated before they are quantized."""
    return quantizes(values) and values.get("rotation.method", "none") != "none"


def has_scale_bits(values: Values) -> bool:
    """Return whether the width of scales can be chosen, which is so of e8m0 only."""
    return quantizes(values) and values.get("scale", "e8m0") == "e8m0"


def calibrates(values: Values) -> bool:
    """Return whether something is worked out on calibration data."""
    by_output = solves_gptq(values) or (searches_scales(values) and values.get("ptq.clip_loss") != "weight")
    smooths = quantizes_keys(values) and (values.get("kv_quant.smooth") or 0) > 0
    return by_output or has_budget(values) or smooths or (rotates(values) and values.get("rotation.method") == "search")


def _of_modules(values: Values, *fields: str) -> list[bool]:
    """Return, for each pattern of ``modules``, whether any of these fields is an element format."""
    modules = values.get("modules")
    if not isinstance(modules, Mapping):
        return []
    return [
        any(formats.get(field, "none") not in ("none", None) for field in fields)
        if isinstance(formats, Mapping)
        else formats not in ("none", None)
        for formats in modules.values()
    ]
