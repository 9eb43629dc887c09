"""Compute MX linear layers: a quantized input times a weight that was quantized once.

Legend: x (..., C) input, W (N, C) weight of a linear layer, y (..., N) = Q(x) Q(W)^T + b. Both are quantized along
C, the dimension that the product sums over, so that a block's scales could be factored out of the sum in hardware.
Where the recipe puts the product into another basis, y = Q(x T^T) Q(W T^-1)^T + b (numerics/bases.py).

Several matrices may be fused in W, as q, k and v, each with formats of its own. They are one product as long as their
inputs become the same; where not, each run of neighbours is, whose inputs do.

An MX layer keeps the original parameters beside its own quantized copy of the weight and never changes the original's
values, which is why taking it out is exact: the parent module gets the very same object back (quantize.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import Recipe
from mxsweep.model.decoder import without_numbers
from mxsweep.model.linear_layers import is_transposed
from mxsweep.model.matrices import Matrix, Rows, WeightMatrix
from mxsweep.model.observer import Observer
from mxsweep.model.running_pass import RunningPass
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.bases import Basis
from mxsweep.terminal.errors import ConfigError


class InputQuantizer:
    """Quantize the inputs of linear layers; projections that read the same tensor share one quantized tensor.

    In a Llama block q, k and v read one tensor, and gate and up another, one after the other, so remembering the last
    one is enough. The version counter notices a tensor changed in place; inference tensors have none and are not
    shared.

    Args:
        maxima: what the per-tensor scale of an input is made from, by its first reader; not there: a token's own.
    """

    def __init__(self, recipe: Recipe, maxima: Mapping[str, Tensor] | None = None) -> None:
        self.observer: Observer | None = None  # called with each tensor once, and its first reader
        self._recipe = recipe
        self._maxima = maxima or {}
        self.draws = any(
            fmt.rounding == "stochastic" for fmt in recipe.formats()
        )  # whether random numbers may be drawn
        self._pass = RunningPass()
        self._seen: Tensor | None = None
        # Of the tensor that was last seen.
        self._quantized: dict[tuple[int, MXFormat | None, Basis | None, bool, int], Tensor] = {}

    @contextmanager
    def following(self, model: PreTrainedModel) -> Iterator[None]:
        """Know in each pass of ``model`` which example a token is of, while the context lasts, if anything is drawn."""
        with self._pass.followed(model) if self.draws else nullcontext():
            yield

    def __call__(self, x: Tensor, fmt: MXFormat | None, name: str, basis: Basis | None = None) -> Tensor:
        """Return what a layer multiplies by its weight: x, in the basis and quantized as asked."""
        version = -1 if x.is_inference() else x._version
        key = (version, fmt, basis, torch.is_grad_enabled(), id(self._maxima.get(name)))
        if self._seen is not x or version < 0:
            self._seen, self._quantized = x, {}
        if key not in self._quantized:
            self._quantized[key] = self._quantize(x, fmt, name, basis)
        return self._quantized[key]

    def _quantize(self, x: Tensor, fmt: MXFormat | None, name: str, basis: Basis | None) -> Tensor:
        if basis is not None:
            x = basis.of_input(x)
        if fmt is None:
            return x
        stochastic = fmt.rounding == "stochastic"
        maximum = self._maxima.get(name)
        if maximum is not None:
            maximum = maximum.to(x.device)
        quantized = quantize(
            self._by_example(x, name) if stochastic else x,
            fmt,
            axis=-1,
            backend=self._recipe.backend,
            arithmetic=self._recipe.arithmetic,
            generator=stochastic_key(self._recipe.seed, name) if stochastic else None,
            tensor_dims=(-1,),  # a token's scale must not depend on the tokens beside it
            example_dims=1 if x.dim() > 2 or stochastic else 0,
            tensor_amax=maximum,
        ).view(x.shape)
        if self.observer is not None:
            self.observer("activation", name, x, fmt, quantized, maximum)
        return quantized

    def _by_example(self, x: Tensor, name: str) -> Tensor:
        """Return x (..., C) as (B, ..., C), so that an element's random number is by its place within its example."""
        by_example = self._pass.by_example(x)
        if by_example is None:
            raise ConfigError(
                f"rounding: 'stochastic' is not allowed for the inputs of {name}, which come as {tuple(x.shape)}: "
                "their random numbers would depend on what else is in the batch; allowed: nearest, even, floor, or "
                f"modules={{{without_numbers(name)}: none}}"
            )
        return by_example

    def forget(self) -> None:
        """Let go of the remembered tensors."""
        self._seen, self._quantized = None, {}


@dataclass(frozen=True)
class InputFormat:
    """Say what the input of a matrix becomes before it is multiplied."""

    fmt: MXFormat | None = None
    basis: Basis | None = None


AS_IT_IS = InputFormat()


@dataclass(frozen=True)
class _Product:
    """Hold matrices that are multiplied by one tensor, at once.

    Attributes:
        names: of their operands; the first is the one that observers hear of.
        rows: what they are of the weight; None for all.
    """

    names: Sequence[str]
    rows: Rows | None
    formats: InputFormat


class MXLinear(nn.Module):
    """Multiply quantized inputs by a weight whose matrices were quantized before.

    Args:
        linear: the layer to stand in for; its parameters are shared, not copied.
        matrices: all that are in its weight.

    Attributes:
        weight_mx: (N, C), in the weight's dtype. Another tensor takes its place where a matrix is put in.
        taps: called with every input (..., C) as it is multiplied by a matrix, by the name of the operand.
    """

    def __init__(self, linear: nn.Module, matrices: Sequence[Matrix], inputs: InputQuantizer) -> None:
        super().__init__()
        self.weight, self.bias = cast(nn.Parameter, linear.weight), cast(nn.Parameter | None, linear.bias)
        weight = self.weight.detach()
        self.weight_mx: Tensor
        self.register_buffer("weight_mx", weight.T if is_transposed(linear) else weight, persistent=False)
        self.out_features, self.in_features = self.weight_mx.shape
        self.inputs = inputs
        self.taps: dict[str, Callable[[Tensor], None]] = {}
        self._rows = [cast(WeightMatrix, matrix).rows for matrix in matrices]
        self._put: dict[Rows | None, tuple[str, InputFormat]] = {}
        self._products: list[_Product] = []
        self.train(linear.training)

    def put(
        self, name: str, matrix: Matrix, weight_mx: Tensor | None, activation: MXFormat | None, basis: Basis | None
    ) -> None:
        """Have a matrix stand in for one of the layer's, and its inputs quantized.

        Args:
            name: the operand's, for observers, taps and stochastic rounding.
            weight_mx: (N, C), of the matrix in ``basis``; None for the layer's as it is.
            activation: the input's format, None to leave it.
            basis: that inputs are put into, None to leave them.
        """
        rows = cast(WeightMatrix, matrix).rows
        self._put[rows] = name, InputFormat(activation, basis)
        self._products = self._of_put()
        if weight_mx is not None:
            self.replace(name, weight_mx)

    def matrix(self, name: str) -> Tensor:
        """Return the matrix (N, C) of the operand of this name as it is multiplied; it does not change any more."""
        return self.matrix_in(self.weight_mx, name)

    def buffer_of(self, name: str) -> str:
        """Return the name of the buffer that holds the operand's matrix as it is multiplied."""
        return "weight_mx"

    def matrix_in(self, buffer: Tensor, name: str) -> Tensor:
        """Return the operand's matrix (N, C) in a tensor that is laid out as the buffer, as its gradient is."""
        rows = self._rows_of(name)
        return buffer if rows is None else rows.of_weight(buffer).flatten(0, 1)

    def replace(self, name: str, weight_mx: Tensor) -> None:
        """Have another matrix (N, C) multiplied in the place of the operand's."""
        rows = self._rows_of(name)
        if rows is None:
            self.weight_mx = weight_mx
            return
        changed = self.weight_mx.clone(memory_format=torch.contiguous_format)
        view = rows.of_weight(changed)
        view.copy_(weight_mx.view(view.shape))
        self.weight_mx = changed

    @contextmanager
    def left_out(self, name: str, weight: Tensor) -> Iterator[None]:
        """Multiply unquantized inputs by the operand's original ``weight`` (N, C) while the context lasts."""
        rows, before = self._rows_of(name), self.weight_mx
        put = self._put[rows]
        self.replace(name, weight)
        self._put[rows] = name, AS_IT_IS
        self._products = self._of_put()
        try:
            yield
        finally:
            self.weight_mx, self._put[rows] = before, put
            self._products = self._of_put()

    def _rows_of(self, name: str) -> Rows | None:
        return next(rows for rows, (of_rows, _) in self._put.items() if of_rows == name)

    def _of_put(self) -> list[_Product]:
        """Return the products that the matrices are multiplied in."""
        put = [(rows, *self._put.get(rows, ("", AS_IT_IS))) for rows in self._rows]
        products = []
        for formats, run in groupby(put, key=lambda one: one[2]):
            matrices = list(run)
            first, last = matrices[0][0], matrices[-1][0]
            rows = None if first is None or last is None or len(matrices) == len(put) else first.joined(last)
            products.append(_Product([name for _, name, _ in matrices if name], rows, formats))
        return products

    def forward(self, x: Tensor) -> Tensor:
        if len(self._products) == 1:
            return F.linear(self._input(x, self._products[0]), self.weight_mx, self.bias)
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for product in self._products:
            assert product.rows is not None
            weight = product.rows.of_weight(self.weight_mx).flatten(0, 1)
            bias = None if self.bias is None else product.rows.of_outputs(self.bias).flatten()
            outputs = product.rows.of_outputs(y)
            outputs.copy_(F.linear(self._input(x, product), weight, bias).view(outputs.shape))
        return y

    def _input(self, x: Tensor, product: _Product) -> Tensor:
        if product.formats != AS_IT_IS:
            x = self.inputs(x, product.formats.fmt, product.names[0], product.formats.basis)
        for name in product.names:
            if name in self.taps:
                self.taps[name](x)
        return x

    def extra_repr(self) -> str:
        inputs = ", ".join(dict.fromkeys(str(product.formats.fmt) for product in self._products))
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={inputs}"


def stochastic_key(seed: int, name: str) -> int:
    """Return a 64-bit key for the stochastic rounding of one tensor of a model: the same whatever ran before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
