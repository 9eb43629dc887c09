"""Say which formats a packed checkpoint has a place for, target by target, and why one has none. Plain data, no torch.

A *target* is a family of loaders that read one kind of file: ``compressed-tensors`` (vLLM, transformers), ``quark``
(vLLM on AMD, transformers), ``modelopt`` (vLLM, TensorRT-LLM), ``gguf`` (llama.cpp), ``auto-round``. A *packing* is one
way in which a target stores weights. Each stands here once; how its bytes are laid out says
:mod:`mxsweep.export.targets`.

What is stored is codes and scales, so that how a weight was rounded has no say. Of an activation nothing is stored but
a scale of its whole tensor: it is quantized by whoever runs the checkpoint, by the rules of mxsweep/config/runtimes.py.

Legend: W (N, C) a weight, blocks along C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mxsweep.formats.mxformat import MXFormat

# e4m3 has the powers of two from 2^-9 to 2^8, and a scale of the whole tensor moves them all.
POWERS_IN_E4M3 = range(-9, 9)


@dataclass(frozen=True)
class Packing:
    """Say how a target stores weights.

    Attributes:
        name: what the target calls it.
        elements: names of element formats.
        scale: the name of the scale format that is stored; scales of others are none.
        group: how many columns share a stored scale. Longer blocks, and tiles, are stored as groups with equal scales.
        tensor_scale: whether a float32 scale of the whole weight is stored beside. Powers of two (`e8m0`) fit under
            one where they span no more than e4m3 has.
        inputs: what activations may be quantized to beside such weights, whatever the roundings.
        plain_input: whether activations may stay as they are.
        columns: what the columns of a weight must be a multiple of, where that is more than a group.
    """

    name: str
    elements: tuple[str, ...]
    scale: str = "e8m0"
    group: int = 32
    tensor_scale: bool = False
    inputs: tuple[MXFormat, ...] = ()
    plain_input: bool = True
    columns: int = 1

    def holds_scale(self, fmt: MXFormat) -> bool:
        """Return whether block scales of a format have a place, by their kind alone."""
        if fmt.scale == self.scale:
            return self.tensor_scale or not fmt.tensor_scale
        return fmt.scale == "e8m0" and self.scale == "e4m3"

    def holds_blocks(self, fmt: MXFormat) -> bool:
        """Return whether groups of columns lie within blocks of a format."""
        columns = fmt.block_size if isinstance(fmt.block_size, int) else fmt.block_size[1]
        return columns % self.group == 0  # of the whole axis (0), any


_INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "mint") for bits in range(2, 9))
_MX = {element: MXFormat(element) for element in ("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3")}
_MXFP4, _MXFP6, _MXFP8 = _MX["fp4_e2m1"], _MX["fp6_e2m3"], _MX["fp8_e4m3"]
_NVFP4, _E5M3 = MXFormat("fp4_e2m1", 16, "e4m3"), MXFormat("fp4_e2m1", 16, "e5m3")

GGUF = "gguf"  # whose checkpoint is one file

PACKINGS: Mapping[str, tuple[Packing, ...]] = {
    "compressed-tensors": (
        Packing("mxfp4-pack-quantized", ("fp4_e2m1",), inputs=(_MXFP4,)),
        Packing("mxfp6-pack-quantized", ("fp6_e2m3",), inputs=(_MXFP6, _MXFP8)),
        Packing("mxfp8-quantized", ("fp8_e4m3",), inputs=(_MXFP8,)),
        Packing("nvfp4-pack-quantized", ("fp4_e2m1",), "e4m3", 16, tensor_scale=True, inputs=(_NVFP4,)),
        Packing("pack-quantized", _INTEGERS),
    ),
    # Quark 0.13 quantizes inputs to fp8_e4m3 in groups, and cannot read weights in it.
    "quark": tuple(
        Packing(element, (element,), inputs=tuple(_MX.values())) for element in _MX if element != "fp8_e4m3"
    ),
    "modelopt": (Packing("NVFP4", ("fp4_e2m1",), "e4m3", 16, tensor_scale=True, inputs=(_NVFP4,)),),
    GGUF: (
        Packing("MXFP4", ("fp4_e2m1",)),
        Packing("NVFP4", ("fp4_e2m1",), "e4m3", 16, tensor_scale=True, columns=64),
    ),
    "auto-round": (
        Packing("nvfp4-e5m3-pack-quantized", ("fp4_e2m1",), "e5m3", 16, inputs=(_E5M3,), plain_input=False),
    ),
}
_EXPERT_PACKINGS = "mxfp4-pack-quantized, mxfp6-pack-quantized, pack-quantized"
TARGET_NAMES = tuple(PACKINGS)  # in the order in which `auto` asks them


def packing_of(target: str, weight: MXFormat) -> Packing:
    """Return how a target stores weights of a format.

    Raises:
        ValueError: it does not; the message says why.
    """
    found = _packing(target, weight)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def why_not(
    target: str,
    weight: MXFormat,
    activation: MXFormat | None = None,
    shape: Sequence[int] | None = None,
    *,
    static_input: bool = False,
) -> str | None:
    """Return why a target cannot hold a linear layer of these formats, in one sentence; None where it can.

    A weight that it can hold by its format may still have values that it cannot: NaN, or powers of two too far apart
    for e4m3. Those the writer refuses.

    Args:
        activation: None for inputs that stay as they are.
        shape: (N, C) of the weight; None where it is not known yet.
        static_input: whether a scale of the whole activation tensor is known before the run, as an NVFP4 checkpoint
            stores it.

    Raises:
        ValueError: there is no such target.
    """
    problem = why_not_weight(target, weight, shape)
    return problem or _why_not_input(target, packing_of(target, weight), activation, static_input)


def why_not_weight(target: str, weight: MXFormat, shape: Sequence[int] | None = None) -> str | None:
    """Return why a target cannot hold a weight of this format and shape, whatever its input; None where it can.

    Raises:
        ValueError: there is no such target.
    """
    packing = _packing(target, weight)
    if isinstance(packing, str):
        return packing
    if shape is not None and len(shape) != 2:
        return f"{target}: a weight of shape {tuple(shape)} has no place; allowed: matrices"
    multiple = max(packing.group, packing.columns)
    if shape is not None and shape[-1] % multiple:
        return (
            f"{target}: {shape[-1]} input channels are no multiple of the {multiple} that {packing.name} takes together"
        )
    return None


def why_not_expert(target: str, weight: MXFormat, activation: MXFormat | None = None) -> str | None:
    """Return why a target cannot hold an expert's weight that it could hold as a linear layer's; None where it can.

    Only of compressed-tensors do transformers read experts. It takes block scales alone: a scale of the tensor is left
    out without a word, and of fp8 blocks the reader fails. It multiplies experts by inputs as they are.
    """
    packing = packing_of(target, weight)
    if target != "compressed-tensors":
        return f"{target}: experts have no place; allowed: target compressed-tensors"
    if packing.tensor_scale or packing.name == "mxfp8-quantized":
        return f"{target}: experts in {packing.name} have no place; allowed: {_EXPERT_PACKINGS}"
    if activation is not None:
        return f"{target}: experts' inputs in {activation} have no place; allowed: inputs that stay as they are"
    return None


def _packing(target: str, weight: MXFormat) -> Packing | str:
    """Return how a target stores weights of a format, or why it does not."""
    if target not in PACKINGS:
        raise ValueError(f"export: {target!r} is no target; allowed: {', '.join(TARGET_NAMES)}")
    packings = PACKINGS[target]
    if not weight.symmetric:
        return f"{target}: midpoints of blocks (symmetric=false) have no place"
    of_element = [packing for packing in packings if weight.element in packing.elements]
    if not of_element:
        held = ", ".join(dict.fromkeys(element for packing in packings for element in packing.elements))
        return f"{target}: elements {weight.element} have no place; allowed: {held}"
    of_scale = [packing for packing in of_element if packing.holds_scale(weight)]
    if not of_scale:
        held = ", ".join(
            f"{packing.scale}{' under a scale of the tensor' if packing.tensor_scale else ''}" for packing in of_element
        )
        over = " under a scale of the tensor" if weight.tensor_scale else ""
        return f"{target}: scales {weight.scale}{over} of {weight.element} have no place; allowed: {held}"
    for packing in of_scale:
        if packing.holds_blocks(weight):
            return packing
    groups = " or ".join(str(packing.group) for packing in of_scale)
    return f"{target}: block_size {weight.block_size} of {weight.element} has no place; allowed: multiples of {groups}"


def _why_not_input(target: str, packing: Packing, activation: MXFormat | None, static_input: bool) -> str | None:
    allowed = ", ".join(map(str, packing.inputs)) or "none"
    if activation is None:
        unquantized = f"{target}: activations beside {packing.name} weights cannot stay as they are; allowed: {allowed}"
        return None if packing.plain_input else unquantized
    of_packing = f"{target}: activations {activation} beside {packing.name} weights"
    if not any(_same(activation, known) for known in packing.inputs):
        return f"{of_packing} have no place; allowed: {allowed}"
    if activation.tensor_scale and not static_input:
        return (
            f"{of_packing} would need the scale of each token, and one fixed scale is all that is stored; allowed: "
            "format.activation_scale=static or a number, or format.tensor_scale=false"
        )
    return None


def _same(activation: MXFormat, known: MXFormat) -> bool:
    """Return whether two formats are alike but for roundings, and for a scale of the tensor over those of blocks."""
    fields = ("element", "block_size", "scale", "scale_bits", "symmetric")
    return all(getattr(activation, field) == getattr(known, field) for field in fields)
