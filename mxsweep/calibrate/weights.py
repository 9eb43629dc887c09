"""The quantized weights of a run, by the method that it asks for.

Legend: W (N, C) a weight in the basis in which it is quantized, H (C, C) the Hessian of its output error.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.sequential import Solver
from mxsweep.config.remedy_config import PTQConfig
from mxsweep.formats.recipe import Recipe, in_decoder_block
from mxsweep.model.linear import Site, find_sites
from mxsweep.numerics import MXFormat
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq
from mxsweep.terminal.progress_callback import Progress, silent


def solver(config: PTQConfig) -> Solver:
    """What solves for a weight on calibration data, for ``ptq=clip`` and ``ptq=gptq``."""

    def solve(weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Tensor:
        importance = hessian.diagonal() if config.clip_loss == "output" else None
        scales = search_scales(weight, fmt, importance)
        if config.method == "clip":
            return scales.quantize(weight, fmt)
        return gptq(weight, hessian, fmt, scales, damping=config.damping, act_order=config.act_order)

    return solve


def weight_sites(model: PreTrainedModel, recipe: Recipe) -> list[Site]:
    """The linear layers whose weights a method chooses: those in the decoder blocks that get a format."""
    sites = find_sites(model, recipe)
    return [site for site in sites if site.formats.weight is not None and in_decoder_block(site.name)]


@torch.no_grad()
def clipped_weights(model: PreTrainedModel, recipe: Recipe, progress: Progress = silent) -> dict[str, Tensor]:
    """Every linear layer's weight in the decoder blocks on the scales of least weight error, in host memory."""
    sites = weight_sites(model, recipe)
    weights = {}
    for done, site in enumerate(sites, 1):
        weights[site.name] = clipped(site.weight(), site.formats.weight).to("cpu")
        progress(done, len(sites))
    return weights


def clipped(weight: Tensor, fmt: MXFormat | None) -> Tensor:
    """A weight on the scales of least weight error, in its dtype."""
    assert fmt is not None
    wide = weight.float()
    return search_scales(wide, fmt).quantize(wide, fmt).to(weight.dtype)
