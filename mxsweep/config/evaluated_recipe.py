"""Say in which formats a trained model is evaluated: those of its forward pass, as far as a recipe can say them."""

from __future__ import annotations

from mxsweep.formats.recipe import LinearFormats
from mxsweep.formats.training import LayerFormats, OperandFormat


def evaluated(layer: LayerFormats) -> tuple[LinearFormats, list[str]]:
    """Return the formats of a layer's weight and input in an evaluation, and what of fprop these leave out."""
    left_out = []
    if layer.fprop.hadamard:
        left_out.append(f"fprop's Hadamard rotation (of order {layer.fprop.hadamard}) is left out")
    first, second = layer.fprop.first, layer.fprop.second
    for name, operand in (("inputs", first), ("weights", second)):
        left_out += _beside(name, operand)
    first = layer.by_token.fprop.first
    weight, activation = (None if one is None else one.fmt for one in (second, first))
    if tile := layer.input_tile:
        rows, columns = tile
        left_out.append(
            f"inputs, in tiles of {rows}x{columns} while training, are in blocks of {rows * columns} along each token, "
            "also for the held-out loss: a scale over tokens tells one of those after it, which it is to predict"
        )
    return LinearFormats(weight=weight, activation=activation), left_out


def _beside(name: str, operand: OperandFormat | None) -> list[str]:
    """Return what an operand has beside its format, as sentences."""
    left_out = []
    if operand is not None and operand.prescale != 1:
        left_out.append(f"{name} are not multiplied by {operand.prescale:g} before they are quantized")
    return left_out
