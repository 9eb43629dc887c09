"""Say how much memory the machine has, and have freed memory kept for what is wanted next."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_MOST_KEPT = 256 * 2**20
_LARGEST_KEPT = 32 * 2**20  # the most that glibc takes everywhere, and sets by itself
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def physical_memory() -> int:
    """Return the bytes of the machine's own memory, whatever of it is in use."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> bool:
    """Have the C library keep memory that tensors on a CPU leave, for the next ones; return whether it took a setting.

    Every layer of a pass frees what the one before it had. Unasked, glibc gives that back to the system time and again,
    and the system fills page after page with zeros when it is wanted again: an eighth of the time of evaluating a small
    model. What is kept is up to 256 MiB at the end of the heap, and whatever lies below memory that is in use. Tensors
    of more than 32 MiB come from the system as ever. Nothing is done where the C library is another one, nor where the
    environment says what it is to do.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_KEPT), (_TRIM_THRESHOLD, _MOST_KEPT))
    return any([library.mallopt(*setting) for setting in settings])  # each holds without the other
