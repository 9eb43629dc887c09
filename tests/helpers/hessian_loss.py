"""Measure what a weight method costs: the error of a layer's output."""

from torch import Tensor


def hessian_loss(w: Tensor, q: Tensor, hessian: Tensor) -> float:
    """Return tr((w - q) H (w - q)^T) / tr(w H w^T), in float64: the layer's output error relative to the output."""
    error, weight, h = (w - q).double(), w.double(), hessian.double()
    return float(((error @ h) * error).sum() / ((weight @ h) * weight).sum())
