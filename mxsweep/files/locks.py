"""Tell who works on a run: a lock on a file in its folder.

The operating system gives a process's locks back when it dies, however it dies, so that a claim never outlives its
holder and nothing has to guess whether a holder is still alive. The lock is `flock`, which NFS (over the network) and
Lustre (mounted with -o flock) know too. On a file system that gives every process the lock, a run may be done twice;
its result, written atomically, is whole all the same.

The file stays, since unlinking a locked file would let two processes hold "the" lock, each on a file of its own.
What is in it is a hint for people (host, process) and a count of the times that a process died in the run.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mxsweep.files.regular import NotRegularError, open_regular, read_regular, regular_descriptor

CLAIM_NAME = ".claim"
# Someone who only asks holds the lock for microseconds; within this time it is free again.
PATIENCE_S = 0.1
MOST_BYTES = 10_000  # of what a holder says of itself
LOOK_EVERY_S = 0.5  # how soon a process that ends with another notices that it is gone


class Lock:
    """Hold an exclusive lock on a file until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> "Lock | None":
        """Return the lock, or None if another process (or another Lock of this one) holds it. Raises OSError."""
        descriptor = _open(path)
        try:
            if _locked(descriptor, fcntl.LOCK_EX, PATIENCE_S):
                return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def read(self) -> dict[str, Any]:
        """Return what the last holder left; nothing if that is damaged."""
        try:
            content = json.loads(os.pread(self._descriptor, MOST_BYTES, 0))
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, content: dict[str, Any]) -> None:
        """Replace what is in the file. Not atomic: a reader takes half of it for nothing."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)

    def release(self) -> None:
        """Let go of the lock; the file stays."""
        os.close(self._descriptor)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for the lock on `path`, and hold it. Raises OSError."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether some process holds the lock on `path`."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return False
    with file:
        return not _locked(file.fileno(), fcntl.LOCK_SH, patience_s=0)


def end_with(path: Path) -> None:
    """End this process as soon as nobody holds the lock on `path`, as the process does that started it."""
    while True:
        with contextlib.suppress(OSError):  # a file system that does not answer for a moment
            if not is_held(path):
                break
        time.sleep(LOOK_EVERY_S)
    # In the middle of a run, as if killed: what is in its folder bears that, and a GPU must not stay taken.
    os._exit(1)


def holder(folder: Path) -> dict[str, Any] | None:
    """Return what the process that works on the run in `folder` says of itself; None if none does.

    A claim that cannot be opened, as another user's, or one that is no file, says of nobody that he works: whoever
    begins on the run is refused by it.
    """
    path = folder / CLAIM_NAME
    try:
        if not is_held(path):
            return None
    except (PermissionError, NotRegularError):
        return None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(read_regular(path, MOST_BYTES))
        return content if isinstance(content, dict) else {}
    return {}


def this_process() -> dict[str, Any]:
    """Describe this process for people who ask who holds a claim."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_NOFOLLOW: what is written here must not land where somebody's link points to.
    return regular_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)


def _locked(descriptor: int, kind: int, patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise OSError(error.errno, "this file system has no locks (flock); mount it with them") from None
            if not isinstance(error, BlockingIOError):
                raise
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
