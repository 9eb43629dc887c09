"""Quantize by Microsoft's library (github.com/microsoft/microxcaling, module `mx`).

The library has two paths: operations of PyTorch in the tensor's dtype, which is what `arithmetic="native"` means, and
its own CUDA kernels in float32 (`custom_cuda=True` there), which is "exact" and needs tensors on a GPU. What
the library has no word for is refused by name, never approximated.
"""

from __future__ import annotations

from torch import Tensor

from mxsweep.formats.backends import BackendUnavailable, microxcaling_problem
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.availability import MICROXCALING_INSTALL


def quantize_microxcaling(x: Tensor, fmt: MXFormat, axis: int, arithmetic: str) -> Tensor:
    """Quantize by the library: return a new tensor of x's shape and dtype, without a gradient.

    Args:
        x: float32, bfloat16 or float16 with at least one dimension; on a GPU for arithmetic "exact".
        fmt: one for which `microxcaling_problem` is None.
        axis: the dimension that blocks extend along; a square tile lies on the last two.
        arithmetic: "native" or "exact".

    Raises:
        BackendUnavailable: the library cannot be imported, has no such format, its CUDA kernels cannot be
            built, or "exact" was asked for a tensor that is not on a GPU.
    """
    if problem := microxcaling_problem(fmt, arithmetic):
        raise BackendUnavailable(problem)
    if arithmetic == "exact" and not x.is_cuda:
        raise BackendUnavailable(
            "backend 'microxcaling' computes arithmetic exact only in its CUDA kernels, and this tensor is on "
            f"{x.device.type}, where it has arithmetic native only"
        )
    try:
        from mx.mx_ops import _quantize_mx
    except ImportError as error:
        raise BackendUnavailable(MICROXCALING_INSTALL) from error
    if arithmetic == "exact":
        _check_kernels()
    if x.numel() == 0:
        return x.clone()
    tile = not isinstance(fmt.block_size, int)
    answer: Tensor = _quantize_mx(
        x,
        fmt.scale_bits,
        fmt.element,
        axes=[-2, -1] if tile else [axis],
        block_size=fmt.block_size[0] if not isinstance(fmt.block_size, int) else fmt.block_size,
        round=fmt.rounding,
        custom_cuda=arithmetic == "exact",
    )
    return answer


def _check_kernels() -> None:
    """Import the library's kernels, which compiles them and can fail in many ways."""
    try:
        import mx.custom_extensions  # noqa: F401
    except Exception as error:
        raise BackendUnavailable(
            f"backend 'microxcaling' with arithmetic exact could not build its CUDA kernels: {error}"
        ) from error
