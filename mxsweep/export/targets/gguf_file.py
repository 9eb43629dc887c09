"""Write and read a GGUF file of a Llama or of a model like it, by the package gguf, without a vocabulary.

llama.cpp pairs the channels of a Llama's heads that are rotated together as neighbours, transformers as halves: rows of
q and k are stored in its order, which moves codes and scales of rows and changes none. A file without a vocabulary is
read by llama.cpp for token ids, and by transformers with the tokenizer of a folder; a vocabulary would claim to split
texts as the tokenizer does, which depends on rules that only llama.cpp's own converter knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mxsweep.export.targets.gguf import NAME
from mxsweep.files.gguf_header import has_package

_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


@dataclass(frozen=True)
class _Architecture:
    """Say what llama.cpp calls a type of model, and whether it has the rows of q and k in pairs of neighbours."""

    name: str
    in_pairs: bool


_ARCHITECTURES = {
    "llama": _Architecture("llama", True),
    "mistral": _Architecture("llama", True),
    "qwen2": _Architecture("qwen2", False),
    "qwen3": _Architecture("qwen3", False),
}
# What a file calls modules of these types, in the model and in each of its blocks.
_OF_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_OF_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def why_not_architecture(config: Mapping[str, Any]) -> str | None:
    """Return why a model of this config has no place in a file; None where it has.

    Args:
        config: what config.json holds.
    """
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES:
        return f"{NAME}: models of type {kind!r} have no place; allowed: {', '.join(_ARCHITECTURES)}"
    for flag in ("attention_bias", "mlp_bias"):
        if config.get(flag):
            return f"{NAME}: {flag}=true has no place; allowed: false"
    if (activation := config.get("hidden_act", "silu")) != "silu":
        return f"{NAME}: hidden_act {activation!r} has no place; allowed: silu"
    if config.get("sliding_window"):
        return f"{NAME}: attention over a sliding window has no place; allowed: attention over all tokens"
    rotary = _rope(config).get("rope_type", "default")
    if rotary != "default":
        return f"{NAME}: rotary frequencies of the kind {rotary!r} have no place; allowed: default"
    return None


def why_not_installed(types: Iterable[str] = ()) -> str | None:
    """Return that the package is missing, or too old for these types of ggml's; None where it is neither."""
    if not has_package():
        return f"{NAME}: needs the package gguf; pip install 'mxsweep[gguf]'"
    import gguf

    unknown = sorted({kind for kind in types if not hasattr(gguf.GGMLQuantizationType, kind)})
    return f"{NAME}: the package gguf that is installed has no {', '.join(unknown)}; allowed: 0.19" if unknown else None


def write_file(file: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], types: Mapping[str, str]) -> int:
    """Write a file, and return the bytes of its tensors.

    Args:
        config: what config.json holds.
        tensors: all of the model's, by transformers' names: what `gguf.tensors` returned, and those that stay as they
            are; of tensors that are tied, one.
        types: ggml's types of packed weights by name of the linear layer, as `gguf.quantization_config` has them.

    Raises:
        ValueError: the architecture has no place, a tensor has no name in it, or the package is missing.
    """
    if problem := why_not_architecture(config) or why_not_installed(types.values()):
        raise ValueError(problem)
    import gguf

    writer = gguf.GGUFWriter(file, _ARCHITECTURES[config["model_type"]].name)
    _write_config(writer, config)
    writer.add_file_type(gguf.LlamaFileType["MOSTLY_NVFP4" if "NVFP4" in types.values() else "MOSTLY_MXFP4_MOE"])
    total = 0
    for ours, tensor in tensors.items():
        kind = types.get(ours.removesuffix(".weight")) or _PLAIN[tensor.dtype if tensor.ndim > 1 else torch.float32]
        heads = _heads_in_pairs(ours, config)
        ordered = tensor if heads is None else _pairs(tensor, heads)
        stored = ordered.detach().cpu().contiguous()
        stored = stored.float() if stored.ndim == 1 else stored.view(torch.uint8)
        writer.add_tensor(stored_name(ours), stored.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
        total += stored.numel() * stored.element_size()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def read_file(
    file: Path, config: Mapping[str, Any], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """Return what `write_file` was given: tensors by transformers' names, and what `quantization_config` returned.

    Args:
        config: what config.json holds.
        dtype: of the model: of one-dimensional tensors, which are stored as float32.

    Raises:
        ValueError: a tensor has a name or a type that none of these files has, or the package is missing.
        OSError: the file cannot be read.
    """
    if problem := why_not_installed():
        raise ValueError(problem)
    import gguf

    plain = {name: of_type for of_type, name in _PLAIN.items()}
    tensors, types = {}, {}
    for stored in gguf.GGUFReader(file).tensors:
        ours, kind = model_name(stored.name), stored.tensor_type.name
        tensor = torch.from_numpy(stored.data.copy())
        if kind in plain:
            tensor = tensor.view(plain[kind])
        else:
            types[ours.removesuffix(".weight")] = kind
        tensor = in_model_order(ours, tensor, config)
        is_scale = ours.endswith(".scale")
        tensors[ours] = tensor if tensor.ndim > 1 or is_scale else tensor.to(dtype)
    return tensors, {"types": types}


def stored_name(name: str) -> str:
    """Return what a file calls a tensor, given transformers' name for it.

    Raises:
        ValueError: it has no name there.
    """
    module, _, part = name.rpartition(".")
    if module in _OF_MODEL:
        return f"{_OF_MODEL[module]}.{part}"
    number, _, inside = module.removeprefix("model.layers.").partition(".")
    if not module.startswith("model.layers.") or not number.isdigit() or inside not in _OF_BLOCK:
        raise ValueError(f"{name}: {NAME}: has no name in a file of such a model")
    return f"blk.{number}.{_OF_BLOCK[inside]}.{part}"


def model_name(name: str) -> str:
    """Return transformers' name for a tensor, given what a file calls it.

    Raises:
        ValueError: no model of ours has such a tensor.
    """
    module, _, part = name.rpartition(".")
    for ours, theirs in _OF_MODEL.items():
        if module == theirs:
            return f"{ours}.{part}"
    for ours, theirs in _OF_BLOCK.items():
        number = module.removeprefix("blk.").removesuffix(f".{theirs}")
        if number.isdigit() and module == f"blk.{number}.{theirs}":
            return f"model.layers.{number}.{ours}.{part}"
    raise ValueError(f"{NAME}: the file holds {name!r}, which is no tensor of such a model")


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


def _heads_in_pairs(name: str, config: Mapping[str, Any]) -> int | None:
    """Return of how many heads the rows of a weight (N, ...) are, where a file has them in pairs; None where not."""
    module, _, part = stored_name(name).rpartition(".")
    key = _HEADS.get(module.rpartition(".")[2])
    if key is None or part != "weight" or not _ARCHITECTURES[config["model_type"]].in_pairs:
        return None
    return int(config.get(key) or config["num_attention_heads"])


def _pairs(rows: Tensor, heads: int) -> Tensor:
    """Order the rows (N, ...) of each head as llama.cpp rotates them."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def in_model_order(name: str, rows: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return the rows (N, ...) of a file's tensor as transformers has them.

    Args:
        name: transformers' for the tensor.
        config: what config.json holds.
    """
    heads = _heads_in_pairs(name, config)
    return rows if heads is None else rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
