"""Compute what a mixture's experts answer, by quantized products.

The experts of a layer are one product: the tokens that are for an expert, within each sequence, stand one after the
other, filled up with zeros to the longest (and to whole blocks along tokens), so that blocks of wgrad lie over tokens
of one expert and one sequence, and a gradient does not depend on what else is in the batch.

Legend: B sequences of T tokens, E experts, K experts a token, S = B T K pairs of a token and one of its experts; L
places that each expert has for the tokens of a sequence; N outputs and C inputs of a matrix, H hidden channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mxsweep.formats.training import LayerFormats
from mxsweep.model.expert_matrices import ExpertMatrix, expert_matrices, layout_of
from mxsweep.training.choice import Trained
from mxsweep.training.products import linear
from mxsweep.training.training_pass import TrainingPass, check_examples_are_known, check_length, is_joined, whole_tokens


@dataclass
class _Part:
    """Hold the experts of a parameter that are one product, by their numbers.

    Attributes:
        name: of the first of its matrices, within the module.
        rows: of each expert's outputs.
    """

    name: str
    rows: slice
    formats: LayerFormats
    experts: list[int] = field(default_factory=list)


class TrainingExperts:
    """Compute what a module of experts answers.

    Args:
        module: of a declared layout.
        trained: the experts' matrices that the recipe changes.
    """

    def __init__(self, module: nn.Module, trained: Sequence[Trained], passes: TrainingPass) -> None:
        self.module: Any = module
        self.passes = passes
        layout = layout_of(module)
        assert layout is not None
        self.layout = layout
        operand = trained[0].operand
        self.name = operand.module_name
        self.first = "gate_up_proj" if layout.has_gate else "up_proj"
        formats = {one.operand.matrix.name: one.formats for one in trained}
        self.parts = {
            parameter: _parts([m for m in expert_matrices(module) if m.parameter == parameter], formats)
            for parameter in (self.first, "down_proj")
        }

    @torch.compiler.disable  # as of a linear layer
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the experts' answer: to tokens, each one's experts and their weights, or to rows sorted by expert."""
        return self._sorted(*args, **kwargs) if self.layout.is_sorted else self._chosen(*args, **kwargs)

    @property
    def _formats(self) -> list[LayerFormats]:
        return [part.formats for parts in self.parts.values() for part in parts]

    def _chosen(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the answers (B T, H) to tokens (B T, H), given experts and weights (B T, K) of each."""
        tokens, chosen = top_k_index.shape
        batch = self._batch(hidden_states)
        experts = len(self.module.down_proj)
        groups = torch.arange(tokens, device=top_k_index.device).div(tokens // batch, rounding_mode="floor")
        groups = torch.where(top_k_index < experts, groups.unsqueeze(1) * experts + top_k_index, batch * experts)
        places, length = _places(groups.flatten(), batch * experts, whole_tokens(self._formats))
        # What no expert takes goes to a place behind all others.
        rows = hidden_states.repeat_interleave(chosen, 0)
        x = rows.new_zeros(batch * experts * length + 1, rows.shape[1]).index_put((places,), rows)[:-1]
        taken = torch.zeros(len(x) + 1, dtype=torch.bool, device=x.device).index_fill(0, places, True)[:-1]
        shape = (batch, experts, length, -1)
        y = self._answers(x.view(shape), taken.view(shape)).flatten(0, 2)
        y = y[places.clamp(max=len(y) - 1)]
        if getattr(self.module, "has_post_expert_norm", False):
            y = self.module.post_expert_norm(y)
        y = y.view(tokens, chosen, -1).masked_fill((top_k_index >= experts).unsqueeze(-1), 0)
        return (y * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)

    def _sorted(self, hidden_states: Tensor) -> Tensor:
        """Return the answers (E B T, H) to rows (E B T, H), zeros where a token is not for an expert."""
        experts = len(self.module.down_proj)
        of_experts = hidden_states.view(experts, -1, hidden_states.shape[-1])
        batch = self._batch(of_experts[0])
        x = of_experts.unflatten(1, (batch, -1)).transpose(0, 1)
        for formats in self._formats if torch.is_grad_enabled() else ():
            check_length(formats, self.name, x.shape[2])
        y = self._answers(x, (x != 0).any(-1, keepdim=True))
        return y.transpose(0, 1).reshape(hidden_states.shape).to(hidden_states.dtype)

    def _batch(self, x: Tensor) -> int:
        """Return how many sequences the tokens (B T, H) are of; 1 where that is not known and does not matter."""
        by_example = self.passes.running.by_example(x)
        if by_example is not None:
            return len(by_example)
        for formats in self._formats:
            check_examples_are_known(formats, self.name, x)
        return 1

    def _answers(self, x: Tensor, taken: Tensor) -> Tensor:
        """Return what experts answer (B, E, L, H) to x (B, E, L, H), at the places that are ``taken`` (B, E, L, 1)."""
        x = self._multiply(self.first, x)
        if self.layout.is_sorted:
            gate, up = x.chunk(2, dim=-1)
            x = up * self.module.act_fn(gate)
        else:
            x = self.module._apply_gate(x) if self.layout.has_gate else self.module.act_fn(x)
        return self._multiply("down_proj", x.masked_fill(~taken, 0))  # a bias is no token of any block

    def _multiply(self, parameter: str, x: Tensor) -> Tensor:
        """Return the products (B, E, L, N) of x (B, E, L, C) with the experts' matrices in a parameter."""
        weight = self.module.get_parameter(parameter)
        weight = weight.mT if self.layout.is_transposed else weight
        bias = self.module.get_parameter(f"{parameter}_bias") if self.layout.has_bias else None
        name, parts = f"{self.name}.{parameter}", self.parts[parameter]
        if len(parts) == 1:
            return linear(x, weight, bias, self.passes.quantizer(parts[0].formats, name, name))
        outputs: Tensor | None = None
        for part in parts:
            of_part = f"{name}.{part.name}"
            experts = torch.tensor(part.experts, device=x.device)
            y = linear(
                x[:, experts],
                weight[experts][:, part.rows],
                None if bias is None else bias[experts][:, part.rows],
                self.passes.quantizer(part.formats, of_part, of_part),
            )
            if outputs is None:
                outputs = y.new_zeros(*x.shape[:-1], weight.shape[1])
            outputs[:, experts, :, part.rows] = y
        assert outputs is not None
        return outputs


def _parts(matrices: Sequence[ExpertMatrix], trained: Mapping[str, LayerFormats]) -> list[_Part]:
    """Return the products that the experts' matrices in a parameter are multiplied in.

    An expert's are one where their formats are one; experts whose products are alike are one.

    Args:
        trained: the formats of those that the recipe changes, by their names within the module.
    """
    parts: dict[tuple[str, LayerFormats], _Part] = {}
    for expert in dict.fromkeys(matrix.expert for matrix in matrices):
        of_expert = [matrix for matrix in matrices if matrix.expert == expert]
        formats = [trained.get(matrix.name, LayerFormats()) for matrix in of_expert]
        joined = len(set(formats)) == 1 and (len(of_expert) == 1 or is_joined(formats[0]))
        for matrix, of_matrix in zip(of_expert[:1] if joined else of_expert, formats, strict=False):
            rows = slice(None) if joined else matrix.rows
            part = parts.setdefault((str(rows), of_matrix), _Part(matrix.name, rows, of_matrix))
            part.experts.append(expert)
    return list(parts.values())


def _places(groups: Tensor, count: int, whole: int) -> tuple[Tensor, int]:
    """Return where pairs stand that are of these groups (S,), and how many places each group has.

    Pairs of a group stand in their order. Those of the group ``count`` stand behind the places of all groups.

    Args:
        whole: what the number of places is a multiple of.
    """
    numbers, order = groups.sort(stable=True)
    counts = torch.bincount(numbers, minlength=count + 1)
    begins = counts.cumsum(0) - counts
    within = torch.arange(len(numbers), device=groups.device) - begins[numbers]
    length = max(1, -(-int(counts[:count].max()) // whole)) * whole
    place = torch.where(numbers < count, numbers * length + within, count * length)
    return torch.empty_like(place).index_copy_(0, order, place), length
