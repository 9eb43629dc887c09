"""Declare which roles the projections of a block have where their names do not say, and how fused weights are laid out.

A name alone tells little: the rows of ``query_key_value`` are q, k and v head by head in one architecture, one after
the other in another, and ``gate_up_proj`` may begin with either. So what is declared is declared for classes of
transformers, and tests compare each with what the class computes. In any other class such a weight is one matrix of
the role ``other``, and nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mxsweep.model.matrices import Rows, WeightMatrix


@dataclass(frozen=True)
class Layout:
    """Lay out the rows of a fused weight: in each of ``groups`` groups, so many of each role, in this order."""

    groups: int
    rows: Mapping[str, int]

    def matrices(self, outputs: int, transposed: bool) -> list[WeightMatrix]:
        """Return the matrices of a weight of so many outputs; none where they are not what is laid out."""
        size = sum(self.rows.values())
        if self.groups * size != outputs:
            return []
        matrices, start = [], 0
        for role, count in self.rows.items():
            matrices.append(WeightMatrix(role, Rows(self.groups, size, start, start + count), transposed))
            start += count
        return matrices


_TRANSFORMERS = "transformers.models"
Declared = str | Callable[[Any], Layout]
"""A role; or what says, given the module that holds the layer, how the layer's weight is laid out."""


def _one_after_the_other(queries: int, keys: int) -> Layout:
    return Layout(1, {"q": queries, "k": keys, "v": keys})


def _head_by_head(heads: int, head_dim: int) -> Layout:
    return Layout(heads, {"q": head_dim, "k": head_dim, "v": head_dim})


def _gpt2(attention: Any) -> Layout:
    width = attention.embed_dim
    if attention.is_cross_attention:  # over another sequence; q_attn has the queries
        return Layout(1, {"k": width, "v": width})
    return _one_after_the_other(width, width)


def _gpt_bigcode(attention: Any) -> Layout:
    if attention.multi_query:
        return _one_after_the_other(attention.embed_dim, attention.kv_dim)
    return _head_by_head(attention.num_heads, attention.head_dim)


def _codegen(attention: Any) -> Layout:
    groups = 4  # the cores of the TPU that it was trained on
    part = attention.num_attention_heads * attention.head_dim // groups
    return Layout(groups, {"q": part, "v": part, "k": part})


def _falcon(attention: Any) -> Layout:
    heads, head_dim = attention.num_heads, attention.head_dim
    if attention.new_decoder_architecture:
        groups = attention.num_kv_heads
        return Layout(groups, {"q": heads // groups * head_dim, "k": head_dim, "v": head_dim})
    if attention.multi_query:
        return _one_after_the_other(heads * head_dim, head_dim)
    return _head_by_head(heads, head_dim)


def _phi3(attention: Any) -> Layout:
    heads = attention.config.num_attention_heads
    return _one_after_the_other(heads * attention.head_dim, attention.num_key_value_heads * attention.head_dim)


def _dbrx(attention: Any) -> Layout:
    head_dim = attention.head_dim
    return _one_after_the_other(attention.num_heads * head_dim, attention.num_key_value_heads * head_dim)


def _gate_then_up(down: str) -> Callable[[Any], Layout]:
    def layout(mlp: Any) -> Layout:
        width = getattr(mlp, down).in_features
        return Layout(1, {"gate": width, "up": width})

    return layout


_GATED: Mapping[str, Declared] = {"gate_up_proj": _gate_then_up("down_proj")}
_GRANITE_SHARED: Mapping[str, Declared] = {"input_linear": _gate_then_up("output_linear"), "output_linear": "down"}
_DENSE: Mapping[str, Declared] = {"dense_h_to_4h": "up", "dense_4h_to_h": "down"}
_NUMBERED: Mapping[str, Declared] = {"fc1": "up", "fc2": "down"}
_W: Mapping[str, Declared] = {"w1": "gate", "w3": "up", "w2": "down"}
_C: Mapping[str, Declared] = {"c_fc": "up", "c_proj": "down"}
_IN_OUT: Mapping[str, Declared] = {"fc_in": "up", "fc_out": "down"}

# For each class, by the folder of transformers that has it, the layers that it holds. MLPs without a gate are
# down(act(up(x))).
_DECLARED: Mapping[str, Mapping[str, Declared]] = {
    "biogpt.BioGptAttention": {"out_proj": "o"},
    "biogpt.BioGptDecoderLayer": _NUMBERED,
    "bloom.BloomAttention": {
        "query_key_value": lambda attention: _head_by_head(attention.num_heads, attention.head_dim),
        "dense": "o",
    },
    "bloom.BloomMLP": _DENSE,
    "codegen.CodeGenAttention": {"qkv_proj": _codegen, "out_proj": "o"},
    "codegen.CodeGenMLP": _IN_OUT,
    "dbrx.DbrxAttention": {"Wqkv": _dbrx, "out_proj": "o"},
    "falcon.FalconAttention": {"query_key_value": _falcon, "dense": "o"},
    "falcon.FalconMLP": _DENSE,
    "glm.GlmMLP": _GATED,
    "glm4.Glm4MLP": _GATED,
    "glm4v.Glm4vTextMLP": _GATED,
    "glm_image.GlmImageTextMLP": _GATED,
    "glm_ocr.GlmOcrTextMLP": _GATED,
    "gpt2.GPT2Attention": {"c_attn": _gpt2, "q_attn": "q", "c_proj": "o"},
    "gpt2.GPT2MLP": _C,
    "gpt_bigcode.GPTBigCodeAttention": {"c_attn": _gpt_bigcode, "c_proj": "o"},
    "gpt_bigcode.GPTBigCodeMLP": _C,
    "gpt_neo.GPTNeoSelfAttention": {"out_proj": "o"},
    "gpt_neo.GPTNeoMLP": _C,
    "gpt_neox.GPTNeoXAttention": {
        "query_key_value": lambda attention: _head_by_head(attention.config.num_attention_heads, attention.head_size),
        "dense": "o",
    },
    "gpt_neox.GPTNeoXMLP": _DENSE,
    "gptj.GPTJAttention": {"out_proj": "o"},
    "gptj.GPTJMLP": _IN_OUT,
    "granitemoehybrid.GraniteMoeHybridMLP": _GRANITE_SHARED,
    "granitemoeshared.GraniteMoeSharedMLP": _GRANITE_SHARED,
    "lfm2.Lfm2Attention": {"out_proj": "o"},
    "lfm2.Lfm2MLP": _W,
    "lfm2_moe.Lfm2MoeAttention": {"out_proj": "o"},
    "lfm2_moe.Lfm2MoeMLP": _W,
    "mpt.MptAttention": {
        "Wqkv": lambda attention: _one_after_the_other(attention.hidden_size, attention.hidden_size),
        "out_proj": "o",
    },
    "nanochat.NanoChatMLP": _NUMBERED,
    "openai.Attention": {
        "c_attn": lambda attention: _one_after_the_other(attention.split_size, attention.split_size),
        "c_proj": "o",
    },
    "openai.MLP": _C,
    "opt.OPTAttention": {"out_proj": "o"},
    "opt.OPTDecoderLayer": _NUMBERED,
    "persimmon.PersimmonAttention": {
        "query_key_value": lambda attention: _head_by_head(attention.num_heads, attention.head_dim),
        "dense": "o",
    },
    "persimmon.PersimmonMLP": _DENSE,
    "phi.PhiAttention": {"dense": "o"},
    "phi.PhiMLP": _NUMBERED,
    "phi3.Phi3Attention": {"qkv_proj": _phi3},
    "phi3.Phi3MLP": _GATED,
    "phi4_multimodal.Phi4MultimodalAttention": {"qkv_proj": _phi3},
    "phi4_multimodal.Phi4MultimodalMLP": _GATED,
    "starcoder2.Starcoder2MLP": _C,
    "xglm.XGLMAttention": {"out_proj": "o"},
    "xglm.XGLMDecoderLayer": _NUMBERED,
}


def declared(holder: nn.Module, layer: str) -> str | Layout | None:
    """Return the role of the layer of this name in the module that holds it, or how its weight is laid out.

    None where nothing is declared.
    """
    if not type(holder).__module__.startswith(f"{_TRANSFORMERS}."):
        return None
    for of_class in type(holder).__mro__:  # attention by another implementation is a subclass in some architectures
        package = of_class.__module__.removeprefix(f"{_TRANSFORMERS}.").partition(".")[0]
        layers = _DECLARED.get(f"{package}.{of_class.__name__}")
        if layers is not None:
            of_layer = layers.get(layer)
            return of_layer(holder) if callable(of_layer) else of_layer
    return None
