"""Identify files by their content, as SHA-256: what they hold makes a run, not where they lie.

A large file is read once. Its digest is kept in the cache folder (`mxsweep.files.cache`), and holds for as long as the
file's size, times and inode are the same. Imports nothing heavy: planning needs digests.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.files.atomic import write_atomically
from mxsweep.files.cache import cache_folder

log = logging.getLogger(__name__)

# Smaller files are read again by every process, in a few milliseconds each.
LARGE_BYTES = 16 * 2**20
CACHE_NAME = "digests.json"
_CACHED_FILES = 4096  # kept at most
# A file that is written again within one tick of its file system's clock (2 s on FAT) shows no other times: the digest
# of one that is younger is not kept.
_TICK_NS = 2 * 10**9
_THREADS = 8  # more gain nothing: the disk is slower than so many cores
_CHUNK_BYTES = 2**20

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Kept:
    stamp: Stamp
    digest: str


_kept: dict[str, _Kept] = {}  # of this process, by resolved path


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what changes when a file does; without reading it."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def stamps(files: Iterable[Path]) -> tuple[Stamp | None, ...]:
    """Return the stamp of each file, None for one that is not there."""

    def of(file: Path) -> Stamp | None:
        try:
            return stamp_of(file.stat())
        except OSError:
            return None

    return tuple(map(of, files))


def json_digest(what: Any) -> str:
    """Return the SHA-256 (hex) of plain data; the order of a mapping's keys does not count."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def file_digests(files: Sequence[Path]) -> list[str]:
    """Return the SHA-256 (hex) of each file's content, read in threads, and not again while it is the same.

    Raises:
        OSError: a file is not there, cannot be read, or is being written.
    """
    paths = [str(file.resolve()) for file in files]
    now = {path: stamp_of(os.stat(path)) for path in paths}
    known = {path: kept.digest for path, stamp in now.items() if (kept := _kept.get(path)) and kept.stamp == stamp}
    large = {path for path, stamp in now.items() if stamp[0] >= LARGE_BYTES}
    if large - known.keys():
        on_disk = _read_cache()
        for path in large - known.keys():
            if (kept := on_disk.get(path)) and kept.stamp == now[path]:
                _kept[path], known[path] = kept, kept.digest
    unread = [path for path in now if path not in known]
    if unread:
        with ThreadPoolExecutor(min(len(unread), os.cpu_count() or 1, _THREADS)) as pool:
            read = dict(zip(unread, pool.map(_read, unread), strict=True))
        settled = {path: kept for path, kept in read.items() if time.time_ns() - kept.stamp[2] > _TICK_NS}
        _kept.update(settled)
        _write_cache({path: kept for path, kept in settled.items() if path in large})
        known |= {path: kept.digest for path, kept in read.items()}
    return [known[path] for path in paths]


def _read(path: str) -> _Kept:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for _ in range(2):
        with open(path, "rb", buffering=0) as file:
            stamp, content = stamp_of(os.fstat(file.fileno())), hashlib.sha256()
            while length := file.readinto(buffer):
                content.update(buffer[:length])
            if stamp_of(os.fstat(file.fileno())) == stamp:
                return _Kept(stamp, content.hexdigest())
    raise OSError("it is being written")


def _read_cache() -> dict[str, _Kept]:
    """Return the digests on disk; of a damaged file those that are whole, which is no reason to stop."""
    try:
        entries = json.loads((cache_folder() / CACHE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {path: kept for path, entry in entries.items() if (kept := _entry(entry)) is not None}


def _entry(entry: Any) -> _Kept | None:
    if not isinstance(entry, list) or len(entry) != 5 or not all(type(number) is int for number in entry[:4]):
        return None
    whole = isinstance(entry[4], str) and re.fullmatch("[0-9a-f]{64}", entry[4])
    return _Kept((entry[0], entry[1], entry[2], entry[3]), entry[4]) if whole else None


def _write_cache(new: Mapping[str, _Kept]) -> None:
    """Add to the digests on disk. Where two processes do at once, the last one's stay: the others are made again."""
    if not new:
        return
    try:
        # The newest last, so that the oldest go first.
        entries = {path: kept for path, kept in _read_cache().items() if path not in new} | dict(new)
        newest = list(entries.items())[-_CACHED_FILES:]
        text = json.dumps({path: [*kept.stamp, kept.digest] for path, kept in newest})
        write_atomically(cache_folder() / CACHE_NAME, text, durable=False)
    except OSError as error:
        log.warning("digests of model files are not kept, and made again next time: %s", error)
