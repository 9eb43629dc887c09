"""Resolve formats as a config names them, a format's own values and explicit ones, to element formats and scales.

A named format (``conf/format/nvfp4.yaml``) may bring its own block size and scale. Explicit ones (``block_size=32``)
win, for the run's format and for those of single modules alike. Options are looked for in all folders of config
groups, that of ``--config-dir`` and mxsweep's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.config import knobs
from mxsweep.config.option_files import option_names, read_option
from mxsweep.formats.element import normalize_element
from mxsweep.formats.mxformat import BlockSize
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted, written

FIELDS = ("weight", "activation", "block_size", "scale", "tensor_scale")
OF_AN_OPTION = {"block_size": 32, "scale": "e8m0", "tensor_scale": False}  # where the option does not say


@dataclass(frozen=True)
class FormatConfig:
    """Hold the element formats of linear layers ("none": as they are) and the scale that they share.

    Attributes:
        name: what tables call it; "" where nobody asks. It tells no formats apart.
    """

    weight: str
    activation: str
    block_size: BlockSize
    scale: str
    tensor_scale: bool
    name: str = field(default="", compare=False)


def format_name(formats: FormatConfig, folders: Sequence[Path] | None = None, chosen: str | None = None) -> str:
    """Return an option's name where the formats are those of an option, else what they are.

    Args:
        folders: of config groups; None for mxsweep's own.
        chosen: the option that was chosen, whose name wins if nothing took the place of its formats.
    """
    names = option_names("format", folders)
    for name in [chosen, *names] if chosen in names else names:
        try:
            option = read_option("format", str(name), folders) or {}
        except ConfigError:  # of a file that nobody chose
            continue
        elements = (element_name(option.get("weight")), element_name(option.get("activation")))
        if (*elements, option.get("tensor_scale", False)) == (formats.weight, formats.activation, formats.tensor_scale):
            return str(name)
    both = formats.weight == formats.activation
    return formats.weight if both else f"w:{formats.weight},a:{formats.activation}"


def element_name(value: Any) -> str:
    """Return an element format's name, mxfp4_e2m1 by its plain one; YAML's null is "none"."""
    return "none" if value is None else normalize_element(written(value))


def no_format(field: str, group: str, name: str, message: str) -> str:
    """Return the refusal of what is neither an option of a group of formats nor an element, as ``message`` says."""
    from difflib import get_close_matches  # here, since no command that makes sense needs it

    names = option_names(group)
    near = get_close_matches(name, names, 1)
    meant = f" (near it: {near[0]})" if near else ""
    elements = message.partition("allowed: ")[2]
    return f"{field}: {name!r} is no format{meant}; allowed: {', '.join(names)}; or an element: {elements}"


def resolve_format(own: dict[str, Any], explicit: dict[str, Any], prefix: str = "") -> FormatConfig:
    """Return a format with its own block size and scale, unless explicit ones (not "auto") take their place.

    Raises:
        ConfigError: a block size, scale or flag that is not one, called by its name behind ``prefix``.
    """
    for leaf in ("tensor_scale", "scale", "block_size"):
        knobs.check(f"format.{leaf}", own[leaf], f"{prefix}{leaf}")
    block_size = own["block_size"] if explicit["block_size"] == "auto" else explicit["block_size"]
    scale = own["scale"] if explicit["scale"] == "auto" else explicit["scale"]
    tensor_scale = explicit["tensor_scale"]
    if tensor_scale == "auto":
        # The per-tensor scale belongs to the format's own scale; another scale comes without it.
        tensor_scale = own["tensor_scale"] and scale == own["scale"]
    if isinstance(block_size, list):
        block_size = (block_size[0], block_size[1])
    return FormatConfig(element_name(own["weight"]), element_name(own["activation"]), block_size, scale, tensor_scale)


def read_format(
    name: str, explicit: dict[str, Any], prefix: str, folders: Sequence[Path] | None = None
) -> FormatConfig | None:
    """Return the formats of an option of ``format``, None where there is none of that name.

    Raises:
        ConfigError: an option file that lacks a field or has another, or what `resolve_format` refuses.
    """
    option = read_option("format", name, folders)
    if option is None:
        return None
    for leaf in (leaf for leaf in FIELDS if leaf not in OF_AN_OPTION and leaf not in option):
        raise ConfigError(f"{prefix}{leaf}: the option {name!r} of format does not say it; every format needs it")
    for unknown in (leaf for leaf in option if leaf not in FIELDS):
        raise ConfigError(f"{prefix}{unknown}: is no field of a format; allowed: {', '.join(FIELDS)}")
    return resolve_format(OF_AN_OPTION | option, explicit, prefix)


def fields_of(formats: FormatConfig) -> dict[str, Any]:
    """Return a format as an option file or a mapping in ``modules`` has it, as plain data."""
    fields = {name: getattr(formats, name) for name in FIELDS}
    if isinstance(formats.block_size, tuple):
        fields["block_size"] = list(formats.block_size)
    return fields


def resolve_modules(
    spec: Any, run: FormatConfig, explicit: dict[str, Any], folders: Sequence[Path] | None = None
) -> dict[str, FormatConfig]:
    """Return the format of each pattern of ``modules``: of a name or a partial mapping, made whole from the run's.

    Raises:
        ConfigError: no mapping, or one of a field that is none, or of a value that is not allowed.
    """
    if spec is None:
        return {}
    if not isinstance(spec, dict):
        raise ConfigError(f"modules: {quoted(spec)} must map glob patterns to formats, as {{*.down_proj: mxfp8_e4m3}}")
    return {
        str(pattern): _resolve_module(str(pattern), value, run, explicit, folders) for pattern, value in spec.items()
    }


def _resolve_module(
    pattern: str, value: Any, run: FormatConfig, explicit: dict[str, Any], folders: Sequence[Path] | None
) -> FormatConfig:
    field_name = f"modules[{pattern}]"
    if isinstance(value, dict):
        own = fields_of(run)
        unknown = set(value) - set(FIELDS)
        if unknown:
            raise ConfigError(
                f"{field_name}: {quoted(sorted(unknown, key=str)[0])} is not a field; allowed: weight, activation, "
                "block_size, scale"
            )
        # A scale of the module's own drops the run's per-tensor scale, unless it is asked for with it.
        if "scale" in value and value["scale"] != own["scale"]:
            own["tensor_scale"] = False
        return resolve_format(own | value, dict.fromkeys(explicit, "auto"), f"{field_name}.")
    # A format by its name (mxfp4) before an element by its (mxfp4_e2m1, int8).
    named = read_format("none" if value is None else str(value), explicit, f"{field_name}.", folders)
    elements = {"weight": value, "activation": value}
    return named or resolve_format(OF_AN_OPTION | elements, explicit, f"{field_name}.")
