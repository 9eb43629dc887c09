"""Read the header of a safetensors file: the dtype of each tensor, and whether the file is whole. No weights in memory.

The format: 8 bytes of little-endian length, that many bytes of JSON, and the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from pathlib import Path

from mxsweep.files.digests import Stamp, stamp_of

SUFFIX = ".safetensors"
_CACHED_FILES = 512


class SafetensorsError(ValueError):
    """Say in a sentence what is wrong with a safetensors file."""


def stored_tensors(file: Path) -> dict[str, str]:
    """Return the dtypes of a file's tensors as safetensors names them ("BF16"), by name; read once while it stays.

    Raises:
        SafetensorsError: no safetensors file, or one that is cut short.
        OSError: the file cannot be read.
    """
    return _stored_tensors(str(file), stamp_of(file.stat()))


@lru_cache(maxsize=_CACHED_FILES)
def _stored_tensors(file: str, stamp: Stamp) -> dict[str, str]:
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
            dtypes = {str(name): str(tensor["dtype"]) for name, tensor in tensors.items()}
            end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise SafetensorsError("has a damaged header, or is no safetensors file") from None
    if 8 + length + end > size:
        raise SafetensorsError(f"is cut short: it holds {size:,} bytes, and its tensors end at {8 + length + end:,}")
    return dtypes
