"""Put outlier channels into the embedded model, as large models have them.

Large language models grow channels whose values are tens of times larger than those beside them: in what their
norms put out (Dettmers et al., LLM.int8(), arXiv:2208.07339), in their keys, and in what their MLPs multiply
(Xiao et al., SmoothQuant, arXiv:2211.10438; Liu et al., KIVI, arXiv:2402.02750). They are what makes sharing a scale
costly: one large element sets the scale, and the rest of its block rounds to little. A model as small and as
briefly trained as the embedded one grows none, and hardly notices W4A6.

Here such channels are put in by rescaling pairs of neighbouring operations, one up and the other down:

    norm gain  up,  columns of the projections that read it          down
    k rows     up,  q rows of the same head_dim dimension            down   (both dimensions of a rotary pair)
    v rows     up,  columns of o                                     down
    up rows    up,  columns of down                                  down

The factors are powers of two, which floating point multiplies without rounding, so the model answers bit for bit as
before as long as nothing is quantized.

Shapes: H hidden, D head_dim, G query heads to a key-value head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

HIDDEN_EVERY, HIDDEN_FACTOR = 16, 2.0**5
"""One channel in so many of H, and of the MLP's width, is multiplied by so much."""

KEY_FACTOR, VALUE_FACTOR = 2.0**3, 2.0**3
"""Of one rotary pair, and of one value dimension, of every key-value head."""


@torch.no_grad()
def add_outliers(model: LlamaForCausalLM, seed: int) -> None:
    """Put outlier channels into every layer, in place; which ones, ``seed`` says."""
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config  # whose sizes transformers types as optional
    half, kv_heads = config.head_dim // 2, config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            f_h = _factors(config.hidden_size, config.hidden_size // HIDDEN_EVERY, HIDDEN_FACTOR, generator)
            norm.weight.mul_(f_h)
            for reader in readers:
                reader.weight.div_(f_h)
        pairs = [_factors(half, 1, KEY_FACTOR, generator).repeat(2) for _ in range(kv_heads)]
        attention.k_proj.weight.mul_(torch.cat(pairs)[:, None])
        attention.q_proj.weight.div_(_per_query_head(pairs, group)[:, None])
        values = [_factors(config.head_dim, 1, VALUE_FACTOR, generator) for _ in range(kv_heads)]
        attention.v_proj.weight.mul_(torch.cat(values)[:, None])
        attention.o_proj.weight.div_(_per_query_head(values, group))
        f_m = _factors(config.intermediate_size, config.intermediate_size // HIDDEN_EVERY, HIDDEN_FACTOR, generator)
        mlp.up_proj.weight.mul_(f_m[:, None])
        mlp.down_proj.weight.div_(f_m)


def _factors(size: int, outliers: int, factor: float, generator: torch.Generator) -> Tensor:
    factors = torch.ones(size)
    factors[torch.randperm(size, generator=generator)[:outliers]] = factor
    return factors


def _per_query_head(factors: list[Tensor], group: int) -> Tensor:
    """Return each key-value head's factors (D), for each of the query heads that share the head."""
    return torch.cat([head for head in factors for _ in range(group)])
