"""Quantize the weights of a run by the weight method that it asks for.

Legend: W (N, C) a weight in the basis in which it is quantized, H (C, C) the Hessian of its output error.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.sequential import Solver, given
from mxsweep.config.remedy_config import PTQConfig
from mxsweep.formats.recipe import Recipe
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import NOTHING_PREPARED
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics import Encoded, MXFormat
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.methods import load_method
from mxsweep.terminal.progress_callback import Progress, silent


def solver(config: PTQConfig) -> Solver:
    """Return what solves for a weight by the configured method, with the configured options."""
    solve, options = load_method(config.method), config.options

    def with_options(
        weight: Tensor, hessian: Tensor | None, fmt: MXFormat, tensor_amax: Tensor | None = None
    ) -> Encoded:
        return solve(weight, fmt, hessian, options, **given(tensor_amax))

    return with_options


def weight_sites(model: PreTrainedModel, recipe: Recipe, prepared: Prepared) -> list[Site]:
    """Return the linear layers whose weights a method chooses: those in the decoder blocks that get a format.

    Args:
        prepared: with what inputs are multiplied by, where the recipe has matrices of each input's own.
    """
    sites = find_sites(model, recipe, prepared.input_transforms)
    return [site for site in sites if site.formats.weight is not None and site.operand.block is not None]


@torch.no_grad()
def solve_without_data(
    model: PreTrainedModel,
    recipe: Recipe,
    solve: Solver,
    progress: Progress = silent,
    prepared: Prepared = NOTHING_PREPARED,
) -> dict[str, Encoded]:
    """Solve for every linear layer's weight in the decoder blocks by a method that needs no calibration.

    Args:
        prepared: as for :func:`weight_sites`.

    Returns:
        Weights by operand name, of the model's dtype, in host memory.
    """
    sites = weight_sites(model, recipe, prepared)
    maxima = shared_maxima(sites, recipe)
    weights = {}
    for done, site in enumerate(sites, 1):
        weight, fmt = site.weight(), site.formats.weight
        assert fmt is not None
        solution = solve(weight.float(), None, fmt, **given(maxima.get(site.name)))
        weights[site.name] = replace(solution, dtype=weight.dtype).to("cpu")
        progress(done, len(sites))
    return weights


def clipped(weight: Tensor, fmt: MXFormat | None, tensor_amax: Tensor | None = None) -> Encoded:
    """Return a weight on the scales of least weight error, of its dtype.

    Args:
        tensor_amax: what the per-tensor scale is made from, float32; None for the weight's own maximum.
    """
    assert fmt is not None
    wide = weight.float()
    return replace(search_scales(wide, fmt, tensor_amax=tensor_amax).encode(wide, fmt), dtype=weight.dtype)
