"""Say which kinds of tensor a run quantizes, and of two runs whether one quantizes some of the other's kinds alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import KVOptions
from mxsweep.results.rows import Row

Kinds = frozenset[str]
LINEAR, CACHED = ("weight", "activation"), ("key", "value")
VALUE_OPTIONS = ("first", "recent", "scales", "latent")  # of keys and values, those that values by themselves have
# Entries of a run's identity that are of some kinds of tensor only, and those that may differ between run and part.
OF_KINDS = ("layers", "kv", "computed", "kv_options", "ptq", "calibration", "remedies")
MAY_DIFFER = ("quantized", "diagnostics")
# Of knobs that stand in an identity by themselves, the kind of tensor that they are of.
KIND_OF_KNOB = {"format.share_tensor_scale": "weight", "format.activation_scale": "activation"}


def kinds_of(row: Row) -> Kinds:
    """Return the kinds of tensor that a run quantizes; none of a run of which that is not known, or not so plain."""
    quantized = row.recorded("identity", "quantized")
    if not isinstance(quantized, dict) or "training" in quantized or "formats" in (quantized.get("ptq") or {}):
        return frozenset()
    try:
        layers = [formats for _, *formats in quantized["layers"]]
        formats = {kind: [each[i] for each in layers] for i, kind in enumerate(LINEAR)}
        formats |= {kind: [fmt] for kind, fmt in zip(CACHED, quantized["kv"], strict=True)}
    except (KeyError, TypeError, ValueError, IndexError):  # of another version
        return frozenset()
    return frozenset(kind for kind, each in formats.items() if any(each))


def signature(row: Row, kinds: Kinds, apart: Sequence[str]) -> str:
    """Return what decides the result of a run that quantizes these of its kinds and is the same in all else.

    Two runs of one signature are one, whatever else is quantized in the run that it was taken of. What calibration
    both have is left to `is_calibrated_so`, since a run may need none where one of more kinds does. `apart` are knobs
    that tell runs apart as well.
    """
    identity = row.recorded("identity")
    quantized = identity["quantized"]
    layers = [
        [name, *(fmt if kind in kinds else None for kind, fmt in zip(LINEAR, formats, strict=True))]
        for name, *formats in quantized["layers"]
    ]
    options = KVOptions().as_dict() | (quantized.get("kv_options") or {})
    cached = [fmt if kind in kinds else None for kind, fmt in zip(CACHED, quantized["kv"], strict=True)]
    said = options if "key" in kinds else VALUE_OPTIONS if "value" in kinds else ()
    parts = [
        _without(identity, MAY_DIFFER),
        _without(quantized, [*OF_KINDS, *(knob for knob, kind in KIND_OF_KNOB.items() if kind not in kinds)]),
        _computed(quantized["computed"], [fmt for _, *formats in layers for fmt in formats] + cached),
        layers if kinds & set(LINEAR) else None,
        quantized.get("ptq") if "weight" in kinds else None,
        cached,
        {name: options.get(name) for name in said},
        [row.knobs.get(name) for name in apart],
    ]
    return json.dumps(parts, sort_keys=True)


def _computed(computed: Sequence[Any], formats: Sequence[str | None]) -> list[Any]:
    """Return backend and arithmetic that formats are computed by: native arithmetic is of those that have it alone."""
    backend, arithmetic = computed[:2]
    return [backend, arithmetic if any(fmt and _has_native(fmt) for fmt in formats) else "exact"]


@cache
def _has_native(fmt: str) -> bool:
    try:
        return MXFormat.parse(fmt).has_native_arithmetic
    except ValueError:  # of another version
        return True


def is_calibrated_so(row: Row, whole: Row) -> bool:
    """Return whether a run's calibration and remedies, as far as it has any, are those of another."""
    ours, theirs = (each.recorded("identity", "quantized") for each in (row, whole))
    return all(ours[name] == theirs.get(name) for name in ("calibration", "remedies") if name in ours)


def _without(entries: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}
