"""Bundle the weights that are tuned, so that a step moves many at once.

What happens to an element in a step does not depend on others: its ulp, the sign of its gradient, and what it is
rounded to. A model has hundreds of matrices, and on a GPU a few operations on all of their elements take a fraction of
the time that as many on each matrix do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxsweep.calibrate.stages import Matrices
from mxsweep.model.sites import Site
from mxsweep.numerics import Encoded
from mxsweep.solvers.autoround import Begin, Unrounded

BUNDLED = 2**26  # elements of several weights: what a step needs besides is a few times as much in float32


@dataclass(frozen=True)
class Bundle:
    """Hold weights that move at once.

    Attributes:
        whole: all of them.
        parts: each by its name, in the memory of ``whole``.
        dtype: of the matrices that multiply.
    """

    whole: Unrounded
    parts: Mapping[str, Unrounded]
    dtype: torch.dtype

    @staticmethod
    def of(weights: Mapping[str, Unrounded], dtype: torch.dtype) -> Bundle:
        """Return weights bundled, that of one as it is."""
        if len(weights) == 1:
            return Bundle(next(iter(weights.values())), weights, dtype)
        whole, parts = Unrounded.joined(list(weights.values()))
        return Bundle(whole, dict(zip(weights, parts, strict=True)), dtype)

    def step(self, gradients: Mapping[str, Tensor | None], rate: float) -> tuple[dict[str, Tensor], Tensor]:
        """Move the weights by the signs of gradients (N, C), None where all of one is 0.

        Returns:
            The matrices (N, C) that multiply from there on, and whether all numbers of the gradients are finite.
        """
        laid = []
        for name, part in self.parts.items():
            of_part = gradients[name]
            laid.append(part.u.new_zeros(part.u.numel()) if of_part is None else of_part.reshape(-1))
        gradient = torch.cat(laid) if len(laid) > 1 else laid[0]
        self.whole.step(gradient.view(self.whole.u.shape), rate)
        values = self.whole.values().to(self.dtype).view(-1).split([len(one) for one in laid])
        matrices = {
            name: of_one.view(part.u.shape) for (name, part), of_one in zip(self.parts.items(), values, strict=True)
        }
        return matrices, torch.stack(torch.aminmax(gradient)).isfinite().all()  # NaN, where one is


def bundles_of(matrices: Matrices, sites: Sequence[Site], weights: Mapping[str, Encoded], begin: Begin) -> list[Bundle]:
    """Return the weights of ``sites`` on their way to being rounded, in bundles of one format, device and dtype.

    Args:
        matrices: of ``sites``.
        weights: what they are rounded to, by name.
        begin: how far from there they begin.
    """
    bundles: list[Bundle] = []
    open_ones: dict[tuple[Hashable, torch.dtype], dict[str, Unrounded]] = {}
    for site in sites:
        now = matrices.weight(site.name)
        one = Unrounded.of(site.weight().to(now.device).float(), weights[site.name].to(now.device), begin)
        alike = (one.format, one.scales.length, now.device) if one.is_whole else site.name
        mine = open_ones.setdefault((alike, now.dtype), {})
        if mine and sum(other.u.numel() for other in mine.values()) + one.u.numel() > BUNDLED:
            bundles.append(Bundle.of(mine, now.dtype))
            mine = open_ones[alike, now.dtype] = {}
        mine[site.name] = one
    return bundles + [Bundle.of(mine, dtype) for (_, dtype), mine in open_ones.items()]
