"""Lay out the codes and scales of weights as each target's loader wants them, a file a target, and read them back.

The module of a target has

    def tensors(name: str, encoded: Encoded, input_scale: float | None = None) -> dict[str, Tensor]
    def decode(name: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype) -> Encoded
    def quantization_config(layers: Mapping[str, LinearFormats], kept: Sequence[str] = ()) -> dict[str, Any]

``tensors`` returns what is stored for the weight of the linear layer ``name``, by full name. ``input_scale`` is what
scales of its input are divided by, where this has a scale of the whole tensor. ``decode`` returns the weight, with
groups as its blocks, from stored tensors by full name, its own among them, and from what ``quantization_config``
returned; ``dtype`` is that of the model's weights. ``quantization_config`` returns what stands so called in
config.json, from the formats by name of the linear layer, each of which has one for its weight, and the linear layers
that stay as they are, lm_head among them where it does.

All raise ValueError for what the target has no place for, and ``decode`` for tensors that do not have the shapes that
the config says, and for a layer that the config does not say to be quantized. What is said of one weight begins with
its name.

Where a target has a place for scales of inputs, its module has

    def input_scale(name: str, stored: Mapping[str, Tensor]) -> float | None

which returns ``input_scale`` as ``tensors`` was given it; None where nothing says.
"""
