"""The decoder blocks of a model, whatever it is called."""

from __future__ import annotations

from torch import nn

from mxsweep.formats.recipe import in_decoder_block


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The numbered children of the outermost lists, as ``model.layers.0``; not those of lists inside a block."""
    return {
        f"{name}.{number}": block
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not in_decoder_block(name)
        for number, block in enumerate(module)
    }
