"""Tell without torch that a pattern of ``modules`` matches nothing in a model folder, by the words in it.

The name of a module, and of a matrix in one, is words and numbers between dots: words that the folder's weights are
named by, that stand in the file in which transformers defines the model, or that mxsweep calls a projection by. A
pattern with another word is refused at once; to look at the model itself takes imports of seconds, and says the rest.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mxsweep.config.model_config import ModelConfig
from mxsweep.files.checkpoints import exported_folder, model_folder, read_mapping, weight_files, weight_roots
from mxsweep.files.safetensors_header import SUFFIX, stored_tensors
from mxsweep.formats.recipe import LINEAR_MATMULS

_PROJECTIONS = {name for role in LINEAR_MATMULS for name in (role, f"{role}_proj")}


def unmatched_pattern(model: ModelConfig, patterns: list[str]) -> str | None:
    """Return why a pattern matches nothing in a model; None where it may, as far as words tell."""
    folder = model_folder(model.path)
    if folder is None or model.trust_remote_code or exported_folder(model.path) is not None:
        return None
    code, weights = _code_of(frozenset(_types(read_mapping(folder / "config.json")))), _weights(folder)
    if code is None or not weights:
        return None
    words = {*_PROJECTIONS, *code, *(word for name in weights for word in name.split("."))}
    for pattern in patterns:
        # What stands between two dots is a word of the name, unless the dots are in brackets.
        parts = [] if "[" in pattern else [part for part in pattern.split(".") if re.fullmatch(r"[A-Za-z_]\w*", part)]
        if unknown := next((part for part in parts if part not in words), None):
            # The folder's names may be others than the model's: transformers renames weights as it loads them.
            return (
                f"modules: the pattern {pattern!r} matches no linear layer or embedding: no module of the model has "
                f"{unknown!r} in its name; allowed: names of its linear layers and embeddings, or patterns of them"
            )
    return None


def _weights(folder: Path) -> list[str]:
    """Return the names of a folder's weights; none where they are not known without reading them."""
    try:
        names = [name for root in weight_roots(folder)[:1] for name in weight_files(folder, root)]
        files = [folder / name for name in names if name.endswith(SUFFIX)]
        return [name for file in files for name in stored_tensors(file)]
    except (OSError, ValueError):
        return []


def _types(value: Any) -> Iterator[str]:
    """Yield the model types in a config, those of its parts among them."""
    if isinstance(value, dict):
        if isinstance(kind := value.get("model_type"), str):
            yield kind
        for part in value.values():
            yield from _types(part)


@functools.lru_cache(maxsize=8)
def _code_of(types: frozenset[str]) -> frozenset[str] | None:
    """Return the words in transformers' files for some types of models; None where there is no file of a type."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None or not types:
        return None
    words: set[str] = set()
    for kind in types:
        files = list((Path(found.origin).parent / "models" / kind).glob("modeling_*.py")) if kind.isidentifier() else []
        if not files:
            return None
        words.update(word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8")))
    return frozenset(words)
