"""A tiny Llama written as a packed checkpoint, and loaded by plain transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from helpers.packed_weights import COLUMNS
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import decode, encode


def tiny_llama(dtype: torch.dtype, layers: int = 4) -> Any:
    """Return a Llama with random weights, whose head is not tied to its embedding."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=COLUMNS,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def formats_by_layer(model: Any, formats: Sequence[LinearFormats]) -> dict[str, LinearFormats]:
    """Return a format for each linear layer of the decoder blocks, block by block."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {name: formats[int(name.split(".")[2]) % len(formats)] for name in names if name.startswith("model.layers.")}


def write_folder(folder: Path, target: Any, model: Any, formats: dict[str, LinearFormats]) -> None:
    """Quantize a model's weights in place, and write it as a checkpoint that holds them packed."""
    stored = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, of_layer in formats.items():
        assert of_layer.weight is not None
        parameter = model.get_parameter(f"{name}.weight")
        encoded = encode(parameter, of_layer.weight)
        parameter.data.copy_(decode(encoded))
        del stored[f"{name}.weight"]
        under_one = of_layer.activation is not None and of_layer.activation.scale == "e4m3"  # NVFP4
        stored |= target.tensors(name, encoded, input_scale=1.0 if under_one else None)
    config = model.config.to_dict()
    kept = [name for name in linear if name not in formats]
    config["quantization_config"] = target.quantization_config(formats, kept)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def load_folder(folder: Path, dtype: torch.dtype) -> Any:
    """Return the model that plain transformers makes of a folder, every tensor of which has a place."""
    from transformers import AutoModelForCausalLM

    loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return loaded.eval()
