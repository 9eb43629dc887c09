"""Hold the per-tensor scales of inputs fixed: the largest magnitudes that they are made from, given or calibrated.

A token's per-tensor scale (NVFP4) is made from the token's own largest magnitude, where a runtime has one scale for
all tokens that a layer reads, worked out beforehand (``format.activation_scale=static``) or given (a number). What is
larger than the maximum that the scale was made from saturates.

Operands that read one tensor have one maximum, as have those of one module of experts: a token's expert is not known
before it is quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mxsweep.formats.recipe import DYNAMIC, STATIC, Recipe
from mxsweep.model.prepared import Prepared
from mxsweep.model.sites import Site


def fixed_maxima(sites: Sequence[Site], recipe: Recipe, prepared: Prepared) -> Mapping[str, Tensor]:
    """Return what the per-tensor scale of each site's input is made from, float32, by the site's name; empty where a
    token's own maximum is.

    Raises:
        ValueError: ``prepared`` has no maximum of an input.
    """
    if recipe.activation_scale == DYNAMIC:
        return {}
    placed: dict[tuple[str, torch.device], Tensor] = {}
    maxima: dict[str, Tensor] = {}
    for site in (site for site in sites if has_scale(site)):
        name, device = site.input_name, site.operand.parameter.device
        if (name, device) not in placed:
            if recipe.activation_scale != STATIC:
                maximum = torch.tensor(recipe.activation_scale, dtype=torch.float32)
            elif name in prepared.input_maxima:
                maximum = prepared.input_maxima[name]
            else:
                raise ValueError(f"prepared.input_maxima: there is none of {name}, which {site.name} reads")
            placed[name, device] = maximum.to(device)
        maxima[site.name] = placed[name, device]
    return maxima


def has_scale(site: Site) -> bool:
    """Return whether a site's input has a per-tensor scale."""
    return site.formats.activation is not None and site.formats.activation.tensor_scale
