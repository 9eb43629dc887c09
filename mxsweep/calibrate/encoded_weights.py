"""Turn encoded weights into the tensors that an artefact keeps, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mxsweep.model.sites import Site
from mxsweep.numerics import Encoded


def as_tensors(weights: Mapping[str, Encoded]) -> dict[str, Tensor]:
    """Return encoded weights as what an artefact keeps: their tensors, under the operand's name, a slash and theirs."""
    return {f"{name}/{part}": tensor for name, encoded in weights.items() for part, tensor in encoded.tensors().items()}


def from_tensors(kept: Mapping[str, Tensor], sites: Sequence[Site]) -> dict[str, Encoded] | None:
    """Return the weights of exactly these sites that were kept by :func:`as_tensors`; None where they are others'."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in kept.items():
        name, _, part = key.rpartition("/")
        parts.setdefault(name, {})[part] = tensor
    if parts.keys() != {site.name for site in sites}:
        return None
    weights = {}
    for site in sites:
        assert site.formats.weight is not None
        weights[site.name] = Encoded(
            format=site.formats.weight, axis=-1, dtype=site.operand.parameter.dtype, **parts[site.name]
        )
    return weights
