"""Know of the pass that is running what training layers need: whose examples it reads, and where the training is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from mxsweep.formats.training import LayerFormats, TrainingRecipe
from mxsweep.model.decoder import without_numbers
from mxsweep.model.running_pass import RunningPass
from mxsweep.terminal.errors import ConfigError
from mxsweep.training.quantizing import Quantizer, Remembered
from mxsweep.training.step import Step


@dataclass(frozen=True)
class TrainingPass:
    """Hold what all training layers of a model share.

    Attributes:
        running: knows the examples of the pass.
        forward, backward: what was last made of an input, of which several layers make the same.
    """

    recipe: TrainingRecipe
    step: Step
    running: RunningPass
    forward: Remembered = field(default_factory=Remembered)
    backward: Remembered = field(default_factory=Remembered)

    def quantizer(self, formats: LayerFormats, name: str, reads: str) -> Quantizer:
        """Return what makes a layer's operands in the pass that is running."""
        return Quantizer(
            formats.by_token if self.step.validates else formats,
            name,
            reads,
            backward=self.recipe.backward,
            signs=self.recipe.signs,
            backend=self.recipe.backend,
            arithmetic=self.recipe.arithmetic,
            seed=self.recipe.seed,
            step=self.step.number,
            first_example=self.step.first_example,
            observer=self.step.observer,
            in_forward=self.forward,
            in_backward=self.backward,
        )


def check_examples_are_known(formats: LayerFormats, name: str, x: Tensor) -> None:
    """Refuse formats that need to know which example a token is of, for a layer that reads x, which does not say so."""
    draws = any(operand is not None and operand.fmt.rounding == "stochastic" for _, operand in formats.operands())
    if draws or any(formats.along_tokens()):
        what = "stochastic rounding" if draws else "blocks along tokens"
        raise ConfigError(
            f"matmuls: {what} is not allowed for {name}, whose inputs come as {tuple(x.shape)}: what it answers would "
            f"depend on what else is in the batch; leave it as it is with modules={{{without_numbers(name)}: none}}"
        )


def check_length(formats: LayerFormats, name: str, tokens: int) -> None:
    """Refuse sequences of so many tokens where blocks along tokens would not end with them.

    Blocks of a sequence and blocks of the sequences one after the other are the same only where they do.
    """
    wrong = [(name, size) for name, size in formats.along_tokens() if tokens % size]
    if wrong:
        what, size = wrong[0]
        raise ConfigError(
            f"train.length: sequences of {tokens} tokens do not go with matmuls.{what} of {name}, which takes {size} "
            f"tokens of one sequence together; allowed: multiples of {size}"
        )


def whole_tokens(formats: Iterable[LayerFormats]) -> int:
    """Return what the tokens of a sequence are a multiple of, where blocks along them are whole."""
    return math.lcm(*(size for of_layer in formats for _, size in of_layer.along_tokens()))


def is_joined(formats: LayerFormats) -> bool:
    """Return whether neighbouring matrices of a weight with these formats become the same in one product as in several.

    As operands of fprop, that is, which evaluation quantizes one by one: blocks along the channels do, tiles and a
    weight's own float32 scale do not.
    """
    weight = formats.fprop.second
    return weight is None or (isinstance(weight.fmt.block_size, int) and not weight.fmt.tensor_scale)
