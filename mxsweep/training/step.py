"""Hold where a training is: what the layers of a model that is trained read in every pass."""

from __future__ import annotations

from dataclasses import dataclass

from mxsweep.training.roles import RoleObserver


@dataclass
class Step:
    """Say where the training is. The loop sets this before each pass; layers read it when they are called.

    Attributes:
        number: of the step; all micro-batches of a step have one.
        first_example: the number, among the examples of the step's batch, of the first of the pass, so that random
            numbers do not depend on how a batch is split.
        observer: told of every operand that is quantized and of every gradient that comes of them; None for nobody.
            Experts are told of together, as ``model.layers.0.mlp.experts.down_proj``.
        validates: whether the pass is of held-out sequences, in which no token's inputs may depend on a later token.
    """

    number: int = 0
    first_example: int = 0
    observer: RoleObserver | None = None
    validates: bool = False
