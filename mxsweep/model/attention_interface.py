"""Stand between a model and its attention, in any model that goes through transformers' attention interface.

transformers lets a model's attention be named. Two names are registered here, ``mxsweep_sdpa`` and ``mxsweep_eager``:
each hands a call to the :class:`Listener` of its module, which may change the keys and values before it calls the
function of the plain name. The mask functions of the plain names are registered under ours as well: without that,
transformers hands a custom name no mask and causality is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mxsweep.terminal.errors import ConfigError

PREFIX = "mxsweep_"
STATE = "mxsweep_kv"  # the attribute of an attention module that holds its listener

Attended = tuple[Tensor, Tensor | None]  # output (B, Tq, Hq, D), attention weights (B, Hq, Tq, Tk) or None


@dataclass(frozen=True)
class Call:
    """Hold a call of attention as the model made it, without the query, key and value.

    Attributes:
        module: the attention module.
        mask: (B or 1, 1, Tq, Tk), boolean or added to the scores; None where there is nothing to mask, or where
            ``is_causal`` says what.
        is_causal: whether queries read no later keys where ``mask`` is None and there are several queries.
    """

    module: nn.Module
    mask: Tensor | None
    is_causal: bool
    function: Callable[..., Attended]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Attended:
        """Compute the model's attention, of queries over these keys and values."""
        return self.function(self.module, query, key, value, mask, *self.args, **self.kwargs)


class Listener(Protocol):
    """Stand in for the attention of one module."""

    calls: int  # how often attend was called

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Compute the attention of queries (B, Hq, Tq, D) over keys and values (B, H, Tk, D)."""


def _attend(plain: str) -> Callable[..., Attended]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # transformers' name for it: a model may give it by keyword
        *args: Any,
        **kwargs: Any,
    ) -> Attended:
        listener = getattr(module, STATE, None)
        if listener is None:
            raise RuntimeError(f"{type(module).__name__} attends under {PREFIX}{plain} but was never given formats")
        listener.calls += 1
        # As transformers' function for sdpa decides it; the eager ones read a missing mask as nothing to mask.
        said = kwargs.get("is_causal")
        is_causal = plain == "sdpa" and bool(getattr(module, "is_causal", True) if said is None else said)
        call = Call(module, attention_mask, is_causal, _plain_attention(plain, module), args, kwargs)
        attended: Attended = listener.attend(call, query, key, value)
        return attended

    return attend


def _plain_attention(plain: str, module: nn.Module) -> Callable[..., Attended]:
    """Return the model's function: eager attention is in each model's file, the others in transformers' registry."""
    if plain == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[plain]


for _plain in ("sdpa", "eager"):
    AttentionInterface.register(PREFIX + _plain, _attend(_plain))
    AttentionMaskInterface.register(PREFIX + _plain, ALL_MASK_ATTENTION_FUNCTIONS[_plain])


def attention_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the attention modules of ``model`` by name.

    Raises:
        ConfigError: there are none, or their attention cannot be reached.
    """
    plain = model.config._attn_implementation
    modules = {name: module for name, module in model.named_modules() if _is_attention(module)}
    if plain not in ("sdpa", "eager") or not modules or not model._can_set_attn_implementation():
        raise ConfigError(
            f"kv_quant: the attention of {type(model).__name__} ({plain}) does not go through transformers' attention "
            "interface, so its keys and values cannot be quantized; allowed: kv_quant=none"
        )
    return modules


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx")


@contextmanager
def listening(model: PreTrainedModel, listeners: Mapping[str, Listener]) -> Iterator[None]:
    """Let each attention module of ``model`` hand its calls to its listener while the context lasts.

    Args:
        listeners: one for each name in :func:`attention_modules`.

    Raises:
        ConfigError: on leaving, where the model ran but some listener was never called.
    """
    modules = attention_modules(model)
    plain = model.config._attn_implementation
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    hook = model.register_forward_hook(count)  # after a pass: one that failed may have reached some modules only
    try:
        for name, module in modules.items():
            setattr(module, STATE, listeners[name])
        model.set_attn_implementation(PREFIX + plain)
        yield
    finally:
        model.set_attn_implementation(plain)
        for module in modules.values():
            if hasattr(module, STATE):
                delattr(module, STATE)
        hook.remove()
    unused = [name for name, listener in listeners.items() if forwards and not listener.calls]
    if unused:
        raise ConfigError(f"kv_quant: {len(unused)} attention modules, {unused[0]} first, never quantized a key")
