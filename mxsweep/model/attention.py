"""Keys and values in an MX format, in any model whose attention goes through transformers' interfaces.

Legend: B batch, H key-value heads, T tokens, D head_dim. Attention receives keys (after RoPE) and values as
(B, H, T, D); both are quantized along D, whole, before anything reads them, so a token's key and value do not
depend on other tokens or other examples.

transformers lets a model's attention be named. Two names are registered here, ``mxsweep_sdpa`` and
``mxsweep_eager``: each quantizes, then calls the function of the plain name. The mask functions of the plain names
are registered under ours as well: without that, transformers hands a custom name no mask and causality is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mxsweep.errors import ConfigError
from mxsweep.model.observer import Observer
from mxsweep.model.recipe import Recipe
from mxsweep.numerics import MXFormat, quantize

PREFIX = "mxsweep_"
STATE = "mxsweep_kv"  # the attribute of an attention module that says what its keys and values become


@dataclass
class KVQuantizer:
    """What one attention module does to its keys and values, and how often it did; an observer is told of each."""

    recipe: Recipe
    stochastic_key: int
    name: str
    calls: int = 0
    observer: Observer | None = None

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return (
            self._quantize("key", key, self.recipe.key, self.stochastic_key),
            self._quantize("value", value, self.recipe.value, self.stochastic_key + 1),
        )

    def _quantize(self, kind: str, x: Tensor, fmt: MXFormat | None, stochastic_key: int) -> Tensor:
        if fmt is None:
            return x
        # Tokens come before heads, (B, T, H, D), so that an element's index within its example, from which
        # stochastic rounding draws, does not depend on how far the batch is padded.
        x = x.transpose(1, 2)
        y = quantize(
            x,
            fmt,
            axis=-1,
            backend=self.recipe.backend,
            arithmetic=self.recipe.arithmetic,
            generator=stochastic_key if fmt.rounding == "stochastic" else None,
            tensor_dims=(2, 3),
            example_dims=1,
        )
        if self.observer is not None:
            self.observer(kind, self.name, x, fmt, y)
        return y.transpose(1, 2)


def _attend(plain: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        quantizer = getattr(module, STATE, None)
        if quantizer is None:
            raise RuntimeError(f"{type(module).__name__} attends under {PREFIX}{plain} but was never given formats")
        key, value = quantizer(key, value)
        return _plain_attention(plain, module)(module, query, key, value, *args, **kwargs)

    return attend


def _plain_attention(plain: str, module: nn.Module) -> Callable[..., Any]:
    """Eager attention is a function of each model's own file; the others are in transformers' registry."""
    if plain == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[plain]


for _plain in ("sdpa", "eager"):
    AttentionInterface.register(PREFIX + _plain, _attend(_plain))
    AttentionMaskInterface.register(PREFIX + _plain, ALL_MASK_ATTENTION_FUNCTIONS[_plain])


@contextmanager
def quantized_attention(model: PreTrainedModel, recipe: Recipe, module_key: Callable[[str], int]) -> Iterator[int]:
    """Quantize keys and values while the context lasts; yields the number of attention modules.

    Raises:
        ConfigError: the model's attention cannot be reached, or was not reached by any forward pass.
    """
    if recipe.key is None and recipe.value is None:
        yield 0
        return
    plain = model.config._attn_implementation
    modules = {name: module for name, module in model.named_modules() if _is_attention(module)}
    if plain not in ("sdpa", "eager") or not modules or not model._can_set_attn_implementation():
        raise ConfigError(
            f"kv_quant: the attention of {type(model).__name__} ({plain}) does not go through transformers' attention "
            "interface, so its keys and values cannot be quantized; allowed: kv_quant=none"
        )
    quantizers = {name: KVQuantizer(recipe, module_key(name), name) for name in modules}
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    hook = model.register_forward_pre_hook(count)
    try:
        for name, module in modules.items():
            setattr(module, STATE, quantizers[name])
        model.set_attn_implementation(PREFIX + plain)
        yield len(modules)
    finally:
        model.set_attn_implementation(plain)
        for module in modules.values():
            if hasattr(module, STATE):
                delattr(module, STATE)
        hook.remove()
    unused = [name for name, quantizer in quantizers.items() if forwards and not quantizer.calls]
    if unused:
        raise ConfigError(f"kv_quant: {len(unused)} attention modules, {unused[0]} first, never quantized a key")


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx")
