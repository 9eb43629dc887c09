"""Say how much memory the machine has."""

from __future__ import annotations

import os


def physical_memory() -> int:
    """Return the bytes of the machine's own memory, whatever of it is in use."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
