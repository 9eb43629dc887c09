"""Find the decoder blocks of a model, whatever the model is called.

A block is a child of an outermost ``nn.ModuleList``, as ``model.layers.0`` or ``transformer.h.0``, that holds modules
itself and that a text goes through; a list inside a block holds parts of that block. The layers of a vision tower are
no decoder blocks, nor are single projections in a list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from torch import nn
from transformers import PreTrainedModel

from mxsweep.model.probe import probe


def decoder_blocks(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the decoder blocks by name, in the order in which a text goes through them.

    Raises:
        PassFailed: as :func:`mxsweep.model.probe.probe`.
    """
    order = probe(model).order
    blocks = {
        f"{name}.{number}": block
        for name, blocks in _outermost_lists(model)
        for number, block in enumerate(blocks)
        if f"{name}.{number}" in order and next(block.children(), None) is not None
    }
    return {name: blocks[name] for name in sorted(blocks, key=order.__getitem__)}


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    for child_name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield prefix + child_name, child
        else:
            yield from _outermost_lists(child, f"{prefix}{child_name}.")


def block_around(name: str, blocks: Collection[str]) -> str | None:
    """Return the name of the block that the module ``name`` is, or is part of; None where there is none."""
    parts = name.split(".")
    candidates = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next((candidate for candidate in candidates if candidate in blocks), None)


def block_number(block: str | None) -> int | None:
    """Return the number of the block of this name; None without a block."""
    return None if block is None else int(block.rpartition(".")[2])


def without_numbers(name: str) -> str:
    """Return a name with * for its numbers: one pattern for all modules that differ in nothing else."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
