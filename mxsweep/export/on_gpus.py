"""Say what a GPU really runs of a packed checkpoint, which may be less than the formats of its recipe say."""

from __future__ import annotations

from collections.abc import Iterable

from mxsweep.formats.export_targets import packing_of
from mxsweep.formats.recipe import LinearFormats

_INPUTS_STAY = "Inputs stay as they are, in 16 bits, and weights are dequantized to be multiplied by them."
_SIMULATED = "transformers dequantizes weights to bfloat16 and simulates the formats of inputs, on any GPU."
_NVFP4 = "NVFP4 by NVFP4: vLLM multiplies so on a Blackwell GPU. Before it inputs stay in 16 bits (W4A16)."
_BY_VLLM = {  # of compressed-tensors' packings, where inputs are quantized, too
    "mxfp4-pack-quantized": (
        "MXFP4 by MXFP4: vLLM multiplies so on a Blackwell GPU. On Hopper inputs stay in 16 bits (W4A16)."
    ),
    "mxfp8-quantized": "MXFP8 by MXFP8: before a Blackwell GPU, vLLM leaves inputs in 16 bits (W8A16).",
    "nvfp4-pack-quantized": _NVFP4,
}
_ELSEWHERE = {
    "quark": "vLLM multiplies in the format on AMD MI350 and newer, and simulates it elsewhere.",
    "modelopt": _NVFP4,
    "gguf": (
        "llama.cpp reads the weights that were measured, and quantizes inputs, which the run left as they are: on a "
        "CPU to Q8_0 (8-bit integers in blocks of 32), on a GPU to Q8_1 or, on Blackwell, to 4 bits. What that changes "
        "was not measured."
    ),
    "auto-round": "Blocks of 16 with e5m3 scales are experimental: no GPU multiplies by them, they are simulated.",
}


def on_gpus(target: str, layers: Iterable[LinearFormats], by_transformers: bool) -> str:
    """Return in sentences what is run of layers of these formats, each with one for its weight.

    Args:
        by_transformers: whether transformers loads a checkpoint of compressed-tensors as the model that it is.
    """
    kinds = dict.fromkeys(layers)
    if target != "gguf" and not any(formats.activation for formats in kinds):
        return _INPUTS_STAY
    if target != "compressed-tensors":
        return _ELSEWHERE[target]
    packings = (packing_of(target, formats.weight).name for formats in kinds if formats.weight and formats.activation)
    said = [_BY_VLLM[name] for name in dict.fromkeys(packings) if name in _BY_VLLM]
    differs = ["What is left out there was measured all the same: the metrics above are of inputs in the format."]
    return " ".join([*said, *differs * bool(said), *[_SIMULATED] * by_transformers])
