"""Set initial weights from which a small Llama learns to look things up within minutes.

From random weights the model soon learns to answer with some word of the right kind from the story, and then
stays there for thousands of steps: before looking up pays, one layer has to bring together what stands in
one sentence ("Irene put the kettle in the attic") and the next has to compare it with what is asked, and
neither helps without the other. Here both are in place, roughly, at step 0, and the rest is learned:

- every embedding shares one direction, by which the heads of layer 0 look a fixed distance back (a rotary
  embedding turns a query made for position 0 into one for position -n);
- values and outputs of a head are each other's transpose, so that attending copies;
- from layer 1 on queries and keys are the same projection, onto what layer 0 has copied, so that like
  attends to like.

The last two are the mimetic initialization of Trockman and Kolter (arXiv:2305.09828).

Shapes: H hidden, D head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaForCausalLM

LOOK_BACK = (3, 1, 6, 2)
"""How far back the heads of layer 0 look: in "Irene put the kettle in the attic" the nouns are 3 apart, the
name and the place 6."""

EMBEDDING_STD = 0.1
NOISE_STD = 0.02
MLP_STD = 0.05
LOOK_BACK_GAIN = 2.3
"""Sharpens the look back: about four fifths of the attention then falls on the position meant."""

LOOK_BACK_PAIRS = 4
"""The rotary pairs used for it, the fastest, since only they tell neighbouring positions apart."""

COPY_GAIN = 0.5
MATCH_GAIN = 0.8


@torch.no_grad()
def initialize(model: LlamaForCausalLM) -> None:
    """Set every weight of the model but the norms', drawing from torch's global generator."""
    config: Any = model.config  # whose sizes transformers types as optional
    hidden, head_dim, kv_heads = config.hidden_size, config.head_dim, config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    shared_h = torch.randn(hidden).sign()
    embedding = model.model.embed_tokens.weight
    embedding.copy_(EMBEDDING_STD * (torch.randn_like(embedding) + shared_h))
    copied_by_first = _orthonormal_rows(kv_heads * head_dim, hidden)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.normal_(0, NOISE_STD)
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight.normal_(0, MLP_STD)
        layer.mlp.down_proj.weight.zero_()
        copied = copied_by_first if index == 0 else _orthonormal_rows(kv_heads * head_dim, hidden)
        attention.v_proj.weight.add_(copied)
        attention.o_proj.weight.copy_(COPY_GAIN * _per_query_head(copied, head_dim, group).T)
        if index == 0:
            _look_back(model, shared_h / hidden)
        else:
            attention.k_proj.weight.add_(MATCH_GAIN * copied_by_first)
            attention.q_proj.weight.add_(MATCH_GAIN * _per_query_head(copied_by_first, head_dim, group))


def _look_back(model: LlamaForCausalLM, detector_h: torch.Tensor) -> None:
    """Add to layer 0's queries and keys what makes each head look LOOK_BACK positions back."""
    attention = model.model.layers[0].self_attn
    config: Any = model.config
    head_dim = config.head_dim
    half = head_dim // 2
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    group = config.num_attention_heads // config.num_key_value_heads
    for head in range(config.num_attention_heads):
        if head % group == 0:
            phases = 2 * torch.pi * torch.rand(LOOK_BACK_PAIRS)
            radius = (head_dim / LOOK_BACK_PAIRS) ** 0.5
            key = torch.polar(torch.full_like(phases, radius), phases)
            key = torch.cat([key, torch.zeros(half - LOOK_BACK_PAIRS, dtype=key.dtype)])
            _head_rows(attention.k_proj.weight, head // group, head_dim).add_(
                LOOK_BACK_GAIN * torch.outer(torch.cat([key.real, key.imag]), detector_h)
            )
        distance = LOOK_BACK[head % len(LOOK_BACK)]
        query = key * torch.polar(torch.ones(half), -distance * frequencies)
        _head_rows(attention.q_proj.weight, head, head_dim).add_(
            LOOK_BACK_GAIN * torch.outer(torch.cat([query.real, query.imag]), detector_h)
        )


def _head_rows(weight: torch.Tensor, head: int, head_dim: int) -> torch.Tensor:
    return weight[head * head_dim : (head + 1) * head_dim]


def _per_query_head(rows: torch.Tensor, head_dim: int, group: int) -> torch.Tensor:
    """Repeat each key-value head's rows for the query heads that share it."""
    return torch.cat([head for head in rows.split(head_dim) for _ in range(group)])


def _orthonormal_rows(count: int, width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, count))[0].T
