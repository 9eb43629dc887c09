"""Work out WUSH's matrices: the basis in which a block of a product's operands is best quantized.

Legend, of a block of b channels: x (b) an input and w (b) a row of a weight, from all weights that read the input;
X X^T = E[x x^T] and A^T A = E[w w^T] their second moments over tokens and over rows; H an orthogonal matrix whose
entries are of nearly one size (Hadamard's).

Operands become T x and T^-T w. A quantizer that scales blocks to their largest element makes an error in proportion to
an operand's size, so that of the product is, in the mean, in proportion to E|T x|^2 E|T^-T w|^2 = |T X|^2 |A T^-1|^2
(Frobenius norms), which no T brings below (sum of S)^2, S the singular values of A X. With A X = U S V^T

    T = H S^-1/2 U^T A,   T^-1 = X V S^-1/2 H^T

reaches it: both operands have the second moment H S H^T, which H spreads evenly over the channels of the block
(WUSH, arXiv 2512.00956, whose T is this one; there S^1/2 V^T X^-1 stands for S^-1/2 U^T A). T does not depend on
which roots X and A are.

A channel that is always zero, or weights of low rank, leave a moment without an inverse, and few tokens leave one that
says little: `DAMPING` of its mean diagonal is added to the diagonal. A moment that is all zero says nothing, and the
identity takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxsweep.numerics.hadamard import matrix

DAMPING = 0.01


def wush(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return the matrices T of blocks.

    Args:
        inputs: (n, b, b) float64, finite, E[x x^T] of each block.
        weights: (n, b, b) float64, finite, E[w w^T].

    Returns:
        (n, b, b) float64, on the device of the moments.
    """
    root_x, root_a = (torch.linalg.cholesky(_damped(moment)) for moment in (inputs, weights))  # A is root_a's transpose
    left, values, _ = torch.linalg.svd(root_a.mT @ root_x)
    spread = matrix(inputs.shape[-1], torch.float64, inputs.device)
    return spread @ (values.rsqrt().unsqueeze(-1) * (left.mT @ root_a.mT))


def _damped(moment: Tensor) -> Tensor:
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    identity = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    return torch.where(mean > 0, moment + DAMPING * mean * identity, identity)
