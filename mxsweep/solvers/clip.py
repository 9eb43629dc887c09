"""Search for better scales for a weight's blocks than their largest magnitudes give.

A format's own rule fits the scale to a block's largest element, which then costs all the others their resolution. Here
each block gets, of some scales around that one, the scale of least weighted squared error

    error(s) = sum over j of importance_j (w_j - q(w_j / s) s)^2

Unweighted this is the weight's own error; weighted by the second moment of the input that column j multiplies, the
diagonal of its Hessian, it is the error of the layer's output but for the correlations between inputs.

The scales are those that the format's rule gives for `factor` times the largest magnitude, so that they are always ones
that the format holds. In an asymmetric block the midpoint moves to where the weighted error has no mean, the scales are
tried again there, and so on while that helps, at most `MIDPOINT_STEPS` times.

As a weight method (``ptq=clip``) the weight is then rounded to nearest on those scales; GPTQ begins with them, too.

Legend: w (N, C), in regions [..., k, b, ...] of blocks (blocks.py); scales, midpoints and errors [..., k, 1, ...].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import pieces
from mxsweep.numerics.encoding import Encoded
from mxsweep.numerics.reference.definition import (
    SECOND,
    center_blocks,
    elementwise_inputs,
    tensor_scale_per_block,
    without_inf,
)
from mxsweep.numerics.reference.scales import applied_scale, stored_scale
from mxsweep.solvers.block_scales import (
    BlockScales,
    ScaleAndMidpoint,
    check_weight,
    choose_scales,
    round_with_scale,
)

# The format's own scale is the first, so that no other is taken unless it is better. Larger ones count too: an fp4_e2m1
# block whose largest element becomes 4 instead of 6 has finer steps below it. Wider ranges lowered no loss that was
# measured; the steps are finer than those of a scale with three mantissa bits.
_POWER_FACTORS = (1.0, 0.5, 0.25, 2.0)
_FINE_FACTORS = (1.0, *(2.0 ** (step / 16) for step in range(-16, 17) if step))
MIDPOINT_STEPS = 3


def solve(
    weight: Tensor,
    fmt: MXFormat,
    hessian: Tensor | None,
    options: Mapping[str, Any],
    tensor_amax: Tensor | None = None,
) -> Encoded:
    """Return the weight (N, C) float32 rounded on the scales of least error; see `solvers/methods.py`."""
    return best_scales(weight, fmt, hessian, options, tensor_amax).encode(weight, fmt)


def best_scales(
    weight: Tensor,
    fmt: MXFormat,
    hessian: Tensor | None,
    options: Mapping[str, Any],
    tensor_amax: Tensor | None = None,
) -> BlockScales:
    """Return the scales of least error of the layer's output or of the weight, as `ptq.clip_loss` says."""
    if options["clip_loss"] == "weight":
        return search_scales(weight, fmt, tensor_amax=tensor_amax)
    assert hessian is not None, "clip_loss=output needs second moments"
    return search_scales(weight, fmt, hessian.diagonal(), tensor_amax)


def search_scales(
    w: Tensor, fmt: MXFormat, importance: Tensor | None = None, tensor_amax: Tensor | None = None
) -> BlockScales:
    """Search for each block of `w` (for tiles, each tile) the scale of least weighted squared error.

    No block's error is larger than with the format's own scale. A block that has none (NaN), since it is too large for
    the format's, gets one here where another is in range; a block that holds NaN or Inf does not.

    Args:
        w: (N, C) float32.
        importance: (C,) float32, not negative: what a squared error of a column counts; None for one each.
        tensor_amax: what the per-tensor scale is made from, float32; None for the largest magnitude of `w`.

    Raises:
        ValueError: a shape or dtype that is not allowed, an importance that is negative or not finite, stochastic
            rounding.
    """
    check_weight(w, fmt)
    w = without_inf(w, fmt)
    if importance is None:
        importance = w.new_ones(w.shape[1])
    if importance.shape != w.shape[1:] or not (importance.isfinite() & (importance >= 0)).all():
        raise ValueError(
            f"importance: of shape {tuple(importance.shape)} is not allowed; allowed here: {w.shape[1]} finite numbers "
            "of at least 0"
        )
    weights = importance.to(w).expand(w.shape)

    def search(views: Sequence[Tensor], block_dims: tuple[int, ...]) -> ScaleAndMidpoint:
        x = views[0]
        shape = [1 if dim in block_dims else length for dim, length in enumerate(x.shape)]
        scale, midpoint = x.new_empty(shape), None if fmt.symmetric else x.new_empty(shape)
        targets = [scale] if midpoint is None else [scale, midpoint]
        for parts in pieces([*views, *targets], block_dims):
            best = _search(parts[: len(views)], block_dims, fmt)
            for target, of_piece in zip(parts[len(views) :], best, strict=False):  # a symmetric block has no midpoint
                assert of_piece is not None
                target.copy_(of_piece)
        return scale, midpoint

    return choose_scales(w, fmt, [weights, *elementwise_inputs(w, fmt, None, None, tensor_amax)], search)


def _search(views: Sequence[Tensor], block_dims: tuple[int, ...], fmt: MXFormat) -> ScaleAndMidpoint:
    """Return (stored scale, midpoint or None) for the blocks of x, given (x, importance[, per-tensor scale])."""
    x, importance, *beside = views
    amax, centered, midpoint = center_blocks(x, block_dims, fmt)
    g = tensor_scale_per_block(block_dims, fmt, beside)
    factors = _POWER_FACTORS if fmt.scale_format.is_power_of_two else _FINE_FACTORS
    if fmt.four_over_six:
        factors = (*factors, SECOND)
    candidates = [stored_scale(amax * factor, fmt, g) for factor in factors]
    error, stored = _best(centered, importance, candidates, g, block_dims, fmt)
    if midpoint is None:
        return stored, None
    total = importance.sum(block_dims, keepdim=True)
    for _ in range(MIDPOINT_STEPS):
        residual = centered - round_with_scale(centered, fmt, applied_scale(stored, fmt, g), None)
        mean = residual.mul_(importance).sum(block_dims, keepdim=True) / total
        # A block in which no column counts has no mean (0 / 0), and no reason to move.
        moved = (midpoint + mean.nan_to_num()).to(torch.bfloat16).to(torch.float32)
        moved_error, moved_stored = _best(x - moved, importance, candidates, g, block_dims, fmt)
        better = moved_error < error
        error, stored, midpoint = (
            torch.where(better, new, old)
            for new, old in ((moved_error, error), (moved_stored, stored), (moved, midpoint))
        )
        centered = x - midpoint
    return stored, midpoint


def _best(
    centered: Tensor,
    importance: Tensor,
    candidates: Sequence[Tensor],
    g: Tensor | None,
    block_dims: tuple[int, ...],
    fmt: MXFormat,
) -> tuple[Tensor, Tensor]:
    """Return (error, stored scale) of the candidate of least error, of equal ones the first."""
    best: tuple[Tensor, Tensor] | None = None
    for stored in candidates:
        q = round_with_scale(centered, fmt, applied_scale(stored, fmt, g), None)
        error = q.sub_(centered).square_().mul_(importance).sum(block_dims, keepdim=True)
        error.masked_fill_(error.isnan(), torch.inf)
        if best is None:
            best = error, stored
        else:
            better = error < best[0]
            best = torch.where(better, error, best[0]), torch.where(better, stored, best[1])
    assert best is not None
    return best
