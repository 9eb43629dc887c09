"""Say of which tensors a kernel may be told where they are, on a GPU as on a CPU, and from where it reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from mxsweep.numerics.kernels.source import VECTOR_BYTES


def is_plain(x: Tensor) -> bool:
    """Return whether a kernel may be launched for x without asking torch's dispatcher, which takes a while.

    Not where something follows operators, or where x stands for other tensors: a compiler, a transform, a mode.
    """
    return type(x) is Tensor and are_plain()


def is_in_memory(x: Tensor) -> bool:
    """Return whether x is plain, and its elements are what its memory holds."""
    return is_plain(x) and x.layout == torch.strided and not x.is_neg()


def are_plain() -> bool:
    """Return whether tensors that this thread makes now are what they seem to be, and nothing follows its operators."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )


def as_vectors(x: Tensor) -> Tensor:
    """Return x, contiguous and from one of the 16-byte steps on that a thread reads."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % VECTOR_BYTES else x
