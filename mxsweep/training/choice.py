"""Choose which operands of a model a training recipe changes, and the formats of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from transformers import PreTrainedModel

from mxsweep.config.train_knobs import kept_blocks
from mxsweep.formats.recipe import names_operand
from mxsweep.formats.training import LayerFormats, TrainingRecipe
from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.operands import EMBEDDING, HEAD, Operand, find_operands
from mxsweep.model.sites import check_patterns, check_reads, is_in_blocks
from mxsweep.terminal.errors import ConfigError

_KINDS = {"lm_head": HEAD, "embeddings": EMBEDDING}


@dataclass(frozen=True)
class Trained:
    """Hold an operand that is trained through products of quantized operands, and the formats of these."""

    operand: Operand
    formats: LayerFormats


def find_trained(
    model: PreTrainedModel, recipe: TrainingRecipe, operands: dict[str, Operand] | None = None
) -> list[Trained]:
    """Return the operands that ``recipe`` changes, in the model's order.

    Args:
        operands: of the model, where they were found already.

    Raises:
        ConfigError: a pattern of ``recipe.modules`` or an entry of ``recipe.keep_high`` that matches nothing, a module
            that is to be quantized and cannot be, a model without linear layers in its decoder blocks, or formats that
            are left with nothing to quantize.
    """
    operands = find_operands(model) if operands is None else operands
    check_patterns(model, [(pattern, not formats.is_plain) for pattern, formats in recipe.modules], operands)
    kept = set(_kept(model, recipe.keep_high, operands.values()))
    trained = []
    for operand in operands.values():
        formats = LayerFormats() if operand.name in kept else _formats_of(operand, recipe)
        if formats.is_plain:
            continue
        problem = operand.why_not_replaceable if operand.is_linear else "is an embedding, which multiplies nothing"
        if problem:
            raise ConfigError(
                f"matmuls.keep_high: {operand.name} {problem}; leave it as it is with keep_high=[..., {operand.name}]"
            )
        trained.append(Trained(operand, formats))
    check_reads(model, [of_model.operand for of_model in trained])
    if not recipe.linear.is_plain and not any(map(is_in_blocks, operands.values())):
        raise ConfigError(
            f"matmuls: {type(model).__name__} has no linear layers in its decoder blocks that could be quantized; "
            "allowed: none"
        )
    if not trained and not recipe.is_plain:
        raise ConfigError(
            f"matmuls.keep_high: with [{', '.join(recipe.keep_high)}] and modules nothing of {type(model).__name__} is "
            "quantized; allowed: what leaves something to quantize, or recipe=bf16"
        )
    return trained


def _formats_of(operand: Operand, recipe: TrainingRecipe) -> LayerFormats:
    formats = recipe.linear if is_in_blocks(operand) or operand.role == HEAD else LayerFormats()
    for pattern, of_pattern in recipe.modules:
        if names_operand(pattern, operand.name, operand.module_name):
            formats = of_pattern
    return formats


def _kept(model: PreTrainedModel, entries: Collection[str], operands: Collection[Operand]) -> Iterator[str]:
    """Yield the names of the operands that ``entries`` of keep_high keep as they are.

    A pattern may name an operand, its module or a module around it, as a decoder block.
    """
    blocks = [int(name.rpartition(".")[2]) for name in decoder_blocks(model)]
    for entry in entries:
        if (kept := kept_blocks(entry)) is not None:
            end, count = kept
            layers = blocks[:count] if end == "first" else blocks[max(0, len(blocks) - count) :]
            matched = [operand.name for operand in operands if operand.layer in layers]
        elif entry in _KINDS:
            matched = [operand.name for operand in operands if operand.role == _KINDS[entry]]
        else:
            matched = [operand.name for operand in operands if _is_named(operand.name, entry)]
            if not matched:
                raise ConfigError(
                    f"matmuls.keep_high: the pattern {entry!r} matches no linear layer of {type(model).__name__} and "
                    f"no module around one; allowed: {', '.join(_KINDS)}, first, first:N, last, last:N, and patterns "
                    f"of names such as {next(iter(operands)).name}"
                )
        yield from matched


def _is_named(name: str, pattern: str) -> bool:
    while name:
        if fnmatchcase(name, pattern):
            return True
        name = name.rpartition(".")[0]
    return False
