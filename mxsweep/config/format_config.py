"""Formats as a config has them: from names, a format's own values and explicit ones to element formats and scales.

A named format (``conf/format/nvfp4.yaml``) may bring its own block size and scale. Explicit ones (``block_size=32``)
win, for the run's format and for those of single modules alike.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mxsweep.config.checks import check_choice, check_flag
from mxsweep.config.option_files import option_names, read_option
from mxsweep.formats import SCALE_NAMES
from mxsweep.formats.element import normalize_element
from mxsweep.formats.mxformat import BlockSize
from mxsweep.terminal.errors import ConfigError


@dataclass(frozen=True)
class FormatConfig:
    """Element formats of the linear layers ("none": as they are) with the scale that they share."""

    weight: str
    activation: str
    block_size: BlockSize
    scale: str
    tensor_scale: bool

    @property
    def name(self) -> str:
        """The option's name where the formats are those of an option, else what they are."""
        for name in option_names("format"):
            option = read_option("format", name) or {}
            what = (option["weight"], option["activation"], option.get("tensor_scale", False))
            if what == (self.weight, self.activation, self.tensor_scale):
                return name
        return self.weight if self.weight == self.activation else f"w:{self.weight},a:{self.activation}"


def element_name(value: Any) -> str:
    """An element format's name, mxfp4_e2m1 by its plain one; YAML's null is "none"."""
    return "none" if value is None else normalize_element(str(value))


def resolve_format(own: dict[str, Any], explicit: dict[str, Any], prefix: str = "") -> FormatConfig:
    """A format's own block size and scale, unless explicit ones (not "auto") take their place.

    Raises:
        ConfigError: a block size, scale or flag that is not one, called by its name behind ``prefix``.
    """
    block_size = own["block_size"] if explicit["block_size"] == "auto" else explicit["block_size"]
    scale = own["scale"] if explicit["scale"] == "auto" else explicit["scale"]
    tensor_scale = explicit["tensor_scale"]
    if tensor_scale == "auto":
        # The per-tensor scale belongs to the format's own scale; another scale comes without it.
        tensor_scale = own["tensor_scale"] and scale == own["scale"]
    check_flag(f"{prefix}tensor_scale", tensor_scale)
    check_choice(f"{prefix}scale", scale, SCALE_NAMES)
    return FormatConfig(
        element_name(own["weight"]), element_name(own["activation"]), _block(block_size, prefix), scale, tensor_scale
    )


def _block(value: Any, prefix: str) -> BlockSize:
    allowed = "a whole number of 1 or more, 0 for the whole axis, or [rows,columns] for a tile of a weight"
    sizes = value if isinstance(value, list) else [value]
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if not whole or (isinstance(value, list) and (len(value) != 2 or min(value) < 1)) or min(sizes) < 0:
        raise ConfigError(f"{prefix}block_size: {value!r} is not a block; allowed: {allowed}")
    return (value[0], value[1]) if isinstance(value, list) else value


def resolve_modules(spec: Any, run: FormatConfig, explicit: dict[str, Any]) -> dict[str, FormatConfig]:
    """``modules``: each pattern's format name or partial mapping, made whole from the format or the run."""
    if spec is None:
        return {}
    if not isinstance(spec, dict):
        raise ConfigError(f"modules: {spec!r} must map glob patterns to formats, as {{*.down_proj: mxfp8_e4m3}}")
    return {str(pattern): _resolve_module(str(pattern), value, run, explicit) for pattern, value in spec.items()}


def _resolve_module(pattern: str, value: Any, run: FormatConfig, explicit: dict[str, Any]) -> FormatConfig:
    field = f"modules[{pattern}]"
    if isinstance(value, dict):
        own = dataclasses.asdict(run)
        unknown = set(value) - {"weight", "activation", "block_size", "scale", "tensor_scale"}
        if unknown:
            raise ConfigError(
                f"{field}: {sorted(unknown)[0]!r} is not a field; allowed: weight, activation, block_size, scale"
            )
        if isinstance(own["block_size"], tuple):
            own["block_size"] = list(own["block_size"])
        # A scale of the module's own drops the run's per-tensor scale, unless it is asked for with it.
        if "scale" in value and value["scale"] != own["scale"]:
            own["tensor_scale"] = False
        return resolve_format(own | value, dict.fromkeys(explicit, "auto"), f"{field}.")
    # A format by its name (mxfp4) before an element by its (mxfp4_e2m1, int8).
    option = read_option("format", "none" if value is None else str(value)) or {"weight": value, "activation": value}
    return resolve_format({"block_size": 32, "scale": "e8m0", "tensor_scale": False} | option, explicit, f"{field}.")
