"""Put training layers into a model, and take them out.

A module whose weight is trained through quantized products keeps its place, its class, its parameters and their names:
only what it computes when it is called changes. So optimizers, ``state_dict``, tied weights, DDP and FSDP find the
model as it was, and to take a layer out is to let the module compute again what its class does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.training import LayerFormats, TrainingRecipe
from mxsweep.model.linear_layers import is_transposed
from mxsweep.model.matrices import Rows, WeightMatrix
from mxsweep.model.running_pass import RunningPass
from mxsweep.training.choice import Trained, find_trained
from mxsweep.training.expert_layers import TrainingExperts
from mxsweep.training.products import linear
from mxsweep.training.step import Step
from mxsweep.training.training_pass import TrainingPass, check_examples_are_known, check_length, is_joined, whole_tokens


@contextmanager
def training_layers(model: PreTrainedModel, recipe: TrainingRecipe, step: Step) -> Iterator[list[Trained]]:
    """Compute the products of ``model`` as ``recipe`` says while the context lasts; afterwards it is as before.

    Args:
        model: a Hugging Face causal language model with linear layers, or experts of a declared layout, in its blocks.
        recipe: what the operands become.
        step: where the training is, read in each pass.

    Yields:
        What is changed, with its formats; nothing for a plain recipe.

    Raises:
        ConfigError: as :func:`mxsweep.training.choice.find_trained`. While the context lasts, a pass raises it whose
            sequences do not fit the blocks along them, or in which it cannot be told which example a token is of.
    """
    trained = [] if recipe.is_plain else find_trained(model, recipe)
    passes = TrainingPass(recipe, step, RunningPass())
    of_modules: dict[int, list[Trained]] = {}
    for one in trained:
        of_module = of_modules.setdefault(id(one.operand.module), [])
        if all(one.operand.matrix is not known.operand.matrix for known in of_module):  # not under another name
            of_module.append(one)
    put: list[tuple[nn.Module, str, Any]] = []
    try:
        for of_module in of_modules.values():
            module = of_module[0].operand.module
            kind = TrainingExperts if of_module[0].operand.expert is not None else TrainingLinear
            forward = kind(module, of_module, passes).forward
            # accelerate's hook calls what it found as the module's forward.
            attribute = "_old_forward" if "_hf_hook" in vars(module) else "forward"
            put.append((module, attribute, vars(module).get(attribute)))
            setattr(module, attribute, forward)
        with passes.running.followed(model):
            yield trained
    finally:
        for module, attribute, before in put:
            if before is None:
                delattr(module, attribute)
            else:
                setattr(module, attribute, before)


@dataclass(frozen=True)
class _Part:
    """Hold matrices of a weight that are one product.

    Attributes:
        name: of the first operand among them that the recipe changes; empty where it changes none.
        reads: the name of the first operand that reads the same input.
        rows: what they are of the weight; None for all.
    """

    name: str
    reads: str
    rows: Rows | None
    formats: LayerFormats


class TrainingLinear:
    """Compute what a linear layer answers, by quantized products.

    Args:
        module: an ``nn.Linear`` or ``Conv1D``.
        trained: the operands in its weight that the recipe changes.
    """

    def __init__(self, module: nn.Module, trained: Sequence[Trained], passes: TrainingPass) -> None:
        self.module, self.passes = module, passes
        self.parts = _parts(trained)
        self._is_transposed = is_transposed(module)
        self._whole = whole_tokens(part.formats for part in self.parts)

    @torch.compiler.disable  # what surrounds it is compiled; where a step draws its numbers, no two are alike
    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's answer (..., N) to x (..., C)."""
        weight, bias = cast(Tensor, self.module.weight), cast(Tensor | None, self.module.bias)
        if self._is_transposed:
            weight = weight.T
        read = self._by_example(x)
        outputs = []
        for part in self.parts:
            of_part, of_bias = weight, bias
            if part.rows is not None:
                of_part = part.rows.of_weight(weight).flatten(0, 1)
                of_bias = None if bias is None else part.rows.of_outputs(bias).flatten()
            y = linear(read, of_part, of_bias, self.passes.quantizer(part.formats, part.name, part.reads))
            outputs.append(y if part.rows is None else y.unflatten(-1, (part.rows.groups, -1)))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return y if read is x and y.ndim == x.ndim else y.reshape(*x.shape[:-1], weight.shape[0])

    def _by_example(self, x: Tensor) -> Tensor:
        """Return x (..., C) as (B, T, C); as (T, C) where nothing depends on which example a token is of."""
        by_example = self.passes.running.by_example(x)
        if by_example is None:
            for part in self.parts:
                check_examples_are_known(part.formats, part.name, x)
            return x.reshape(-1, x.shape[-1])
        if by_example.ndim != 3:
            by_example = by_example.reshape(len(by_example), -1, x.shape[-1])
        if by_example.shape[1] % self._whole and torch.is_grad_enabled():
            for part in self.parts:
                check_length(part.formats, part.name, by_example.shape[1])
        return by_example


def _parts(trained: Sequence[Trained]) -> list[_Part]:
    """Return the products that the matrices of a weight are multiplied in, given those that a recipe changes."""
    of_matrix = {one.operand.matrix: one for one in trained}
    matrices = [cast(WeightMatrix, matrix) for matrix in trained[0].operand.of_module]
    parts: list[_Part] = []
    for matrix in matrices:
        one = of_matrix.get(matrix)
        if one is None:
            part = _Part("", "", matrix.rows, LayerFormats())
        else:
            part = _Part(one.operand.name, one.operand.input, matrix.rows, one.formats)
        before = parts[-1] if parts else None
        if before is not None and before.formats == part.formats and is_joined(part.formats):
            assert before.rows is not None and part.rows is not None
            parts[-1] = replace(before, rows=before.rows.joined(part.rows))
        else:
            parts.append(part)
    return [replace(parts[0], rows=None)] if len(parts) == 1 else parts
