"""Keep contents in the cache folder, each beside its digest, so that one that was cut or changed is made again."""

from __future__ import annotations

import contextlib
import hashlib
import logging

from mxsweep.files.atomic import write_atomically
from mxsweep.files.cache import cache_folder
from mxsweep.files.regular import read_regular

log = logging.getLogger(__name__)

MOST_BYTES = 64_000_000


def kept_text(name: str) -> str | None:
    """Return a text that was kept; None where there is none, or where it is not what was kept, which is said."""
    content = kept_content(name)
    return None if content is None else content.decode("utf-8")


def keep_text(name: str, text: str) -> None:
    """Keep a text. Where that is not possible, it is made again next time."""
    keep_content(name, text.encode("utf-8"))


def kept_content(name: str) -> bytes | None:
    """Return what was kept under a name; None as for :func:`kept_text`."""
    try:
        path = cache_folder() / name
        content = read_regular(path, MOST_BYTES)
        digest = read_regular(path.with_name(_seal(path.name)), MOST_BYTES).decode("ascii", "replace")
    except OSError:
        return None
    if digest != hashlib.sha256(content).hexdigest():
        log.warning("%s is damaged, and is made again", path)
        return None
    return content


def keep_content(name: str, content: bytes) -> None:
    """Keep a content. Where that is not possible, it is made again next time."""
    with contextlib.suppress(OSError):
        write_atomically(cache_folder() / name, content, durable=False)
        write_atomically(cache_folder() / _seal(name), hashlib.sha256(content).hexdigest(), durable=False)


def _seal(name: str) -> str:
    return f"{name}.sha256"
