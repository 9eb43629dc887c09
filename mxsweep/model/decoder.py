"""Find the decoder blocks of a model, whatever the model is called.

A block is a child of an outermost ``nn.ModuleList``, as ``model.layers.0`` or ``transformer.h.0``; a list inside a
block holds parts of that block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the decoder blocks by name, in the model's order."""
    return {
        f"{name}.{number}": block for name, blocks in _outermost_lists(model) for number, block in enumerate(blocks)
    }


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
