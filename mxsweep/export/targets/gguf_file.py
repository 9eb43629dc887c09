"""Write a GGUF file of a Llama, by the package gguf, without a vocabulary.

llama.cpp pairs the channels of a head that are rotated together as neighbours, transformers as halves: rows of q and k
are stored in its order, which moves codes and scales of rows and changes none. A file without a vocabulary is read by
llama.cpp for token ids, and by transformers with the tokenizer of a folder; a vocabulary would claim to split texts as
the tokenizer does, which depends on rules that only llama.cpp's own converter knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mxsweep.export.targets.gguf import NAME

_ARCHITECTURE = "llama"
_HEADS = {"attn_q.weight": "num_attention_heads", "attn_k.weight": "num_key_value_heads"}
_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def why_not_architecture(config: Mapping[str, Any]) -> str | None:
    """Return why a model of this config has no place in a file; None where it has.

    Args:
        config: what config.json holds.
    """
    if config.get("model_type") != _ARCHITECTURE:
        return f"{NAME}: models of type {config.get('model_type')!r} have no place; allowed: {_ARCHITECTURE}"
    for flag in ("attention_bias", "mlp_bias"):
        if config.get(flag):
            return f"{NAME}: {flag}=true has no place; allowed: false"
    kind = _rope(config).get("rope_type", "default")
    if kind != "default":
        return f"{NAME}: rotary frequencies of the kind {kind!r} have no place; allowed: default"
    return None


def write_file(file: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], types: Mapping[str, str]) -> int:
    """Write a file, and return the bytes of its tensors.

    Args:
        config: what config.json holds.
        tensors: all of the model's, by transformers' names: what `gguf.tensors` returned, and those that stay as they
            are; of tensors that are tied, one.
        types: ggml's types of packed weights by name of the linear layer, as `gguf.quantization_config` has them.

    Raises:
        ValueError: the architecture has no place, or a tensor has no name in it.
    """
    import gguf

    if problem := why_not_architecture(config):
        raise ValueError(problem)
    blocks = int(config["num_hidden_layers"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    writer = gguf.GGUFWriter(file, _ARCHITECTURE)
    _write_config(writer, config)
    kinds = gguf.LlamaFileType
    writer.add_file_type(kinds.MOSTLY_NVFP4 if "NVFP4" in types.values() else kinds.MOSTLY_MXFP4_MOE)
    total = 0
    for ours, tensor in tensors.items():
        theirs = names.get_name(ours, try_suffixes=(".weight", ".bias", ".scale"))
        if theirs is None:
            raise ValueError(f"{ours}: {NAME}: has no name in a file of this architecture")
        kind = types.get(ours.removesuffix(".weight")) or _PLAIN[tensor.dtype if tensor.ndim > 1 else torch.float32]
        heads = _HEADS.get(theirs.split(".", 2)[-1])
        ordered = tensor if heads is None else _pairs(tensor, int(config[heads]))
        stored = ordered.detach().cpu().contiguous()
        stored = stored.float() if stored.ndim == 1 else stored.view(torch.uint8)
        writer.add_tensor(theirs, stored.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
        total += stored.numel() * stored.element_size()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def _write_config(writer: Any, config: Mapping[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _pairs(rows: Tensor, heads: int) -> Tensor:
    """Order the rows (N, ...) of each head as llama.cpp rotates them."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
