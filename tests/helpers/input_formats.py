"""What the inputs of a quantized layer become, by the names of the operands that they are multiplied by."""

from __future__ import annotations

from mxsweep.model.linear import InputFormat, MXLinear


def input_formats(layer: MXLinear) -> dict[str, InputFormat]:
    """Return the format and the basis of each operand's input."""
    return dict(layer._put.values())
