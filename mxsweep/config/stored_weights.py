"""Say in which formats a packed checkpoint holds weights, which a run may leave as they are stored. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from functools import cache

from mxsweep.files.checkpoints import EXPORT_MANIFEST, export_manifest, packed_layers
from mxsweep.formats import MXFormat
from mxsweep.formats.export_targets import packing_of
from mxsweep.terminal.errors import ConfigError

Readings = tuple[MXFormat, ...]  # of one stored weight: every format that its codes and scales are one of


def stored_formats(path: str) -> dict[str, Readings]:
    """Return the formats of the weights of a checkpoint that mxsweep packed, by layer; none of any other model.

    How a weight was rounded is left out: it is in no file.

    Raises:
        ConfigError: what ``export.json`` says of a layer is no format.
    """
    manifest = export_manifest(path)
    target = str(manifest.get("target"))
    formats = {}
    for name, layer in packed_layers(manifest).items():
        try:
            formats[name] = _readings(str(layer.get("weight") if isinstance(layer, dict) else layer), target)
        except ValueError as error:
            raise ConfigError(f"model.path: {path!r}: {EXPORT_MANIFEST}: weights[{name}]: {error}") from None
    return formats


@cache
def _readings(text: str, target: str) -> Readings:
    """Return a weight's format as it was chosen, and as the target's files lay it out: longer blocks as several with
    equal scales, powers of two as e4m3 under a scale of the tensor. Raises ValueError where the text is no format.
    """
    fmt = MXFormat.parse(text)
    chosen = MXFormat(fmt.element, fmt.block_size, fmt.scale, symmetric=fmt.symmetric, tensor_scale=fmt.tensor_scale)
    try:
        packing = packing_of(target, fmt)
    except ValueError:  # of a target that is not known here, or stored otherwise in another version
        return (chosen,)
    laid_out = MXFormat(fmt.element, packing.group, packing.scale, tensor_scale=packing.tensor_scale)
    return tuple(dict.fromkeys((chosen, laid_out)))


def formats_under(stored: Mapping[str, Readings], pattern: str | None, patterns: Collection[str]) -> list[Readings]:
    """Return the formats of the stored weights that a pattern of ``modules`` names, each once.

    Args:
        stored: as `stored_formats` returns them.
        pattern: None for those that none of ``patterns`` names.
        patterns: all that there are.
    """

    def is_meant(layer: str) -> bool:
        named = (one for one in patterns if fnmatchcase(layer, one))
        return fnmatchcase(layer, pattern) if pattern is not None else next(named, None) is None

    return list(dict.fromkeys(readings for layer, readings in stored.items() if is_meant(layer)))
