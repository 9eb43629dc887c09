"""Write files that a reader sees whole or not at all, whatever happens to the writer.

A file is written under another name in the same folder, and renamed when it is whole: a rename is atomic within a file
system, and only there. Whoever fails leaves what was there before, and nothing beside it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from mxsweep.terminal.escapes import for_csv


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object], *, durable: bool = True) -> None:
    """Write a file in the place of what was there; folders that are not there are made.

    Args:
        content: a text (written in UTF-8), bytes, or a function that writes a file of the name that it is given.
        durable: force the content to the disk before the file takes its place, so that a power cut cannot leave an
            empty one. Wanted of what cannot be made again; it takes milliseconds.

    Raises:
        OSError: the file cannot be written; and whatever ``content`` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not made by `tempfile`, whose files only their owner may read. Processes and threads write under names of their
    # own: of several writers of one file the last one's stays, whole.
    unfinished = _unfinished(path)
    unfinished.unlink(missing_ok=True)  # a link that somebody put there would be written through
    try:
        if callable(content):
            content(unfinished)
        else:
            unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        if durable:
            _force_to_disk(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):  # a second error would hide the first
            unfinished.unlink(missing_ok=True)
        raise


def write_folder_atomically(folder: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """Write a folder in the place of what was there, forced to the disk before it takes its place.

    Whoever is killed between removing what was there and renaming leaves no folder of this name, never half of one.

    Args:
        write: puts files into the empty folder that it is given.
        replace: take the place of what was there; else only of nothing, or of an empty folder.

    Raises:
        OSError: the folder cannot be written, or its place is taken; and whatever ``write`` raises.
    """
    folder = folder.absolute()  # "." has no name
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        write(unfinished)
        for path in [*unfinished.rglob("*"), unfinished]:
            _force_to_disk(path)
        if replace and folder.exists():
            shutil.rmtree(folder)
        os.rename(unfinished, folder)  # fails where files are, and takes the place of an empty folder
        _force_to_disk(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def remove_unfinished(folder: Path, of_the_dead: bool = False) -> None:
    """Remove what was not written to its end in a folder; what cannot be removed stays.

    Args:
        folder: in which no other process writes now.
        of_the_dead: others may write there, on other hosts too: only what processes of this host left that are gone
            is removed.
    """
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            match = _UNFINISHED.fullmatch(path.name)
            if match is None or (of_the_dead and (match[1] != HOST or _is_alive(int(match[2])))):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def write_csv(path: Path, names: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as a CSV file under the columns' names, no text of which is a formula. Raises OSError."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(for_csv, names))
    writer.writerows(map(for_csv, row) for row in rows)
    write_atomically(path, text.getvalue(), durable=False)


HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # in the names of files that are being written
_UNFINISHED = re.compile(r"\..+\.([0-9a-f]{8})-(\d{1,9})\.\d+\.tmp")


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}.{threading.get_ident()}.tmp")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
