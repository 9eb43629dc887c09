"""Describe the Llama that a training from scratch begins with, by its sizes."""

from __future__ import annotations

from functools import lru_cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mxsweep.config.train_config import InitConfig


def llama_config(
    init: InitConfig, length: int, vocabulary: int, begins: int | None = None, ends: int | None = None
) -> LlamaConfig:
    """Return the configuration of a Llama for sequences of ``length`` tokens, its embeddings tied.

    Args:
        vocabulary: how many tokens there are.
        begins, ends: the tokens at a text's beginning and end, where there are such; the latter fills up batches.
    """
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=init.hidden,
        intermediate_size=init.mlp,
        num_hidden_layers=init.layers,
        num_attention_heads=init.heads,
        num_key_value_heads=init.kv_heads,
        head_dim=init.hidden // init.heads,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=begins,
        eos_token_id=ends,
        pad_token_id=ends,
    )


@lru_cache(maxsize=8)
def llama_without_values(init: InitConfig, length: int) -> LlamaForCausalLM:
    """Return such a Llama on the meta device, with a vocabulary of bytes, which its layers do not depend on.

    The same call again returns the same object.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(init, length, 2**8))
    model.tie_weights()
    return model.eval()
