"""Say in which elements a packed checkpoint holds weights, which a run may leave as they are stored. No torch."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from mxsweep.files.checkpoints import EXPORT_MANIFEST, exported_folder, read_mapping


def stored_elements(path: str) -> dict[str, str]:
    """Return the elements of the weights of a checkpoint that mxsweep packed, by layer; none of any other model."""
    folder = exported_folder(path)
    layers = read_mapping(folder / EXPORT_MANIFEST).get("weights") if folder is not None else None
    named = layers.items() if isinstance(layers, dict) else ()
    formats = {name: layer.get("weight") for name, layer in named if isinstance(layer, dict)}
    return {name: fmt.partition("-")[0] for name, fmt in formats.items() if isinstance(fmt, str)}


def elements_under(path: str, pattern: str | None, patterns: Collection[str]) -> list[str]:
    """Return the elements of the stored weights that a pattern of ``modules`` names, each once.

    Args:
        pattern: None for those that none of ``patterns`` names.
        patterns: all that there are.
    """

    def is_meant(layer: str) -> bool:
        named = (one for one in patterns if fnmatchcase(layer, one))
        return fnmatchcase(layer, pattern) if pattern is not None else next(named, None) is None

    return list(dict.fromkeys(element for layer, element in stored_elements(path).items() if is_meant(layer)))
