"""Quantize on a GPU: mx.cu compiled for a format, launched on torch's current stream.

One pass over memory: each thread reads 16 bytes, the threads of a block exchange its maximum, and the elements are
written. What does not fit that (blocks along another axis, tiles, blocks that end short or have an odd size) goes to a
kernel that takes any block, a warp or a thread each. A per-tensor scale costs one more reading of the tensor.

The source is compiled by NVRTC through `cuda.core`, once for a format, a dtype and a GPU architecture, in a few tenths
of a second, and kept on disk in the cache folder (`mxsweep.files.cache`). The kernels are the torch operator
`mxsweep::quantize`, whose arguments are MXFormat's fields, so that a profile names it and torch.compile can trace it.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from mxsweep.files.cache import cache_folder
from mxsweep.formats.backends import BackendUnavailable
from mxsweep.formats.element import ROUNDINGS
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.scale import SCALE_ROUNDINGS, ScaleFormat
from mxsweep.numerics.blocks import block_axes
from mxsweep.numerics.philox import Draws

log = logging.getLogger(__name__)

THREADS = 256  # of a thread block, as mx.cu's __launch_bounds__ say
WARP = 32
VECTOR_BYTES = 16  # read by a thread at once
CACHE_BYTES = 64 * 2**20
_CUBIN_MAGIC = b"\x7fELF"

_STORAGE = {torch.float32: "FLOAT32", torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}
# Elements that a thread block of `mx_tensor_scales` reads at least, so that one reads a token's activations; and thread
# blocks that a large group gets at most, about as many as a GPU runs at once.
_THREAD_BLOCK_READS = 16384
_GROUP_THREAD_BLOCKS = 1024

_launches = 0


def launch_count() -> int:
    """Return how many kernels this process launched so far; the difference shows that a run used them."""
    return _launches


def quantize_cuda(
    x: Tensor, fmt: MXFormat, axis: int, draws: Draws | None, tensor_dims: Sequence[int] | None
) -> Tensor:
    """Quantize in exact arithmetic a tensor on a GPU, without checks and gradient.

    Returns:
        A contiguous tensor of x's shape and dtype.

    Raises:
        BackendUnavailable: x is not on a CUDA GPU, the kernel cannot be compiled, or a per-tensor scale is wanted over
            dimensions that are not the last ones.
    """
    if not x.is_cuda:
        raise BackendUnavailable(f"backend 'cuda' needs a tensor on a CUDA GPU, and this one is on {x.device.type}")
    if fmt.tensor_scale:
        _group_size(x, tensor_dims)
    block = [fmt.block_size] if isinstance(fmt.block_size, int) else list(fmt.block_size)
    draws = draws or Draws(0, 0, None)
    # An operator's integers are signed.
    key = draws.key - 2**64 if draws.key >= 2**63 else draws.key
    answer: Tensor = torch.ops.mxsweep.quantize(
        x, fmt.element, block, fmt.scale, fmt.scale_bits, fmt.rounding, fmt.scale_rounding, fmt.symmetric,
        fmt.tensor_scale, axis, None if tensor_dims is None else list(tensor_dims), key, draws.example_dims,
        draws.first_example,
    )  # fmt: skip
    return answer


_SCHEMA = (
    "quantize(Tensor x, str element, int[] block_size, str scale, int scale_bits, str rounding, str scale_rounding, "
    "bool symmetric, bool tensor_scale, int axis, int[]? tensor_dims, int key, int example_dims, int? first_example) "
    "-> Tensor"
)
_library = torch.library.Library("mxsweep", "DEF")
_library.define(_SCHEMA)


def _operator(
    x: Tensor, element: str, block_size: list[int], scale: str, scale_bits: int, rounding: str, scale_rounding: str,
    symmetric: bool, tensor_scale: bool, axis: int, tensor_dims: list[int] | None, key: int, example_dims: int,
    first_example: int | None,
) -> Tensor:  # fmt: skip
    block = block_size[0] if len(block_size) == 1 else (block_size[0], block_size[1])
    fmt = _format(element, block, scale, scale_bits, rounding, scale_rounding, symmetric, tensor_scale)
    x = x.contiguous()
    if x.data_ptr() % VECTOR_BYTES:
        x = x.clone()  # a view that begins between the 16-byte steps that a thread reads
    y = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device(x.device):
            _launch(x, y, fmt, axis, tensor_dims, Draws(key % 2**64, example_dims, first_example))
    return y


_library.impl("quantize", _operator, "CUDA")
_library.impl("quantize", lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format), "Meta")
_format = functools.cache(MXFormat)


def _launch(x: Tensor, y: Tensor, fmt: MXFormat, axis: int, tensor_dims: Sequence[int] | None, draws: Draws) -> None:
    kernels = _kernels(fmt, x.dtype, x.device.index)
    pointers = (x.data_ptr(), y.data_ptr())
    scales, group = _tensor_scales(x, kernels, tensor_dims) if fmt.tensor_scale else (None, 1)
    first_example = -1 if draws.first_example is None else draws.first_example
    beside = (
        0 if scales is None else scales.data_ptr(), group, draws.key, draws.example_size(x.shape), first_example,
    )  # fmt: skip
    (first, *_) = blocked = block_axes(x.ndim, fmt.block_size, axis)
    if lanes_of(fmt, x.dtype) and blocked == (x.ndim - 1,) and x.shape[-1] % _block_length(fmt) == 0:
        vectors = x.nbytes // VECTOR_BYTES
        kernels.launch("mx_rows", vectors, *pointers, vectors, *beside)
        return
    tiling = _tiling(x, fmt, first)
    blocks = tiling.outer * -(-tiling.height // tiling.rows) * -(-tiling.width // tiling.columns)
    by_thread = tiling.columns == 1 and tiling.width > 1
    name, lanes = ("mx_tiles_by_thread", 1) if by_thread else ("mx_tiles_by_warp", WARP)
    kernels.launch(name, blocks * lanes, *pointers, *tiling.arguments, *beside)


def _block_length(fmt: MXFormat) -> int:
    return fmt.block_size if isinstance(fmt.block_size, int) else 0


def lanes_of(fmt: MXFormat, dtype: torch.dtype) -> int:
    """Return how many threads share one block in `mx_rows`; 0 for a block that this kernel does not take."""
    lanes, rest = divmod(_block_length(fmt) * dtype.itemsize, VECTOR_BYTES)
    return lanes if not rest and lanes in (1, 2, 4, 8, 16, 32) else 0


@dataclass(frozen=True)
class _Tiling:
    """Describe a contiguous tensor as `outer` matrices, height x width, cut into tiles, rows x columns; see mx.cu."""

    outer: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def arguments(self) -> tuple[int, ...]:
        return (self.outer, self.height, self.width, self.rows, self.columns)


def _tiling(x: Tensor, fmt: MXFormat, first: int) -> _Tiling:
    """Return the tiles that blocks from dimension `first` on are; a block along one dimension is a tile one wide."""
    if not isinstance(fmt.block_size, int):
        rows, columns = fmt.block_size
        return _Tiling(x.numel() // (x.shape[-2] * x.shape[-1]), x.shape[-2], x.shape[-1], rows, columns)
    length = x.shape[first]
    size = fmt.block_size or length
    inner = math.prod(x.shape[first + 1 :])
    if inner == 1:
        return _Tiling(x.numel() // length, 1, length, 1, size)
    return _Tiling(x.numel() // (length * inner), length, inner, size, 1)


def _group_size(x: Tensor, tensor_dims: Sequence[int] | None) -> int:
    """Return how many neighbouring elements share a per-tensor scale."""
    dims = sorted({dim % x.ndim for dim in (range(x.ndim) if tensor_dims is None else tensor_dims)})
    if dims != list(range(x.ndim - len(dims), x.ndim)):
        raise BackendUnavailable(
            f"backend 'cuda' takes the maximum of a per-tensor scale over the last dimensions, and tensor_dims is "
            f"{tuple(dims)} of {x.ndim}; arrange the tensor so that these are the last, or use backend 'torch'"
        )
    return math.prod(x.shape[dim] for dim in dims)


def _tensor_scales(x: Tensor, kernels: Kernels, tensor_dims: Sequence[int] | None) -> tuple[Tensor, int]:
    """Return (the per-tensor scale g of each group of neighbouring elements, the size of a group)."""
    group = _group_size(x, tensor_dims)
    groups = x.numel() // group
    scales = torch.empty(groups, dtype=torch.float32, device=x.device)
    thread_blocks = min(_GROUP_THREAD_BLOCKS, -(-group // _THREAD_BLOCK_READS))
    work = _workspace(x.device, torch.cuda.current_stream(x.device).cuda_stream, groups) if thread_blocks > 1 else None
    kernels.launch(
        "mx_tensor_scales", groups * thread_blocks * THREADS,
        x.data_ptr(), scales.data_ptr(), 0 if work is None else work.data_ptr(), group, thread_blocks,
    )  # fmt: skip
    return scales, group


_workspaces: dict[tuple[torch.device, int], Tensor] = {}


def _workspace(device: torch.device, stream: int, groups: int) -> Tensor:
    """Return two zeros a group, which `mx_tensor_scales` leaves zero; its launches on one stream take turns."""
    kept = _workspaces.get((device, stream))
    if kept is None or kept.numel() < 2 * groups:
        kept = _workspaces[device, stream] = torch.zeros(2 * groups, dtype=torch.int32, device=device)
    return kept


class Kernels:
    """Launch the kernels of a compiled source (one format and dtype, say) on one GPU, in thread blocks of ``block``."""

    def __init__(self, module: Any, device: int, block: int = THREADS) -> None:
        self._module, self._device, self._block = module, device, block
        self._kernels: dict[str, Any] = {}

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        """Launch on torch's current stream. Pointers and numbers are 64 bits wide, as in mx.cu."""
        global _launches
        from cuda.core import launch

        kernel = self._kernels.get(name)
        if kernel is None:
            kernel = self._kernels[name] = self._module.get_kernel(name)
        config = _launch_config(-(-threads // self._block), self._block)
        stream = _stream(self._device, torch.cuda.current_stream(self._device).cuda_stream)
        launch(stream, config, kernel, *map(_as_int64, arguments))
        _launches += 1


def _as_int64(value: int) -> Any:
    import numpy as np

    return np.uint64(value) if value >= 2**63 else np.int64(value)


@functools.lru_cache(maxsize=1024)
def _launch_config(thread_blocks: int, block: int) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=thread_blocks, block=block)


@functools.lru_cache(maxsize=64)
def _stream(device: int, handle: int) -> Any:
    """Wrap a stream of a device; the device counts, since every one's default stream has the same handle."""
    from cuda.core import Stream

    return Stream.from_handle(handle)


@functools.cache
def _kernels(fmt: MXFormat, dtype: torch.dtype, device: int) -> Kernels:
    return load_kernels(kernel_source(fmt, dtype), device)


def load_kernels(source: str, device: int, block: int = THREADS) -> Kernels:
    """Compile CUDA source for a GPU, or take it from the folder that keeps what was compiled.

    Raises:
        BackendUnavailable: as :func:`compile_source`.
    """
    from cuda.core import Device

    Device(device).set_current()
    major, minor = torch.cuda.get_device_capability(device)
    return Kernels(compile_source(source, f"sm_{major}{minor}", _disk_cache()), device, block)


def compile_kernels(fmt: MXFormat, dtype: torch.dtype, arch: str, cache: Any = None) -> Any:
    """Compile mx.cu for a format and a dtype, as :func:`compile_source` does."""
    return compile_source(kernel_source(fmt, dtype), arch, cache)


def compile_source(source: str, arch: str, cache: Any = None) -> Any:
    """Compile CUDA source to a `cuda.core.ObjectCode` for `arch` (such as "sm_90"). Needs no GPU.

    Raises:
        BackendUnavailable: cuda-core or NVRTC is missing, or the compiler refused.
    """
    try:
        from cuda.core import Program, ProgramOptions

        # A product and a sum must stay two roundings.
        program = Program(source, "c++", ProgramOptions(arch=arch, std="c++17", fma=False))
        if cache is not None:
            try:
                kept = program.compile("cubin", cache=cache)
                if bytes(kept.code[: len(_CUBIN_MAGIC)]) == _CUBIN_MAGIC:  # and not a file that something cut short
                    return kept
            except OSError as error:
                log.warning("a compiled CUDA kernel was not kept: %s", error)  # a full disk, say
        return program.compile("cubin")
    except Exception as error:  # NVRTC's, the loader's and cuda.core's own have no common ancestor below this
        raise BackendUnavailable(f"backend 'cuda' could not compile its kernels for {arch}: {error}") from error


def kernel_source(fmt: MXFormat, dtype: torch.dtype) -> str:
    """Return mx.cu with the macros in front that make it a format's."""
    lines = (
        f"#define MX_FORMAT {format_initializer(fmt)}",
        f"#define MX_STORAGE {_STORAGE[dtype]}",
        f"#define MX_LANES {max(1, lanes_of(fmt, dtype))}",
        "#line 1",
    )
    return "\n".join((*lines, _source()))


@functools.cache
def _source() -> str:
    return resources.files("mxsweep.numerics.kernels").joinpath("mx.cu").read_text(encoding="utf-8")


def format_initializer(fmt: MXFormat) -> str:
    """Return mx.cu's `Format` of a format, as C++ source. Numbers are written in hexadecimal and so exactly."""
    element, scale = fmt.element_format, fmt.scale_format
    kind = _scale_kind(scale)
    scale_grid = (
        (scale.mantissa_bits, scale.min_exponent, scale.largest) if kind == "MINIFLOAT" else (0, 0, scale.largest)
    )

    def grid(mantissa_bits: int, min_exponent: int, largest: float, lowest: float = 0.0) -> str:
        return f"{{{mantissa_bits}, {min_exponent}, {largest.hex()}f, {lowest.hex()}f}}"

    fields = (
        grid(element.mantissa_bits, element.min_exponent, element.largest, element.lowest),
        element.max_exponent,
        ROUNDINGS.index(fmt.rounding),
        kind,
        SCALE_ROUNDINGS.index(fmt.scale_rounding),
        fmt.max_scale_exponent,
        grid(*scale_grid),
        f"{scale.smallest_subnormal.hex()}f",
        str(fmt.symmetric).lower(),
        str(fmt.tensor_scale).lower(),
    )
    return "{" + ", ".join(map(str, fields)) + "}"


def _scale_kind(scale: ScaleFormat) -> str:
    """Return mx.cu's word for how a scale is computed."""
    return "E8M0" if scale.is_power_of_two else "FP32" if scale.is_float32 else "MINIFLOAT"


@functools.cache
def _disk_cache() -> Any:
    """Return the cache of compiled kernels on disk; None, and a compilation a process, where it cannot be written."""
    from cuda.core.utils import FileStreamProgramCache

    try:
        return FileStreamProgramCache(cache_folder("kernels"), max_size_bytes=CACHE_BYTES)
    except OSError as error:  # a folder that cannot be written, or no home to have one in
        log.warning("compiled CUDA kernels are not kept: %s", error)
        return None
