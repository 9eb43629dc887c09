"""Open text files, packed or not: UTF-8, also as .xz or .gz, read piece by piece."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO, cast

PACKED = (".xz", ".gz")
UNREADABLE = (OSError, UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error)  # what reading one may raise


@dataclass(frozen=True)
class OpenText:
    """Hold an open text: its ``lines``, its ``size`` on disk and how many bytes of that were read."""

    lines: TextIO
    size: int
    position: Callable[[], int]


def unpacked_suffix(path: Path) -> str:
    """Return the suffix of what a file holds, in small letters: ".jsonl" of ``rows.jsonl.gz``."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


@contextmanager
def open_text(path: Path) -> Iterator[OpenText]:
    """Open a text for reading, whatever packs it. Raises one of UNREADABLE, here or while it is read."""
    with path.open("rb") as file, _unpacked(path, file) as text:
        yield OpenText(text, os.fstat(file.fileno()).st_size, file.tell)


def _unpacked(path: Path, file: IO[bytes]) -> TextIO:
    suffix = path.suffix.lower()
    if suffix == ".xz":
        return cast(TextIO, lzma.open(file, "rt", encoding="utf-8-sig"))
    if suffix == ".gz":
        return cast(TextIO, gzip.open(file, "rt", encoding="utf-8-sig"))
    return cast(TextIO, open(file.fileno(), encoding="utf-8-sig", closefd=False))
