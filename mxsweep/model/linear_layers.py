"""Tell layers that compute x W^T + b, whose product can be quantized, from layers that only look like it.

A subclass of ``nn.Linear`` may compute anything, and a library that quantizes models may give a layer a ``forward`` of
its own or keep something else in its weight. What a class computes is tried out; what stands in one module's way is
looked for in the module.

Legend: x (..., C) input, W (N, C) weight, b (N,) bias.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mxsweep.numerics.dispatch import DTYPES


def has_matrix(module: nn.Module) -> bool:
    """Return whether a module is a linear layer or an embedding by its class, and has the parameter ``weight``."""
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding) and module._parameters.get("weight") is not None


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module stores its weight (C, N)."""
    return isinstance(module, Conv1D)


def why_not_replaceable(module: nn.Module) -> str | None:
    """Return why no MX layer computes what a module of :func:`has_matrix` does; None where one does."""
    kind: type = type(module)
    if not _is_known(kind) or set(module._parameters) - {"weight", "bias"} or module._buffers or module._modules:
        return f"is a {kind.__name__}, for which there is no MX layer"
    if _has_own_forward(module):
        return f"is a {kind.__name__} with a forward of its own, for which there is no MX layer"
    return why_not_readable(module.weight)


def why_not_readable(weight: nn.Module | Tensor) -> str | None:
    """Return why no MX layer can read a parameter; None where one can."""
    assert isinstance(weight, Tensor)
    if type(weight) is nn.Parameter and type(weight.data) is Tensor and weight.dtype in DTYPES:
        return None
    allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    kept = f"keeps its weight as a {type(weight.data).__name__} of {weight.dtype}"
    return f"{kept}, which no MX layer can read (allowed: {allowed}; see model.dtype)"


def _has_own_forward(module: nn.Module) -> bool:
    if "forward" not in vars(module):
        return False
    # accelerate puts layers on several devices this way; its hook calls the class's own.
    wrapped = vars(module).get("_old_forward") if "_hf_hook" in vars(module) else None
    return getattr(wrapped, "__func__", None) is not type(module).forward


@lru_cache
def _is_known(cls: type) -> bool:
    """Return whether a class computes what ``nn.Linear``, ``Conv1D`` or ``nn.Embedding`` does with the same weight."""
    if cls in (nn.Linear, Conv1D, nn.Embedding):
        return True
    return issubclass(cls, nn.Linear) and all(_computes_linear(cls, bias) for bias in (True, False))


@torch.no_grad()
def _computes_linear(cls: type[nn.Linear], bias: bool) -> bool:
    """Return whether an instance that has what any ``nn.Linear`` has, and nothing else, answers x W^T + b."""
    layer: Any = cls.__new__(cls)
    generator = torch.Generator().manual_seed(0)
    nn.Linear.__init__(layer, 5, 3, bias=bias, device="cpu", dtype=torch.float32)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    for shape in ((4, 5), (2, 4, 5)):
        x = torch.randn(shape, generator=generator)
        try:
            answer = layer.eval()(x)
        except Exception:  # whatever it needs besides, it is no linear layer alone
            return False
        expected = F.linear(x, layer.weight, layer.bias)
        if (
            not isinstance(answer, Tensor)
            or answer.shape != expected.shape
            or not torch.allclose(answer, expected, atol=1e-5)
        ):
            return False
    return True
