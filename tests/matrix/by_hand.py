"""Compute by hand, in a twin of a model, what mxsweep says that it computes.

Nothing of mxsweep but ``quantize`` is used here. A twin is a second model of the same weights. Weights are overwritten
in it; inputs, keys and values are quantized where torch is called to multiply: a mode hears of every call of a torch
function, and looks which of its arguments is (a part of) a parameter. So it depends on neither the modules of a model
nor their names.

Legend: E experts, N outputs and C inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from mxsweep.numerics import MXFormat, quantize

# Of each function the numbers of the two arguments that it multiplies.
_MULTIPLIED: dict[Any, tuple[int, int]] = {
    F.linear: (0, 1), torch.matmul: (0, 1), Tensor.matmul: (0, 1), Tensor.__matmul__: (0, 1),
    Tensor.__rmatmul__: (1, 0), torch.mm: (0, 1), Tensor.mm: (0, 1), torch.bmm: (0, 1), Tensor.bmm: (0, 1),
    torch.addmm: (1, 2), torch.baddbmm: (1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """Name a parameter that was multiplied, and say along which of its dimensions the product sums."""

    name: str
    shape: tuple[int, ...]
    summed: int


class Products(TorchFunctionMode):
    """Hear of every product with a parameter, and change its other operand.

    Args:
        change: given the name of the parameter, the other operand and the dimension of it that is summed over, returns
            what is multiplied instead; None to listen only.
        attend: given keys and values of ``scaled_dot_product_attention``, returns those that are attended to instead.

    Attributes:
        heard: the products by the parameter's name, in the order of their first.
        attended: how often attention was computed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        change: Callable[[str, Tensor, int], Tensor] | None = None,
        attend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self._names = {parameter.untyped_storage().data_ptr(): name for name, parameter in model.named_parameters()}
        self._change, self._attend = change, attend
        self.heard: dict[str, Product] = {}
        self.attended = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.attended += 1
            if self._attend is not None:
                key, value = self._attend(args[1], args[2])
                args = (args[0], key, value, *args[3:])
        elif func in _MULTIPLIED:
            args = self._multiplied(func, list(args))
        return func(*args, **kwargs)

    def _multiplied(self, func: Any, args: list[Any]) -> tuple[Any, ...]:
        first, second = _MULTIPLIED[func]
        for place, other in ((second, first), (first, second)):
            name = self._names.get(args[place].untyped_storage().data_ptr())
            if name is not None and args[place].ndim > 1:
                # of x (..., C) @ W^T the last of both, of W @ x the last of W and the last but one of x
                of_other = -1 if func is F.linear or place == second else -2
                if of_other == -2 and args[other].ndim == 1:
                    of_other = -1
                self._note(name, args[place], func is not F.linear and place == second)
                if self._change is not None:
                    args[other] = self._change(name, args[other], of_other)
                break
        return tuple(args)

    def _note(self, name: str, weight: Tensor, is_transposed: bool) -> None:
        # The parameter may be stored (N, C) and multiplied as (C, N), or the other way round: its strides tell.
        summed = -1 if weight.stride(-2 if is_transposed else -1) == 1 else -2
        self.heard.setdefault(name, Product(name, tuple(weight.shape), summed))


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits (B, T, V)."""
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def products(model: PreTrainedModel, tokens: Tensor) -> dict[str, Product]:
    """Return what a pass over a text multiplies by, by the parameter's name."""
    with Products(model) as heard:
        logits_of(model, tokens)
    return heard.heard


@torch.no_grad()
def overwrite(model: PreTrainedModel, of: Iterable[Product], fmt: MXFormat) -> None:
    """Overwrite parameters by what they become in a format, along the dimension that their products sum over."""
    for product in of:
        parameter = model.get_parameter(product.name)
        parameter.copy_(quantize(parameter.detach().contiguous(), fmt, axis=product.summed))


def input_changed(names: Collection[str], fmt: MXFormat) -> Callable[[str, Tensor, int], Tensor]:
    """Return what quantizes the operands that the parameters of these names are multiplied by, token by token."""

    def change(name: str, x: Tensor, summed: int) -> Tensor:
        if name not in names:
            return x
        return quantize(x.movedim(summed, -1).contiguous(), fmt, axis=-1, tensor_dims=(-1,)).movedim(-1, summed)

    return change


@contextmanager
def keys_and_values_changed(model: PreTrainedModel, fmt: MXFormat) -> Iterator[Products]:
    """Quantize all keys and values, or the latents that a cache holds instead, while the context lasts.

    A module that expands latents does so in a method of its own, between the cache and the attention. Attention that is
    not computed by torch's function is computed in a function of the model's file.
    """

    def along_heads(x: Tensor) -> Tensor:
        return quantize(x.contiguous(), fmt, axis=-1)

    undo: list[tuple[dict[str, Any], Any]] = []
    latent = [module for module in model.modules() if hasattr(module, "expand_kv")]
    for module in latent:
        module.__dict__["expand_kv"] = _of_changed(module.expand_kv, along_heads)
    for namespace in [] if latent else {id(n): n for n in _files(model)}.values():
        undo.append((namespace, namespace["eager_attention_forward"]))
        namespace["eager_attention_forward"] = _eager(namespace["eager_attention_forward"], along_heads)

    def attend(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return along_heads(key), along_heads(value)

    try:
        with Products(model, attend=None if latent else attend) as heard:
            yield heard
    finally:
        for namespace, function in undo:
            namespace["eager_attention_forward"] = function


def _files(model: nn.Module) -> list[dict[str, Any]]:
    namespaces = [getattr(type(module).forward, "__globals__", {}) for module in model.modules()]
    return [namespace for namespace in namespaces if "eager_attention_forward" in namespace]


def _eager(function: Any, changed: Callable[[Tensor], Tensor]) -> Any:
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(module, query, changed(key), changed(value), *args, **kwargs)

    return attend


def _of_changed(expand: Any, changed: Callable[[Tensor], Tensor]) -> Any:
    return lambda latent, rope_key: expand(changed(latent), changed(rope_key))
