"""Choose by which kernel a tensor is quantized on a GPU whose rows blocks do not cut evenly, and how it is launched.

The kernels are those of the files in `SOURCES`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.kernels.compile import THREADS
from mxsweep.numerics.kernels.source import (
    VECTOR_BYTES,
    WARP,
    block_length,
    format_fields,
    kernel_source,
    lanes_of,
)

_ACROSS = 8  # vectors side by side that a thread block or a warp takes of columns, and of small tiles at least
_MOST_KEPT, _MOST_KEPT_OF_SHORT, _KEPT_OF_GROUP, _KEPT_OF_COLUMNS = 8, 5, 4, 4
SOURCES = {  # with the names of the kernels in each
    "tiles.cu": (
        "mx_vector_tiles_by_warp",
        "mx_vector_tiles",
        "mx_long_columns",
        "mx_column_extremes",
        "mx_columns_by_parts",
        "mx_tiles_by_warp",
        "mx_tiles_by_thread",
    ),
    "small_blocks.cu": ("mx_short_blocks", "mx_small_tiles"),
    "groups.cu": ("mx_groups_by_warp", "mx_groups"),
}
KERNELS = tuple(name for names in SOURCES.values() for name in names)


@dataclass(frozen=True)
class Tiling:
    """Describe a contiguous tensor as `outer` matrices, height x width, cut into tiles, rows x columns (tiles.cu)."""

    outer: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def arguments(self) -> tuple[int, ...]:
        """Return the numbers in the order in which kernels take them."""
        return (self.outer, self.height, self.width, self.rows, self.columns)

    @property
    def count(self) -> int:
        """Return how many tiles there are."""
        return self.outer * -(-self.height // self.rows) * -(-self.width // self.columns)


@dataclass(frozen=True)
class Threads:
    """Say how threads take a block; kernels are compiled for it.

    Attributes:
        kept: vectors that a thread keeps in registers.
        share: threads to a short block.
        unit: bytes of a short block that a thread reads at once.
        block: threads to a thread block.
    """

    kept: int = 1
    share: int = 1
    unit: int = VECTOR_BYTES
    block: int = THREADS


@dataclass(frozen=True)
class Way:
    """Say by which kernel a tensor is quantized.

    Attributes:
        count: threads that are launched.
        arguments: which the kernel takes beside tensors and what is beside them.
        found: of columns, how many elements have the extremes of a matrix, which mx_column_extremes finds before, in as
            many threads; 0 where nothing is found before.
    """

    kernel: str
    count: int
    arguments: tuple[int, ...]
    threads: Threads = Threads()
    found: int = 0


@functools.lru_cache(maxsize=4096)
def way_of(shape: torch.Size, dtype: torch.dtype, fmt: MXFormat, first: int, example: int) -> Way:
    """Return the way for blocks of a format that extend along dimension ``first`` and, in tiles, the next.

    Args:
        example: how many elements draw random numbers as an example, within which a thread's 16 bytes have to lie; 0
            where none does.
    """
    tiling = _tiling(shape, fmt, first)
    vector = VECTOR_BYTES // dtype.itemsize
    by_vectors = tiling.width % vector == 0 and example % vector == 0
    if tiling.columns == 1 and tiling.width > 1:
        if by_vectors and not fmt.four_over_six:
            return _way_of_columns(replace(tiling, width=tiling.width // vector), fmt, vector)
        return Way("mx_tiles_by_thread", tiling.count, tiling.arguments)
    whole = by_vectors and (tiling.columns % vector == 0 or tiling.columns >= tiling.width)
    unit = VECTOR_BYTES if whole else 4 if dtype.itemsize == 4 or not (tiling.columns | tiling.width) % 2 else 2
    plain = whole or not (fmt.four_over_six or example)
    # Of a length that the format says: for whole rows a kernel would be compiled anew for each length of these.
    threads = _threads_of_short_blocks(block_length(fmt) * dtype.itemsize, unit) if block_length(fmt) else None
    if tiling.rows == tiling.height == 1 and plain and threads and tiling.count < 2**31:
        across = -(-tiling.width // tiling.columns)
        arguments = (tiling.outer, tiling.width, across, *divider(across))
        return Way("mx_short_blocks", tiling.count * threads.share, arguments, threads)
    if not whole:
        return Way("mx_tiles_by_warp", tiling.count * WARP, tiling.arguments)
    tiling = replace(tiling, width=tiling.width // vector, columns=-(-tiling.columns // vector))
    across = max(tiling.columns, _ACROSS)
    if tiling.columns == lanes_of(fmt, dtype) and tiling.rows * across <= WARP * _MOST_KEPT:
        threads = Threads(_power(-(-tiling.rows * across // WARP)))
        return Way("mx_small_tiles", replace(tiling, columns=across).count * WARP, tiling.arguments, threads)
    vectors = min(tiling.rows, tiling.height) * min(tiling.columns, tiling.width)
    threads = _threads_of(vectors, _MOST_KEPT)
    return Way(f"mx_vector_tiles{_by(threads)}", tiling.count * threads.share, tiling.arguments, threads)


def _threads_of_short_blocks(size: int, unit: int) -> Threads | None:
    """Return how threads take blocks of ``size`` bytes of which a warp holds one or more; None for longer ones.

    As few units as can be are read for nothing; then threads are as many as have 16 bytes each.
    """
    units = -(-size // unit)
    found = []
    for share in (1, 2, 4, 8, 16, 32):
        own = -(-units // share)
        if own * unit <= _MOST_KEPT_OF_SHORT * VECTOR_BYTES:
            enough = own * unit >= VECTOR_BYTES
            found.append((own * share, not enough, -share if enough else share, own))
    if not found:
        return None
    *_, share, own = min(found)
    return Threads(-(-own * unit // VECTOR_BYTES), abs(share), unit)


def _way_of_columns(tiling: Tiling, fmt: MXFormat, vector: int) -> Way:
    """Return the way for blocks of columns, of which `width` counts vectors of ``vector`` elements."""
    tiling = replace(tiling, rows=min(tiling.rows, tiling.height))  # which parts are of
    count = replace(tiling, columns=_ACROSS).count
    parts = -(-tiling.rows * _ACROSS // (THREADS * _MOST_KEPT))
    if parts == 1:
        # The length that a format says; but of whole columns, which have any, powers of two, so that kernels are few.
        threads = _threads_of_columns(tiling.rows if tiling.rows == fmt.block_size else _power(tiling.rows))
        return Way("mx_long_columns", count * threads.block, tiling.arguments, threads)
    found = tiling.count // tiling.outer * parts * vector * (1 if fmt.symmetric else 2)
    return Way("mx_columns_by_parts", count * parts * THREADS, (parts, *tiling.arguments), Threads(_MOST_KEPT), found)


def _threads_of_columns(rows: int) -> Threads:
    """Return how whole warps take a block of so many rows, of which none or few vectors are read for nothing."""
    return min(
        (Threads(-(-rows // down), block=down * _ACROSS) for down in range(WARP // _ACROSS, THREADS // _ACROSS + 1, 4)),
        key=lambda threads: (
            threads.kept > _MOST_KEPT,
            threads.kept * threads.block,
            abs(threads.kept - _KEPT_OF_COLUMNS),
        ),
    )


@functools.lru_cache(maxsize=4096)
def way_of_groups(shape: torch.Size, dtype: torch.dtype, fmt: MXFormat, group: int, example: int) -> Way | None:
    """Return the way for blocks along rows under a scale of each ``group`` elements, where threads can keep a group.

    Args:
        example: as for `way_of`.
    """
    lanes, vectors = lanes_of(fmt, dtype), group * dtype.itemsize // VECTOR_BYTES
    if not lanes or shape[-1] % block_length(fmt) or example * dtype.itemsize % VECTOR_BYTES:
        return None
    if vectors > THREADS * _MOST_KEPT:
        return None
    threads, count = _threads_of(vectors, _KEPT_OF_GROUP), math.prod(shape) // group
    return Way(f"mx_groups{_by(threads)}", count * threads.share, (vectors, count), threads)


def _threads_of(vectors: int, most: int) -> Threads:
    """Return how threads keep so many vectors, up to ``most`` each where a thread block suffices: a warp, or more."""
    share = min(THREADS, max(WARP, _power(-(-vectors // most))))
    return Threads(_kept(vectors, share), share, block=THREADS if share == WARP else share)


def _by(threads: Threads) -> str:
    return "_by_warp" if threads.share == WARP else ""


def _kept(vectors: int, threads: int) -> int:
    """Return how many vectors of a block a thread keeps: a power of two, so that kernels are few."""
    return min(_MOST_KEPT, _power(-(-vectors // threads)))


def _power(number: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << (number - 1).bit_length()


def divider(number: int) -> tuple[int, int]:
    """Return a multiplier of 32 bits and a shift that divide n below 2^31 by a number: n * multiplier >> shift."""
    bits = 31 + (number - 1).bit_length()
    return -(-(2**bits) // number), bits


def _tiling(shape: torch.Size, fmt: MXFormat, first: int) -> Tiling:
    """Return the tiles that blocks from dimension `first` on are; a block along one dimension is a tile one wide."""
    elements = math.prod(shape)
    if not isinstance(fmt.block_size, int):
        rows, columns = fmt.block_size
        return Tiling(elements // (shape[-2] * shape[-1]), shape[-2], shape[-1], rows, columns)
    length = shape[first]
    size = fmt.block_size or length
    inner = math.prod(shape[first + 1 :])
    if inner == 1:
        return Tiling(elements // length, 1, length, 1, size)
    return Tiling(elements // (length * inner), length, inner, size, 1)


def tile_source(
    fmt: MXFormat, dtype: torch.dtype, prescale: float, threads: Threads, *names: str, keeps: bool = False
) -> str:
    """Return the source of the kernels of these names, of `KERNELS`."""
    return kernel_source(
        fmt,
        dtype,
        *("columns.cu", *SOURCES),
        prescale=prescale,
        keeps=keeps,
        macros={
            "MX_KEPT": threads.kept,
            "MX_SHARE": threads.share,
            "MX_UNIT": threads.unit,
            "MX_BLOCK": block_length(fmt),
            "MX_COLUMN_FORMAT": format_fields(fmt, dtype, prescale),
            **{f"WITH_{name}": 1 for name in names},
        },
    )
