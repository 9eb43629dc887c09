"""Read the header of a GGUF file: which model it holds, and how each tensor is stored. No torch, no weights in memory.

The format (of llama.cpp's ggml): four bytes "GGUF", a version, counts of tensors and of metadata, the metadata, a table
of the tensors, and their bytes. Names and sizes of ggml's types are those of the package `gguf`, which also
dequantizes the tensors when the model is loaded.
"""

from __future__ import annotations

import importlib.util
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from mxsweep.files.digests import Stamp, stamp_of

SUFFIX = ".gguf"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the tensors' bytes, where the metadata name no other
# The types of metadata that have one size, by number, as struct writes them; 8 is a text, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_PLAIN = ("F32", "F16", "BF16", "F64")  # what ggml calls values that no block scales


class GGUFError(ValueError):
    """Say in a sentence what is wrong with a GGUF file."""


@dataclass(frozen=True)
class GGUFTensor:
    """Hold how one tensor is stored: its name, the number of its weights, ggml's number of its type, and its place."""

    name: str
    weights: int
    type_number: int
    offset: int


@dataclass(frozen=True)
class GGUFHeader:
    """Hold what a GGUF file says of itself.

    Attributes:
        metadata: scalars and texts by name; of an array its length.
        tensors: in the file's order.
    """

    metadata: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name for the kind of model."""
        return str(self.metadata.get("general.architecture", "none"))

    @property
    def parts(self) -> int:
        """Return in how many files the model lies."""
        count = self.metadata.get("split.count", 1)
        return count if isinstance(count, int) and count > 0 else 1

    @property
    def mix(self) -> str | None:
        """Return the name of the mix of types that the file was made by, as Q4_K_M; None where it names none."""
        from gguf import LlamaFileType

        number = self.metadata.get("general.file_type", -1)
        names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
        return names.get(number)

    def weights_by_type(self) -> dict[str, int]:
        """Return how many weights are stored in each of ggml's types, the most first."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors:
            counts[_type_name(tensor.type_number)] += tensor.weights
        return dict(counts.most_common())

    @property
    def is_quantized(self) -> bool:
        """Return whether any tensor is stored as blocks rather than as plain values."""
        return any(name not in _PLAIN for name in self.weights_by_type())


def has_package() -> bool:
    """Return whether the package `gguf` is installed, which reading tensors takes."""
    return importlib.util.find_spec("gguf") is not None


def read_header(file: Path) -> GGUFHeader:
    """Return the header of a GGUF file; read once while the file is the same.

    Raises:
        GGUFError: no GGUF file, one of another version, or one that is cut short.
        OSError: the file cannot be read.
    """
    return _read_header(str(file), stamp_of(file.stat()))


@lru_cache(maxsize=16)
def _read_header(file: str, _stamp: Stamp) -> GGUFHeader:
    with open(file, "rb") as stream:
        if stream.read(4) != b"GGUF":
            raise GGUFError("is no GGUF file: it does not begin with the letters GGUF")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parse(content)
            except (struct.error, IndexError, OverflowError):
                raise GGUFError("is cut short: its header ends before the file says so") from None
            except UnicodeDecodeError:
                raise GGUFError("is damaged: a name in its header is no text") from None


def _parse(content: mmap.mmap) -> GGUFHeader:
    version, tensor_count, metadata_count = struct.unpack_from("<IQQ", content, 4)
    if version not in _VERSIONS:
        allowed = " and ".join(map(str, _VERSIONS))
        raise GGUFError(f"is of version {version} of the GGUF format; versions {allowed} are read")
    place, metadata = 24, {}
    for _ in range(metadata_count):
        name, place = _text(content, place)
        (kind,) = struct.unpack_from("<I", content, place)
        metadata[name], place = _value(content, place + 4, kind)
    tensors = []
    for _ in range(tensor_count):
        name, place = _text(content, place)
        (dimensions,) = struct.unpack_from("<I", content, place)
        *shape, type_number, offset = struct.unpack_from(f"<{min(dimensions, 8)}QIQ", content, place + 4)
        place += 4 + 8 * dimensions + 12
        tensors.append(GGUFTensor(name, prod(shape), type_number, offset))
    header = GGUFHeader(metadata, tuple(tensors))
    if header.parts == 1:
        _check_length(header, place, len(content))
    return header


def _check_length(header: GGUFHeader, place: int, length: int) -> None:
    """Raise GGUFError for a file without tensors, or that ends before the last of their bytes."""
    if not header.tensors:
        raise GGUFError("holds no tensors")
    alignment = header.metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise GGUFError(f"is damaged: its header gives general.alignment {alignment!r}")
    start = -(-place // alignment) * alignment
    end = max(start + tensor.offset + _bytes_of(tensor) for tensor in header.tensors)
    if end > length:
        raise GGUFError(f"is cut short: it holds {length:,} bytes, and its tensors end at {end:,}")


def _bytes_of(tensor: GGUFTensor) -> int:
    """Return how many bytes a tensor takes; 0 where the sizes of ggml's types are not known here."""
    if not has_package():
        return 0
    from gguf import GGML_QUANT_SIZES

    sizes = {kind.value: size for kind, size in GGML_QUANT_SIZES.items()}
    if tensor.type_number not in sizes:
        raise GGUFError(f"holds a tensor, {tensor.name!r}, of ggml's type {tensor.type_number}, which is not known")
    weights, size = sizes[tensor.type_number]
    return tensor.weights // weights * size


def _type_name(number: int) -> str:
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(number).name


def _text(content: mmap.mmap, place: int) -> tuple[str, int]:
    """Return the text at a place, and the place behind it."""
    (length,) = struct.unpack_from("<Q", content, place)
    end = place + 8 + length
    if end > len(content):
        raise IndexError
    return content[place + 8 : end].decode("utf-8"), end


def _value(content: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    """Return the value at a place (of an array its length), and the place behind it."""
    if kind in _SCALARS:
        code = f"<{_SCALARS[kind]}"
        return struct.unpack_from(code, content, place)[0], place + struct.calcsize(code)
    if kind == _TEXT:
        return _text(content, place)
    if kind != _ARRAY:
        raise GGUFError(f"is damaged: its header holds a value of type {kind}, which is not known")
    element, count = struct.unpack_from("<IQ", content, place)
    place += 12
    if element in _SCALARS:
        place += count * struct.calcsize(f"<{_SCALARS[element]}")
    else:
        for _ in range(count):
            place = _behind(content, place, element)
    if place > len(content):
        raise IndexError
    return count, place


def _behind(content: mmap.mmap, place: int, kind: int) -> int:
    """Return the place behind a text or an array, which is not read: a vocabulary has hundreds of thousands."""
    if kind != _TEXT:
        return _value(content, place, kind)[1]
    (length,) = struct.unpack_from("<Q", content, place)
    return int(place + 8 + length)
