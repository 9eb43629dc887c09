"""Have a small module read tokens as a language model of transformers does, so that a short pass can go through it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import PretrainedConfig


def token_reader(model: Any) -> Any:
    """Return ``model``, which takes hidden states (B, T, 1) by place, taking ids of tokens by name as well."""
    config, forward = PretrainedConfig(vocab_size=7), model.forward

    def read(x: Any = None, *args: Any, input_ids: Any = None, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=forward(input_ids[..., None].float())) if x is None else forward(x, *args)

    model.config, model.device, model.forward = config, torch.device("cpu"), read
    return model
