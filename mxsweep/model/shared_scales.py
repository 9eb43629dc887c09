"""Find the maxima that per-tensor scales of weights are made from where several weights share one.

A runtime that multiplies by q, k and v at once, or by gate and up, has one matrix there, and of a format with a
per-tensor scale (NVFP4) one such scale, made from the largest magnitude of all: ``format.share_tensor_scale=fused``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from mxsweep.formats.recipe import Recipe
from mxsweep.model.operands import Operand
from mxsweep.model.sites import Site


def fused_with(operand: Operand) -> Hashable:
    """Return what is equal for the operands that a runtime has as one matrix: q, k and v, or gate and up of an MLP or
    of one expert.
    """
    if operand.expert is not None:
        return (operand.module_name, operand.expert.expert, operand.role == "down")
    return operand.input


@torch.no_grad()
def shared_maxima(sites: Sequence[Site], recipe: Recipe) -> Mapping[str, Tensor]:
    """Return what the per-tensor scale of a site's weight is made from, by the site's name.

    Returns:
        float32 scalars, of all weights of the group in the basis in which they are quantized. A site that is not there
        has a scale of its own, as all have where the recipe shares none.
    """
    if not recipe.shares_tensor_scales:
        return {}
    groups: dict[Hashable, list[Site]] = defaultdict(list)
    for site in sites:
        if site.formats.weight is not None and site.formats.weight.tensor_scale:
            groups[fused_with(site.operand)].append(site)
    maxima: dict[str, Tensor] = {}
    for group in groups.values():
        if len(group) > 1:
            largest = [site.weight().abs().amax().float() for site in group]
            maximum = torch.stack([one.to(largest[0].device) for one in largest]).amax()
            maxima |= {site.name: maximum.to(one.device) for site, one in zip(group, largest, strict=True)}
    return maxima
