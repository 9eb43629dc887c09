"""Plan how tensor cores multiply rows of 16-bit elements by the dense factor of a Hadamard matrix: dense_tiles.cu."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mxsweep.numerics.kernels.source import STORAGE, WARP, joined_files
from mxsweep.numerics.paley import base_factor, sylvester

_TILE = 16  # rows and columns of a tile of the dense factor
# Warps of a thread block and tiles of a warp at most, by the elements of a run: what was quickest on an H200.
_MOST = {32: (11, 4), 64: (9, 3), 128: (14, 1)}
_MOST_SIZE = 1024  # of the factor, of which a thread block reads all signs in its rows
_STAGE_BYTES = 3 * 2**13  # read at a time: half of the shared memory that a thread block may have


@dataclass(frozen=True)
class DensePlan:
    """Say how dense_tiles.cu divides the work; its macros of these names have the details.

    Attributes:
        order: of the matrix.
        size: of the factor that tensor cores multiply by: the dense one, times a part of Sylvester's matrix where the
            whole of that is longer than a run.
        dtype: of the elements.
        tiles, warps, parts, depth: macros.
    """

    order: int
    size: int
    dtype: torch.dtype
    tiles: int
    warps: int
    parts: int
    depth: int

    @property
    def threads(self) -> int:
        """Return how many threads a thread block has."""
        return WARP * self.warps

    @property
    def source(self) -> str:
        """Return dense_tiles.cu behind storage.cu and butterflies.cu, with the macros in front."""
        # Signs of this size keep sums within a row's largest element.
        magnitude = 2.0 ** -(self.order - 1).bit_length()
        code = int(torch.tensor(magnitude, dtype=self.dtype, device="cpu").view(torch.int16))
        return joined_files(
            *("storage.cu", "butterflies.cu", "dense_tiles.cu"),
            macros={
                "SIZE": self.size,
                "LOG_INNER": (self.order // self.size).bit_length() - 1,
                "STORAGE": STORAGE[self.dtype],
                "MAGNITUDE": f"{code << 16 | code:#x}u",
                "SCALE": 1 / magnitude / math.sqrt(self.order),
                "TILES": self.tiles,
                "WARPS": self.warps,
                "PARTS": self.parts,
                "DEPTH": self.depth,
            },
        )

    def signs(self, inverse: bool) -> Tensor:
        """Return the factor's signs as dense_tiles.cu reads them: int32, a word for each lane of each four tiles.

        Args:
            inverse: whether those of the transposed matrix.
        """
        base = base_factor(self.order)
        rest = sylvester((self.size // len(base)).bit_length() - 1)
        negative = np.kron(np.sign(base), rest) < 0
        down, across = self.parts * self.warps * self.tiles, -(-self.size // (4 * _TILE))
        padded = np.zeros((down * _TILE, across * 4 * _TILE), np.int64)
        padded[: self.size, : self.size] = negative if inverse else negative.T
        # As PTX's m16n8k16 has it, a lane's word number i + 2 k of a tile is of row 8 i + lane // 4, and of the two
        # neighbouring columns from 8 k + lane % 4 * 2 on. The axes below are tiles, i and lane // 4 of rows; and of
        # columns fours of tiles, tiles of these, k, lane % 4 and neighbours.
        tiles = padded.reshape(down, 2, 8, across, 4, 2, 4, 2)
        words = np.zeros((down, across, 8, 4), np.int64)
        for i, tile, k, neighbour in np.ndindex(2, 4, 2, 2):
            bits = tiles[:, i, :, :, tile, k, :, neighbour].transpose(0, 2, 1, 3)
            words |= bits << (15 - (4 * tile + i + 2 * k) + 16 * neighbour)
        return torch.from_numpy(words.astype(np.uint32).view(np.int32).reshape(-1))


@functools.lru_cache(maxsize=256)
def dense_plan(order: int, dtype: torch.dtype) -> DensePlan | None:
    """Return the plan by which dense_tiles.cu transforms rows of an order; None where it does not."""
    size = len(base_factor(order))
    run = min(order // size, max(_MOST))
    if dtype.itemsize != 2 or run < min(_MOST) or size % 2:  # an odd factor is Hartley's, or there is none
        return None
    size = order // run
    if size > _MOST_SIZE:
        return None
    deep, (most_warps, most_tiles) = -(-size // _TILE), _MOST[run]
    parts = -(-deep // (most_warps * most_tiles))
    tiles = -(-deep // (parts * most_warps))
    warps = -(-deep // (parts * tiles))
    stages = -(-deep // (_STAGE_BYTES // (_TILE * run * dtype.itemsize)))
    return DensePlan(order, size, dtype, tiles, warps, parts, -(-deep // stages))
