"""Name the matrices of experts as a checkpoint has them: a linear layer for each expert.

transformers keeps all experts of a layer in one parameter, and stacks what a checkpoint holds for each of them. Which
names those have is declared for each type of model; it is read backwards here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_EXPERTS = ".experts."
_PARAMETERS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}


def stored_name(name: str, model_type: str) -> str:
    """Return the name of an expert's linear layer in a checkpoint.

    Args:
        name: of the operand, as ``model.layers.0.mlp.experts.3.gate_proj``.
        model_type: as in config.json.

    Raises:
        ValueError: checkpoints of this type hold no layer for each expert.
    """
    prefix, _, rest = name.partition(_EXPERTS)
    number, _, matrix = rest.partition(".")
    parts = _matrices(model_type)
    if not number.isdigit() or matrix not in parts:
        raise ValueError(
            f"{name}: checkpoints of type {model_type!r} hold no linear layer for each expert; allowed: types that do"
        )
    return f"{_renamed(f'{prefix}.', model_type)}experts.{number}.{parts[matrix]}"


def _matrices(model_type: str) -> dict[str, str]:
    """Return what a checkpoint calls an expert's matrices, by their names as operands; none where they are stacked."""
    found = {}
    for conversion in _conversions(model_type):
        parameter = _target(conversion.target_patterns).rpartition(".")[2]
        sources = _listed(conversion.source_patterns)
        matrices = _PARAMETERS.get(parameter, ())
        if len(sources) == len(matrices) and all("experts.*." in source for source in sources):
            for matrix, source in zip(matrices, sources, strict=True):
                found[matrix] = source.partition("experts.*.")[2].removesuffix(".weight")
    return found


def _renamed(prefix: str, model_type: str) -> str:
    for conversion in _conversions(model_type):
        ours, theirs = _target(conversion.target_patterns), _target(conversion.source_patterns)
        if ours.endswith(".") and theirs.endswith(".") and prefix.endswith(ours):
            return prefix.removesuffix(ours) + theirs
    return prefix


def _conversions(model_type: str) -> Sequence[Any]:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    return get_checkpoint_conversion_mapping(model_type) or ()


def _listed(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _target(patterns: str | Sequence[str]) -> str:
    return _listed(patterns)[0]
