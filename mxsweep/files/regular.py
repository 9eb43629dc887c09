"""Read files of folders that somebody else may have written.

A pipe or a device in the place of a file would be waited for, or read, for ever; a file without end would take all
memory. So what is read here is a regular file, or a link to one, of at most as many bytes as its kind can have.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO


class NotRegularError(OSError):
    """Say that a folder, pipe, socket or device is in the place of a file."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading. Raises NotRegularError for whatever else is there, at once.

    Returns:
        the file, from its beginning.
    """
    return os.fdopen(regular_descriptor(path, os.O_RDONLY), "rb")


def regular_descriptor(path: Path, flags: int) -> int:
    """Open a regular file as ``os.open`` with ``flags`` does. Raises NotRegularError for whatever else is there."""
    # Opened before it is looked at, so that nothing takes its place in between. O_NONBLOCK: a pipe has no writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "no regular file"
            raise NotRegularError(errno.EINVAL, what, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return what is in a regular file, or a link to one.

    Args:
        most_bytes: how many bytes such a file may have.

    Raises:
        OSError: the file cannot be read, is no regular file, or has more bytes.
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)  # not by its size, which some systems do not know
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than the {most_bytes:,} bytes that are read of such a file", str(path))
    return content


def why_not_written(folder: Path, files: Iterable[str] = ()) -> str | None:
    """Return why nothing is written in a folder that somebody else may have made; None where it can be.

    What is written there must not land elsewhere, nor wait for ever: no entry is a link, a pipe, a socket or a device.

    Args:
        folder: need not be there.
        files: names of what is no folder.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                if entry.is_symlink():
                    return f"{entry.name!r} in it is a link"
                if entry.is_dir() and entry.name in files:
                    return f"{entry.name!r} in it is a folder"
                if not entry.is_dir() and not entry.is_file():
                    return f"{entry.name!r} in it is no regular file"
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be looked through ({error.strerror})"
    return None
