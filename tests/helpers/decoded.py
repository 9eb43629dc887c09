"""Values of encoded weights, to compare them bit for bit."""

from collections.abc import Mapping

from torch import Tensor

from mxsweep.numerics import Encoded, decode


def decoded(weights: Mapping[str, Encoded]) -> dict[str, Tensor]:
    """Return what each stands for, by name."""
    return {name: decode(weight) for name, weight in weights.items()}
