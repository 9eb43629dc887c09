"""Compute by one kernel of elementwise.cu each what a model's modules take several of PyTorch's operations for.

An answer has the bits that the operations give (but that a NaN is as good as another), or there is none: each function
returns None where its kernel does not take the tensors, or was found to give other bits. The functions of the same
names that end in ``_by_operations`` define what is computed. On the GPU that is to use them, kernels are tried first:

- `silu_times` and `rotate` once for a dtype, with every number that it has. What they make of an element depends on no
  other one.
- `rms_norm` once for each shape, by which torch chooses the order in which squares are summed. Their means are compared
  in float32, where another order shows in most rows, and there are ``LEAST_ROWS`` or more.
"""

from __future__ import annotations

import functools
import logging
import struct
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.kernels.compile import Kernels, load_kernels, on
from mxsweep.numerics.kernels.plain_tensors import are_plain
from mxsweep.numerics.kernels.source import STORAGE, VECTOR_BYTES, joined_files
from mxsweep.numerics.kernels.trials import count_differing, rows_of_all_sizes, unless_it_fails

log = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16)
LEAST_ROWS = 64  # of an RMS norm
THREADS = 256  # of a thread block
_VECTOR = 8  # elements that a thread reads at once
_ROW_THREADS = 16  # that share a row of an RMS norm
_HELD = 16  # vectors of a row that a thread keeps in registers, at most
_INDEX = 2**31  # elements of a tensor, fewer than
_SPLIT = 8192  # channels from which on torch has several warps sum a row: there the kernel has another order
_PIECES = 8  # in which the norms of a trial are compared

_calls = 0


def call_count() -> int:
    """Return how often a kernel of these did the work of operations in this process so far, trials left out."""
    return _calls


def rms_norm_by_operations(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return weight x / rms(x) of x (..., C) as transformers' Llama computes it."""
    return _divided(x, x.to(torch.float32).pow(2).mean(-1, keepdim=True), weight, epsilon)


def _divided(x: Tensor, means: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return weight x / rms(x), given the means of squares (..., 1)."""
    return weight * (x.to(torch.float32) * torch.rsqrt(means + epsilon)).to(x.dtype)


def silu_times_by_operations(gate: Tensor, up: Tensor) -> Tensor:
    """Return SiLU(gate) up."""
    return F.silu(gate) * up


def rotate_by_operations(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return x (B, H, T, D) turned by the angles (1 or B, T, D) whose cosines and sines are given."""
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cosines.unsqueeze(1) + torch.cat((-x2, x1), dim=-1) * sines.unsqueeze(1)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
    """Return what `rms_norm_by_operations` does; None where that is left to it."""
    channels = x.shape[-1]
    rows = x.numel() // channels if channels else 0
    if rows < LEAST_ROWS or channels >= _SPLIT or channels % _VECTOR or weight.shape != (channels,):
        return None
    if not _take(x, weight):
        return None
    kernels = _kernels(x.dtype, x.device.index, _held(channels))
    try:
        if kernels is None or not _norms_alike(rows, channels, epsilon, x.dtype, x.device.index):
            return None
    except torch.OutOfMemoryError:  # in which there is room for operations, perhaps: it is tried another time
        return None
    return _counted(_launch_norm(kernels, x, weight, epsilon))


def silu_times(gate: Tensor, up: Tensor) -> Tensor | None:
    """Return what `silu_times_by_operations` does; None where that is left to it."""
    if not (_take(gate, up) and gate.shape == up.shape and gate.numel() % _VECTOR == 0):
        return None
    kernels = _kernels(gate.dtype, gate.device.index)
    if kernels is None or not _silu_alike(gate.dtype, gate.device.index):
        return None
    return _counted(_launch_silu(kernels, gate, up))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor | None:
    """Return what `rotate_by_operations` does, laid out in memory as that; None where it is left to it."""
    if not (
        x.dim() == 4
        and min(x.shape[1:3]) > 1  # or its strides could be others that mean the same
        and cosines.shape == sines.shape
        and cosines.shape in ((1, *x.shape[2:]), (x.shape[0], *x.shape[2:]))
        and x.shape[3] % (2 * _VECTOR) == 0
        and _take(x.transpose(1, 2), cosines, sines)
    ):
        return None
    kernels = _kernels(x.dtype, x.device.index)
    if kernels is None or not _rotation_alike(x.dtype, x.device.index):
        return None
    return _counted(_launch_rotation(kernels, x, cosines, sines))


def _counted(y: Tensor) -> Tensor:
    global _calls
    _calls += 1
    return y


def _take(*tensors: Tensor) -> bool:
    """Return whether kernels may read tensors as they lie in memory, and nobody asks for a gradient."""
    first = tensors[0]
    return (
        first.is_cuda
        and first.dtype in DTYPES
        and not torch.is_grad_enabled()
        and are_plain()
        and all(
            type(each) in (Tensor, nn.Parameter)  # a subclass may stand for other tensors
            and each.dtype == first.dtype
            and each.device == first.device
            and each.is_contiguous()
            and not each.is_neg()
            and 0 < each.numel() < _INDEX
            and each.data_ptr() % VECTOR_BYTES == 0
            for each in tensors
        )
    )


def _launch_norm(kernels: Kernels, x: Tensor, weight: Tensor, epsilon: float, means: Tensor | None = None) -> Tensor:
    y, channels = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // channels
    with on(x.device):
        kernels.launch(
            "rms_norm", rows * _ROW_THREADS, x.data_ptr(), weight.data_ptr(), y.data_ptr(),
            0 if means is None else means.data_ptr(), rows, channels, _factor(rows, channels), _bits(epsilon),
        )  # fmt: skip
    return y


def _launch_silu(kernels: Kernels, gate: Tensor, up: Tensor) -> Tensor:
    y, vectors = torch.empty_like(gate), gate.numel() // _VECTOR
    with on(gate.device):
        kernels.launch("silu_times", vectors, gate.data_ptr(), up.data_ptr(), y.data_ptr(), vectors)
    return y


def _launch_rotation(kernels: Kernels, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    _, heads, tokens, dim = x.shape
    y, half = torch.empty_like(x), dim // (2 * _VECTOR)
    vectors = x.numel() // (2 * _VECTOR)
    with on(x.device):
        kernels.launch(
            "rotary", vectors, x.data_ptr(), cosines.data_ptr(), sines.data_ptr(), y.data_ptr(), vectors, half, heads,
            tokens, int(cosines.shape[0] > 1),
        )  # fmt: skip
    return y


def _bits(value: float) -> int:
    """Return the bits of a float32."""
    return int.from_bytes(struct.pack("<f", value), "little")


@functools.lru_cache(maxsize=4096)
def _factor(rows: int, channels: int) -> int:
    """Return the bits of what torch's mean multiplies a row's sum by: a quotient of two float32."""
    return _bits((torch.tensor(rows, dtype=torch.float32) / torch.tensor(rows * channels, dtype=torch.float32)).item())


def _held(channels: int) -> int:
    vectors = -(-channels // (_VECTOR * _ROW_THREADS))
    return vectors if vectors <= _HELD else 0


def elementwise_source(dtype: torch.dtype, held: int = 0) -> str:
    """Return elementwise.cu behind storage.cu, with the macros in front."""
    return joined_files(
        *("storage.cu", "elementwise.cu"), macros={"STORAGE": STORAGE[dtype], "THREADS": THREADS, "HELD": held}
    )


@functools.cache
def _kernels(dtype: torch.dtype, device: int, held: int = 0) -> Kernels | None:
    """Return the kernels; None where there are none to be had, which is logged where they cannot be made."""
    if backend_problem("cuda") is not None:
        return None
    return unless_it_fails(
        lambda: load_kernels(elementwise_source(dtype, held), device, THREADS, counted=False),  # nothing is quantized
        _say_once,
    )


@functools.cache
def _say_once(reason: str) -> None:
    log.info("a model's elementwise operations are PyTorch's: %s", reason)


def _kept(trial: Callable[..., bool]) -> Callable[..., bool]:
    """Keep what a trial says of its arguments; no where anything goes wrong in it, which is logged."""

    @functools.lru_cache(maxsize=4096)
    @functools.wraps(trial)
    def answer(*args: object) -> bool:
        return unless_it_fails(lambda: trial(*args), _say_once) or False

    return answer


@_kept
def _norms_alike(rows: int, channels: int, epsilon: float, dtype: torch.dtype, device: int) -> bool:
    """Return whether the kernel gives the bits of operations for this shape, means of squares included.

    A model is in the middle of a pass: no more memory is taken than operations take for a tensor of this shape, 8 bytes
    an element.
    """
    kernels = _kernels(dtype, device, _held(channels))
    assert kernels is not None
    place, of_shape = _place(device), f"{rows:,} rows of {channels:,}"
    generator = torch.Generator(place).manual_seed(rows)
    x = rows_of_all_sizes(generator, rows, channels, dtype)
    weight = torch.randn(channels, generator=generator, dtype=dtype, device=place)
    means = torch.empty((rows, 1), dtype=torch.float32, device=place)
    found = _launch_norm(kernels, x, weight, epsilon, means)
    expected = x.to(torch.float32).pow_(2).mean(-1, keepdim=True)
    if not _alike(means, expected, f"the mean of {of_shape}"):
        return False
    for norms, values, of_rows in zip(*(each.chunk(_PIECES) for each in (found, x, means)), strict=True):
        if not _alike(norms, _divided(values, of_rows, weight, epsilon), f"the norm of {of_shape}"):
            return False
    return True


@_kept
def _silu_alike(dtype: torch.dtype, device: int) -> bool:
    """Return whether the kernel gives the bits of operations for every number, and for pairs of numbers."""
    kernels = _kernels(dtype, device)
    assert kernels is not None
    every = _every_number(dtype, device)
    return all(
        _alike(_launch_silu(kernels, every, up), silu_times_by_operations(every, up), "SiLU")
        for up in (torch.ones_like(every), _shuffled(every))
    )


@_kept
def _rotation_alike(dtype: torch.dtype, device: int) -> bool:
    """Return whether the kernel gives the bits and the layout of operations, angles of one or all examples."""
    kernels = _kernels(dtype, device)
    assert kernels is not None
    every = _every_number(dtype, device)
    x = every.view(4, 16, 16, 64).transpose(1, 2)  # B, H, T, D
    angles = _shuffled(every)
    for examples in (1, 4):
        cosines, sines = angles[: 2 * examples * 16 * 64].view(2, examples, 16, 64)
        found, expected = _launch_rotation(kernels, x, cosines, sines), rotate_by_operations(x, cosines, sines)
        if found.stride() != expected.stride() or not _alike(found, expected, "the rotary embedding"):
            return False
    return True


def _every_number(dtype: torch.dtype, device: int) -> Tensor:
    """Return the 65,536 numbers of a 16-bit dtype."""
    return torch.arange(2**16, dtype=torch.int32, device=_place(device)).to(torch.int16).view(dtype)


def _place(device: int) -> torch.device:
    return torch.device("cuda", device)


def _shuffled(numbers: Tensor) -> Tensor:
    places = torch.arange(len(numbers), dtype=torch.int64, device=numbers.device)
    return numbers[places * 40503 % len(numbers)]  # an odd factor: each place once


def _alike(found: Tensor, expected: Tensor, what: str) -> bool:
    """Return whether two tensors have the same bits, but for those of a NaN."""
    differing = count_differing(found, expected)
    if differing:
        _say_once(f"{what}: {differing:,} of {found.numel():,} numbers come out otherwise by a kernel")
    return not differing
