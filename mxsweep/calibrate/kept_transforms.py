"""Turn the matrices of inputs into tensors that an artefact keeps, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mxsweep.numerics.bases import BlockTransform

_REST = " rest"  # behind the name of an input, where the matrix of its shorter block is kept


def as_tensors(transforms: Mapping[str, BlockTransform]) -> dict[str, Tensor]:
    """Return the matrices by the names of inputs, those of shorter blocks under names of their own."""
    tensors = {name: one.whole for name, one in transforms.items()}
    return tensors | {name + _REST: one.rest for name, one in transforms.items() if one.rest is not None}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, BlockTransform]:
    """Return the transforms of which `as_tensors` made these."""
    names = [name for name in tensors if not name.endswith(_REST)]
    return {name: BlockTransform(tensors[name], tensors.get(name + _REST)) for name in names}
