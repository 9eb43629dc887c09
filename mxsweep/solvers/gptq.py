"""Choose a weight's elements by GPTQ: one column after the other, each making up for the errors before it.

What quantizing a layer's weight w to q costs its output is quadratic, with the Hessian H = 2 x^T x / tokens of inputs:

    loss = sum over rows of (w - q) H (w - q)^T

Rounding to nearest sees the diagonal of H only. GPTQ (Frantar et al., "GPTQ: Accurate post-training quantization for
generative pre-trained transformers", arXiv 2210.17323, section 3) goes through the columns and rounds each after moving
it to where it makes up best for the errors so far, the later columns being free to follow. With H = R R^T, R upper
triangular with the diagonal d, the loss is a sum of squares in which column j's involves columns up to j only,

    loss = sum over j of d_j^2 (v_j - q_j)^2        v_j = w_j - sum over i < j of (R_ij / d_j) (q_i - w_i)

and q_j = round(v_j) makes each the least it can be, given those before. (The paper writes the same with a factor of
H^-1, which needs an inverse more.) The order is free: the inputs of largest second moment first, the "activation order"
of the authors' code, leaves the errors to those that matter least.

Then every column is looked at again, given all others, those after it included: the best q_j is

    round(u_j)        u_j = q_j + ((w - q) H)_j / H_jj

the old one unless that is better, so that the loss only falls (coordinate descent). `SWEEPS` of these cost as much each
as GPTQ itself. Both are one procedure, `_sweep`: values, less what the columns before them changed, on the grid.

Scales are chosen beforehand and stay ("static groups"), so that the order may go across blocks, and feedback is exact
within them. Columns whose input is always zero (dead ones) have no say and are rounded to nearest.

Legend: w (N, C), H (C, C). `_sweep` works on transposed matrices (C, N) in the order of the columns, in groups of
`GROUP`: within one column by column, on all later ones at once when it is done. On a GPU a group is one launch of
gptq.cu, a thread a row.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.encoding import Encoded
from mxsweep.numerics.reference.definition import without_inf
from mxsweep.numerics.reference.scales import AppliedScale
from mxsweep.solvers.block_scales import BlockScales, check_weight, round_with_scale
from mxsweep.solvers.clip import best_scales

log = logging.getLogger(__name__)

GROUP = 128  # columns, as in the paper; at most gptq.cu's MOST_COLUMNS
SWEEPS = 4
_ATTEMPTS = 4  # at a Cholesky factor, each with ten times the damping
_LEAST_RAISED = 1e-6


def solve(
    weight: Tensor,
    fmt: MXFormat,
    hessian: Tensor | None,
    options: Mapping[str, Any],
    tensor_amax: Tensor | None = None,
) -> Encoded:
    """Return the weight (N, C) float32 by GPTQ on searched scales; see `solvers/methods.py`."""
    assert hessian is not None, "GPTQ needs a Hessian"
    scales = best_scales(weight, fmt, hessian, options, tensor_amax)
    values = gptq(weight, hessian, fmt, scales, damping=options["damping"], act_order=options["act_order"])
    return scales.encode_chosen(values, fmt)


def gptq(
    w: Tensor, hessian: Tensor, fmt: MXFormat, scales: BlockScales, *, damping: float = 0.01, act_order: bool = True
) -> Tensor:
    """Choose elements for the weight `w` on the grids of `scales`, of little Hessian-weighted loss.

    Several weights that read the same input can be concatenated along N: rows do not influence each other.

    Args:
        w: (N, C) float32.
        hessian: (C, C) float32, symmetric, positive semidefinite: 2 x^T x / tokens.
        fmt: the format of `scales`; its `rounding` is that of every element. "floor" gets no sweeps after the first
            pass, since they need the nearest value.
        scales: of `w`; a block whose scale is NaN becomes NaN.
        damping: what is added to the Hessian's diagonal, as a share of its mean over live columns. Raised tenfold, at
            most three times and with a warning in the log, while the result has no Cholesky factor.
        act_order: whether columns go by descending diagonal of the Hessian, or as they are.

    Returns:
        (N, C) float32.

    Raises:
        ValueError: a shape, dtype or damping that is not allowed, stochastic rounding, a Hessian that is not finite or
            stays without a Cholesky factor.
    """
    check_weight(w, fmt)
    factored = _factor(hessian, w.shape[1], damping, act_order)
    order = factored.order
    blocks = order // scales.length
    scale = scales.applied(fmt).each(lambda per_block: per_block.T[blocks].contiguous())
    midpoint = None if scales.midpoint is None else scales.midpoint.T[blocks].contiguous()
    has_none = scale.read.isnan()
    grid = _Grid(fmt, scale.each(lambda numbers: numbers.masked_fill(has_none, 1.0)), midpoint)
    target = without_inf(w, fmt).T[order].contiguous().masked_fill_(has_none, 0.0)
    ratios = factored.root.div(factored.root.diagonal()).T.to(torch.float32).contiguous()
    q = _sweep(target, target, ratios, grid)
    if fmt.rounding != "floor":
        damped = factored.damped.to(torch.float32)
        ratios = damped / damped.diagonal()[:, None]
        for _ in range(SWEEPS):
            q = _sweep(torch.addmm(q, ratios, target - q), q, ratios, grid)
    answer = torch.empty_like(w)
    answer[:, order] = q.masked_fill_(has_none, torch.nan).T
    return answer


@dataclass(frozen=True)
class _Factored:
    """Hold a damped Hessian (C, C) float64 in the `order` (C,) of its columns, and its upper triangular root."""

    order: Tensor
    damped: Tensor
    root: Tensor


def _factor(hessian: Tensor, width: int, damping: float, act_order: bool) -> _Factored:
    """Order, damp and factor a Hessian for a weight of `width` columns; raise ValueError where that is not possible."""
    if hessian.shape != (width, width) or hessian.dtype != torch.float32:
        raise ValueError(
            f"hessian: {hessian.dtype} of shape {tuple(hessian.shape)} is not allowed; allowed here: float32 of shape "
            f"({width}, {width})"
        )
    if not 0 <= damping < float("inf"):
        raise ValueError(f"damping: {damping!r} is not allowed; allowed: a number of at least 0")
    if not hessian.isfinite().all():
        raise ValueError("hessian: holds NaN or Inf; allowed: finite numbers")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(width, device=hessian.device)
    mean = diagonal[~dead].double().mean().item() if not dead.all() else 1.0
    h = hessian.double()
    h[dead], h[:, dead] = 0.0, 0.0
    h.diagonal()[dead] = mean
    h = h[order][:, order]
    undamped = h.diagonal().clone()
    for attempt in range(_ATTEMPTS):
        raised = damping if attempt == 0 else max(damping, _LEAST_RAISED) * 10**attempt
        h.diagonal().copy_(undamped + raised * mean)
        # A lower triangular factor of the matrix read backwards is an upper triangular one of the matrix.
        root, failed = torch.linalg.cholesky_ex(h.flip(0, 1))
        if not failed.item():
            if attempt:
                log.warning("a Hessian has no Cholesky factor with damping %g, and was damped by %g", damping, raised)
            return _Factored(order, h, root.flip(0, 1))
    raise ValueError(
        f"hessian: has no Cholesky factor, even with a damping of {raised:g}; allowed: a positive semidefinite matrix"
    )


@dataclass(frozen=True)
class _Grid:
    """Say where each element may lie: a format with scales and, where it has them, midpoints (C, N) float32."""

    fmt: MXFormat
    scale: AppliedScale
    midpoint: Tensor | None

    def quantize(self, value: Tensor, column: int) -> Tensor:
        """Return the values (N,) of one column, each on the grid of its block."""
        midpoint = None if self.midpoint is None else self.midpoint[column]
        return round_with_scale(value, self.fmt, self.scale.each(lambda scale: scale[column]), midpoint)


def _sweep(values: Tensor, before: Tensor, ratios: Tensor, grid: _Grid) -> Tensor:
    """Return q_j = round(values_j - sum over i < j of ratios_ji (q_i - before_i)), one column j after the other.

    Args:
        values, before: (C, N) float32.
        ratios: (C, C) float32, of which what lies below the diagonal is read.

    Returns:
        (C, N) float32.
    """
    values, q = values.clone(), torch.empty_like(values)
    round_group = _round_group_by_kernel if _has_kernel(values.device) else _round_group
    for start in range(0, len(values), GROUP):
        group = slice(start, min(start + GROUP, len(values)))
        change = round_group(values, before, ratios, grid, q, group)
        values[group.stop :].addmm_(ratios[group.stop :, group], change, alpha=-1)
    return q


def _round_group(values: Tensor, before: Tensor, ratios: Tensor, grid: _Grid, q: Tensor, group: slice) -> Tensor:
    """Write the columns of a group to q, given `values` less what the groups before it changed.

    Returns:
        (c, N), q less `before` in the group.
    """
    change = torch.empty_like(values[group])
    for done, column in enumerate(range(group.start, group.stop)):
        value = values[column] - ratios[column, group.start : column] @ change[:done]
        q[column] = grid.quantize(value, column)
        torch.sub(q[column], before[column], out=change[done])
    return change


def _round_group_by_kernel(
    values: Tensor, before: Tensor, ratios: Tensor, grid: _Grid, q: Tensor, group: slice
) -> Tensor:
    """Do the same on a GPU, by gptq.cu."""
    from mxsweep.numerics.kernels.gptq_cuda import round_columns

    change = torch.empty_like(values[group])
    midpoint = None if grid.midpoint is None else grid.midpoint[group]
    by, read = grid.scale.by[group], grid.scale.read[group]
    round_columns(grid.fmt, values[group], before[group], ratios[group, group], by, read, midpoint, q[group], change)
    return change


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    """Return whether gptq.cu can work on a device; say once in the log why not on a GPU where it should."""
    if device.type != "cuda":
        return False
    if problem := backend_problem("cuda"):
        log.warning("GPTQ goes through columns by torch's operations, which is slower: %s", problem)
        return False
    return True
