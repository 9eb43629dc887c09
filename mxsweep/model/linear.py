"""Compute MX linear layers: a quantized input times a weight that was quantized once.

Legend: x (..., C) input, W (N, C) weight of a linear layer, y (..., N) = Q(x) Q(W)^T + b. Both are quantized along
C, the dimension that the product sums over, so that a block's scales could be factored out of the sum in hardware.
Where the recipe rotates the product, y = Q(x R) Q(W R)^T + b with R orthogonal.

An MX layer keeps the original parameters beside its own quantized copy of the weight and never changes the original's
values, which is why taking it out is exact: the parent module gets the very same object back (quantize.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import Recipe
from mxsweep.model.observer import Observer
from mxsweep.model.running_pass import RunningPass
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError


class InputQuantizer:
    """Quantize the inputs of linear layers; projections that read the same tensor share one quantized tensor.

    In a Llama block q, k and v read one tensor, and gate and up another, one after the other, so remembering the last
    one is enough. The version counter notices a tensor changed in place; inference tensors have none and are not
    shared.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.observer: Observer | None = None  # called with each tensor once, and its first reader
        self._recipe = recipe
        self.draws = any(
            fmt.rounding == "stochastic" for fmt in recipe.formats()
        )  # whether random numbers may be drawn
        self._pass = RunningPass()
        self._seen: Tensor | None = None
        self._quantized: dict[tuple[int, MXFormat | None, bool, bool], Tensor] = {}  # of the tensor that was last seen

    @contextmanager
    def following(self, model: PreTrainedModel) -> Iterator[None]:
        """Know in each pass of ``model`` which example a token is of, while the context lasts."""
        with self._pass.followed(model):
            yield

    def __call__(self, x: Tensor, fmt: MXFormat | None, name: str, rotated: bool = False) -> Tensor:
        """Return what a layer multiplies by its weight: x, rotated and quantized as asked."""
        version = -1 if x.is_inference() else x._version
        key = (version, fmt, rotated, torch.is_grad_enabled())
        if self._seen is not x or version < 0:
            self._seen, self._quantized = x, {}
        if key not in self._quantized:
            self._quantized[key] = self._quantize(x, fmt, name, rotated)
        return self._quantized[key]

    def _quantize(self, x: Tensor, fmt: MXFormat | None, name: str, rotated: bool) -> Tensor:
        if rotated:
            assert self._recipe.rotation is not None
            x = hadamard(x, self._recipe.rotation.block)
        if fmt is None:
            return x
        stochastic = fmt.rounding == "stochastic"
        quantized = quantize(
            self._by_example(x, name) if stochastic else x,
            fmt,
            axis=-1,
            backend=self._recipe.backend,
            arithmetic=self._recipe.arithmetic,
            generator=stochastic_key(self._recipe.seed, name) if stochastic else None,
            tensor_dims=(-1,),  # a token's scale must not depend on the tokens beside it
            example_dims=1 if x.dim() > 2 or stochastic else 0,
        ).view(x.shape)
        if self.observer is not None:
            self.observer("activation", name, x, fmt, quantized)
        return quantized

    def _by_example(self, x: Tensor, name: str) -> Tensor:
        """Return x (..., C) as (B, ..., C), so that an element's random number is by its place within its example."""
        by_example = self._pass.by_example(x)
        if by_example is None:
            raise ConfigError(
                f"rounding: 'stochastic' is not allowed for the inputs of {name}, which come as {tuple(x.shape)}: "
                "their random numbers would depend on what else is in the batch; allowed: nearest, even, floor, or "
                f"modules={{{name}: none}}"
            )
        return by_example

    def forget(self) -> None:
        """Let go of the remembered tensors."""
        self._seen, self._quantized = None, {}


class MXLinear(nn.Module):
    """Multiply a quantized input by a weight that was quantized before.

    Args:
        linear: the layer to stand in for; its parameters are shared, not copied.
        name: the layer's, for observers and stochastic rounding.
        weight_mx: its quantized weight, (N, C), in the weight's dtype; the weight itself where it stays as it is.
        activation: the input's format, None to leave it.
        rotated: whether weight_mx is of the rotated weight, and inputs are to be rotated.

    Attributes:
        tap: called with every input (..., C) as it is multiplied by the weight; None for nobody.
    """

    def __init__(
        self,
        linear: nn.Linear,
        name: str,
        weight_mx: Tensor,
        activation: MXFormat | None,
        inputs: InputQuantizer,
        rotated: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_mx: Tensor
        self.register_buffer("weight_mx", weight_mx, persistent=False)
        self._name, self._activation, self.inputs, self._rotated = name, activation, inputs, rotated
        self.tap: Callable[[Tensor], None] | None = None
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._activation is not None or self._rotated:
            x = self.inputs(x, self._activation, self._name, self._rotated)
        if self.tap is not None:
            self.tap(x)
        return F.linear(x, self.weight_mx, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self._activation}"


def stochastic_key(seed: int, name: str) -> int:
    """Return a 64-bit key for the stochastic rounding of one tensor of a model: the same whatever ran before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
