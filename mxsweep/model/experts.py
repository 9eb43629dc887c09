"""Multiply quantized tokens by quantized matrices of experts.

All modules of experts that declare their layout (:mod:`mxsweep.model.expert_matrices`) share a contract: called with
tokens, the numbers of each token's experts and their weights, an expert answers down(gate(gate_up(x))), and a token's
answers are added up under its weights. So one stand-in serves all of them. Experts that are called with rows sorted by
expert have another.

Legend: E experts, N outputs and C inputs of a matrix, T tokens of a batch, K experts a token, S = T K pairs of a token
and one of its experts, of which pair t K + k is token t's k-th; H hidden channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mxsweep.model.expert_matrices import ExpertMatrix, expert_matrices, layout_of, oriented
from mxsweep.model.linear import AS_IT_IS, InputFormat, InputQuantizer
from mxsweep.model.matrices import Matrix
from mxsweep.numerics import MXFormat
from mxsweep.numerics.bases import Basis


@dataclass(frozen=True)
class _Product:
    """Hold a part of an expert's product: the outputs whose matrices read one input.

    Attributes:
        names: of the operands among these matrices that a recipe changes.
    """

    expert: int
    outputs: slice
    formats: InputFormat
    names: tuple[str, ...]


ExpertsTap = Callable[[str, Sequence[tuple[tuple[str, ...], Tensor]]], None]
"""Take a parameter's name and, of each expert that a batch reaches, the names of the operands in it that read one
input, and the rows (tokens of the expert, C) of this input."""


class MXExperts(nn.Module):
    """Multiply quantized tokens by matrices of experts that were quantized before.

    Each token is quantized once for all of its experts, and each expert's intermediate result before its ``down``. The
    products are computed expert by expert, and a token's answers added up in the order of its experts.

    Args:
        experts: the module to stand in for; its parameters are shared, not copied, and never changed.

    Attributes:
        tap: called with the inputs of all experts as they are multiplied by the matrices in a parameter, before they
            are; None for nobody.
    """

    def __init__(self, experts: nn.Module, inputs: InputQuantizer) -> None:
        super().__init__()
        self.original: Any
        self.__dict__["original"] = experts  # no submodule: its parameters are registered here under their own names
        for name, parameter in experts.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.inputs = inputs
        layout = layout_of(experts)
        assert layout is not None
        self._layout = layout
        self._matrices: dict[tuple[str, int], list[ExpertMatrix]] = defaultdict(list)
        for matrix in expert_matrices(experts):
            self._matrices[matrix.parameter, matrix.expert].append(matrix)
        self._names: dict[tuple[int, str], str] = {}
        self._located: dict[str, ExpertMatrix] = {}
        self._formats: dict[tuple[int, str], InputFormat] = {}
        self._first_readers: dict[tuple[str, InputFormat], str] = {}
        self.tap: ExpertsTap | None = None
        self.train(experts.training)

    def put(
        self, name: str, matrix: Matrix, weight_mx: Tensor | None, activation: MXFormat | None, basis: Basis | None
    ) -> None:
        """Have a matrix stand in for an expert's, and its inputs quantized.

        Args:
            name: the operand's, for observers.
            weight_mx: (N, C), of the matrix in ``basis``; None for the expert's as it is.
            activation: the input's format, None to leave it.
            basis: that inputs are put into, None to leave them.
        """
        matrix = cast(ExpertMatrix, matrix)
        if weight_mx is not None:
            if self._copy(matrix.parameter) is None:
                original = self.get_parameter(matrix.parameter).detach()
                self.register_buffer(f"{matrix.parameter}_mx", original.clone(), persistent=False)
            self._matrix(matrix).copy_(weight_mx)
        self._names[matrix.expert, matrix.role], self._located[name] = name, matrix
        self._formats[matrix.expert, matrix.role] = InputFormat(activation, basis)
        self._first_readers.setdefault((matrix.parameter, self._formats[matrix.expert, matrix.role]), name)

    @contextmanager
    def left_out(self, name: str, weight: Tensor) -> Iterator[None]:
        """Multiply unquantized inputs by the operand's original ``weight`` (N, C) while the context lasts."""
        matrix = self._located[name]
        formats, quantized = self._formats.pop((matrix.expert, matrix.role)), None
        if self._copy(matrix.parameter) is not None:
            quantized = self._matrix(matrix).clone()
            self._matrix(matrix).copy_(weight)
        try:
            yield
        finally:
            if quantized is not None:
                self._matrix(matrix).copy_(quantized)
            self._formats[matrix.expert, matrix.role] = formats

    def matrix(self, name: str) -> Tensor:
        """Return the matrix (N, C) of the operand of this name as it is multiplied: a view, which changes with it."""
        return self._matrix(self._located[name])

    def buffer_of(self, name: str) -> str:
        """Return the name of the buffer that holds the operand's matrix as it is multiplied."""
        return f"{self.parameter_of(name)}_mx"

    def matrix_in(self, buffer: Tensor, name: str) -> Tensor:
        """Return the operand's matrix (N, C) in a tensor that is laid out as the buffer, as its gradient is."""
        return self._located[name].of(buffer)

    def replace(self, name: str, weight_mx: Tensor) -> None:
        """Have another matrix (N, C) multiplied in the place of the operand's."""
        self.matrix(name).copy_(weight_mx)

    def parameter_of(self, name: str) -> str:
        """Return the name of the parameter that holds an operand."""
        return self._located[name].parameter

    def read_together(self, parameter: str) -> list[tuple[str, ...]]:
        """Return the names of the operands in a parameter, together those that read one input."""
        experts = range(len(self.get_parameter(parameter)))
        products = [product for expert in experts for product in self._products(parameter, expert)]
        return [product.names for product in products if product.names]

    def _copy(self, parameter: str) -> Tensor | None:
        """Return the copy of a parameter in which matrices are quantized; None where there is none yet."""
        return self._buffers.get(f"{parameter}_mx")

    def _matrix(self, matrix: ExpertMatrix) -> Tensor:
        return matrix.of(self.get_buffer(f"{matrix.parameter}_mx"))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the experts' answers (T, H) to tokens (T, H), given experts and weights (T, K) of each."""
        answers = self._answers(hidden_states, top_k_index) * top_k_weights.unsqueeze(-1)
        return answers.sum(dim=1).to(hidden_states.dtype)

    @property
    def _count(self) -> int:
        """Return how many experts there are; a token's expert of this number, or of a larger one, is none."""
        return len(self.get_parameter("down_proj"))

    def _answers(self, x: Tensor, top_k_index: Tensor) -> Tensor:
        """Return what each token's experts (T, K) answer, (T, K, H), to x (T, H), or (T, K, H) of its own for each.

        Where a token has no expert, the answer is zero.
        """
        tokens, chosen = top_k_index.shape
        # Pairs are sorted by expert; a number that no expert has ("none") is at the end.
        numbers, order = top_k_index.reshape(-1).sort(stable=True)
        ends = torch.searchsorted(numbers, torch.arange(self._count, device=numbers.device), right=True).tolist()
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)

        first = "gate_up_proj" if self._layout.has_gate else "up_proj"
        x = self._multiply(first, x, order if x.dim() > 2 else order // chosen, numbers, ends)
        x = self._activated(x)
        # In the order of tokens, in which observers know what is padding.
        x = self._multiply("down_proj", x[back].view(tokens, chosen, -1), order, numbers, ends)
        if getattr(self.original, "has_post_expert_norm", False):
            x = self.original.post_expert_norm(x)
        answers = x[back].view(tokens, chosen, -1)
        if ends[-1] < len(order):
            answers = answers.masked_fill((top_k_index >= self._count).unsqueeze(-1), 0)
        return answers

    def _activated(self, x: Tensor) -> Tensor:
        """Return what ``down`` reads, given gate and up, or up alone."""
        activated: Tensor = self.original._apply_gate(x) if self._layout.has_gate else self.original.act_fn(x)
        return activated

    def _multiply(self, parameter: str, x: Tensor, rows: Tensor, numbers: Tensor, ends: Sequence[int]) -> Tensor:
        """Return what experts answer (S, N) to rows of x, pairs sorted by expert.

        Args:
            x: (..., C).
            rows: of each pair, among those of x.
            numbers: of each pair's expert.
            ends: where each expert's pairs end.
        """
        copy = self._copy(parameter)
        weight = self.get_parameter(parameter) if copy is None else copy
        transposed = self._layout.is_transposed
        x = x.to(weight.dtype)
        inputs: dict[InputFormat, Tensor] = {}
        products: list[tuple[_Product, slice, Tensor]] = []
        begin = 0
        for expert, end in enumerate(ends):
            for product in self._products(parameter, expert) if begin < end else ():
                if product.formats not in inputs:
                    inputs[product.formats] = self._input(parameter, x, product.formats).flatten(0, -2)[rows]
                products.append((product, slice(begin, end), inputs[product.formats][begin:end]))
            begin = end
        if self.tap is not None:
            self.tap(parameter, [(product.names, read) for product, _, read in products])
        out = x.new_zeros(len(rows), weight.shape[2 if transposed else 1])
        for product, pairs, read in products:
            part = oriented(weight, product.expert, transposed)
            out[pairs, product.outputs] = F.linear(read, part[product.outputs])
        if self._layout.has_bias:
            bias = self.get_parameter(f"{parameter}_bias")
            out += bias[numbers.clamp(max=len(bias) - 1)]
        return out

    def _products(self, parameter: str, expert: int) -> list[_Product]:
        """Return the products of an expert, those of matrices that read one input as one."""
        matrices = self._matrices[parameter, expert]
        formats = [self._formats.get((matrix.expert, matrix.role), AS_IT_IS) for matrix in matrices]
        names = [self._names.get((matrix.expert, matrix.role)) for matrix in matrices]
        if len(set(formats)) == 1:
            return [_Product(expert, slice(None), formats[0], tuple(name for name in names if name is not None))]
        return [
            _Product(expert, matrix.rows, of_matrix, () if name is None else (name,))
            for matrix, of_matrix, name in zip(matrices, formats, names, strict=True)
        ]

    def _input(self, parameter: str, x: Tensor, formats: InputFormat) -> Tensor:
        if formats == AS_IT_IS:
            return x
        if x.dim() > 2 and x.shape[1] == 1:
            x = x.squeeze(1)  # one expert a token: (T, 1, C) would be taken for rows that an output layer reads
        return self.inputs(x, formats.fmt, self._first_readers[parameter, formats], formats.basis)

    def extra_repr(self) -> str:
        return f"experts={len(self.get_parameter('down_proj'))}, of a {type(self.original).__name__}"


class MXSortedExperts(MXExperts):
    """Multiply rows that are sorted by expert, as Llama 4's experts do (:class:`ExpertLayout`)."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """Return the answers (E T, H) to rows (E T, H), of which row e T + t is token t's for expert e."""
        x = hidden_states.view(self._count, -1, hidden_states.shape[-1]).transpose(0, 1).contiguous()
        # A row of zeros is answered with zeros, as no expert answers, and does not count as a token that reaches one.
        numbers = torch.arange(self._count, device=x.device).expand(x.shape[:-1])
        index = numbers.masked_fill((x == 0).all(dim=-1), self._count)
        return self._answers(x, index).transpose(0, 1).reshape(hidden_states.shape).to(hidden_states.dtype)

    def _activated(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        activated: Tensor = up * self.original.act_fn(gate)
        return activated


def stand_in_for(experts: nn.Module, inputs: InputQuantizer) -> MXExperts:
    """Return what multiplies quantized tokens in the place of a module of experts."""
    layout = layout_of(experts)
    return (MXSortedExperts if layout is not None and layout.is_sorted else MXExperts)(experts, inputs)
