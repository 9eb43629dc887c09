"""Hold what is worked out for a recipe before it is put into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mxsweep.numerics import Encoded
from mxsweep.numerics.bases import BlockTransform


@dataclass(frozen=True)
class Prepared:
    """Hold what was worked out for a recipe beforehand, on calibration data.

    Attributes:
        weights: codes and scales of weights (N, C) by operand name, in the basis and format that the recipe gives
            them, of the dtype of the model's; one that is not there is rounded to nearest.
        key_factors: for each attention module by name, what its keys are divided by, (H, D) float32 powers of two.
        input_maxima: float32 scalars that per-tensor scales of inputs are made from, by :attr:`Site.input_name`.
        input_transforms: what the blocks of inputs are multiplied by, by the same names, where the recipe's rotation
            has matrices of each input's own.
    """

    weights: Mapping[str, Encoded] = field(default_factory=dict)
    key_factors: Mapping[str, Tensor] = field(default_factory=dict)
    input_maxima: Mapping[str, Tensor] = field(default_factory=dict)
    input_transforms: Mapping[str, BlockTransform] = field(default_factory=dict)
