"""Write tiny Llamas as GGUF files, as llama.cpp's converter would, with the package gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

gguf = pytest.importorskip("gguf", reason="gguf is not installed (pip install 'mxsweep[gguf]')")

SPECIAL = ["<pad>", "<s>", "</s>"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), "th"]
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# How the tensors are stored, by the ends of their names; the rest as float32.
TYPES = {"attn_q": "Q8_0", "attn_k": "Q8_0", "attn_v": "Q8_0", "ffn_gate": "Q4_0", "ffn_up": "Q4_0", "output": "F16"}


def tiny_llama(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | more)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def write_gguf(file: Path, model: LlamaForCausalLM, **more: Any) -> dict[str, torch.Tensor]:
    """Write a model as a GGUF file; return the weights that gguf's own `dequantize` gives, by the model's names.

    Args:
        more: `metadata`, name to value, `tensors`, name to array, beside the model's, and `architecture`.
    """
    config, name = model.config, more.get("architecture", "llama")
    writer = gguf.GGUFWriter(file, name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["t h"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    for key, value in more.get("metadata", {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    held = {}
    for ours, weight in model.state_dict().items():
        theirs = _name(ours)
        kind = gguf.GGMLQuantizationType[TYPES.get(theirs.removesuffix(".weight").rpartition(".")[2], "F32")]
        heads = {"attn_q.weight": config.num_attention_heads, "attn_k.weight": config.num_key_value_heads}
        count = heads.get(theirs.partition("blk.")[2].partition(".")[2])
        stored = gguf.quants.quantize(_interleaved(weight, count).numpy(), kind)
        writer.add_tensor(theirs, stored, raw_dtype=kind)
        held[ours] = _halves(torch.from_numpy(np.copy(gguf.quants.dequantize(stored, kind))), count)
    for theirs, array in more.get("tensors", {}).items():
        writer.add_tensor(theirs, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _name(ours: str) -> str:
    for part, name in NAMES.items():
        ours = ours.replace(part, name)
    return ours.replace("model.layers.", "blk.")


def _interleaved(weight: torch.Tensor, heads: int | None) -> torch.Tensor:
    """Order the rows of each head as llama.cpp rotates them, in pairs of neighbours; as they are without heads."""
    if heads is None:
        return weight
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _halves(weight: torch.Tensor, heads: int | None) -> torch.Tensor:
    if heads is None:
        return weight
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()
