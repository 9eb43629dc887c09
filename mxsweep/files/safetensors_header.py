"""Read the header of a safetensors file: dtype and shape of each tensor, and whether the file is whole.

No weights in memory.

The format: 8 bytes of little-endian length, that many bytes of JSON, and the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from mxsweep.files.digests import Stamp, stamp_of

SUFFIX = ".safetensors"
_CACHED_FILES = 512


class SafetensorsError(ValueError):
    """Say in a sentence what is wrong with a safetensors file."""


class StoredTensor(NamedTuple):
    """Hold what a header says of a tensor: its dtype as safetensors names it ("BF16"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return what the header of a file says of its tensors, by name; read once while the file stays.

    Raises:
        SafetensorsError: no safetensors file, or one that is cut short.
        OSError: the file cannot be read.
    """
    return _stored_tensors(str(file), stamp_of(file.stat()))


@lru_cache(maxsize=_CACHED_FILES)
def _stored_tensors(file: str, stamp: Stamp) -> dict[str, StoredTensor]:
    size = stamp[0]
    if not size:
        raise SafetensorsError("is empty")
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise SafetensorsError("is cut short, or no safetensors file")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            stored = {
                str(name): StoredTensor(str(tensor["dtype"]), tuple(map(int, tensor["shape"])))
                for name, tensor in tensors.items()
            }
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise SafetensorsError("has a damaged header, or is no safetensors file") from None
    if 8 + length + end > size:
        raise SafetensorsError(f"is cut short: it holds {size:,} bytes, and its tensors end at {8 + length + end:,}")
    return stored
