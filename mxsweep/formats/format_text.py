"""Read the fields of a block format from its text, which `str(MXFormat)` writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mxsweep.formats.scale import SCALES

# The parts of a format's text behind the element: what each looks like, which field it sets, and to what.
_PARTS: tuple[tuple[str, str, Callable[[re.Match[str]], object]], ...] = (
    (r"b(\d+)", "block_size", lambda match: int(match[1])),
    (r"b(\d+)x(\d+)", "block_size", lambda match: (int(match[1]), int(match[2]))),
    (r"tensor", "tensor_scale", lambda match: True),
    (r"sb(\d+)", "scale_bits", lambda match: int(match[1])),
    (r"scale_(\w+)", "scale_rounding", lambda match: match[1]),
    (r"round_(\w+)", "rounding", lambda match: match[1]),
    (r"asym", "symmetric", lambda match: False),
    (r"rule_(\w+)", "scale_rule", lambda match: match[1]),
    (r"floor_(\w+)", "scale_floor", lambda match: match[1]),
    (r"noemax", "scale_emax", lambda match: False),
    (r"inf_(\w+)", "inf", lambda match: match[1]),
    (r"4over6", "four_over_six", lambda match: True),
)
_TEXT_ALLOWED = (
    "ELEMENT-bSIZE-SCALE, as fp4_e2m1-b32-e8m0, SIZE being a number or ROWSxCOLUMNS, and behind it tensor, sb2 to sb8, "
    "scale_ROUNDING, round_ROUNDING, asym, rule_RULE, floor_FLOOR, noemax, inf_saturate, 4over6"
)


def parse_fields(text: str) -> tuple[str, dict[str, Any]]:
    """Return the element that a format's text names, and the fields that its other parts set, unchecked.

    Raises:
        ValueError: as `MXFormat.parse`.
    """
    if not isinstance(text, str):
        raise ValueError(f"format: {text!r} is not a text; allowed: {_TEXT_ALLOWED}")
    element, *parts = text.split("-")
    fields: dict[str, Any] = {}
    for part in parts:
        field, value = _parse_part(part, text)
        if field in fields:
            raise ValueError(f"format: {text!r} has a second {field}, {part!r}; allowed: one")
        fields[field] = value
    return element, fields


def _parse_part(part: str, text: str) -> tuple[str, object]:
    """Return the field that a part of a format's text sets, and its value, which `MXFormat` checks."""
    for pattern, field, value in _PARTS:
        if match := re.fullmatch(pattern, part, re.ASCII):
            return field, value(match)
    if part in SCALES:
        return "scale", part
    raise ValueError(f"format: {part!r} in {text!r} is not known; allowed: {_TEXT_ALLOWED}; SCALE: {', '.join(SCALES)}")
