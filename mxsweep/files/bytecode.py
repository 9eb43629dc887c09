"""Keep the bytecode of modules where Python writes none beside them, as in many images of containers.

Without it Python compiles each module in every process that imports it, which of torch, transformers and what they
import takes several times as long as to import them.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from types import CodeType

from mxsweep.files.atomic import write_atomically
from mxsweep.files.cache import cache_folder

FOLDER = "bytecode"
DIGEST_BYTES = hashlib.sha256().digest_size


class _KeepingLoader(SourceFileLoader):
    """Load modules from their sources as ever, or from the bytecode beside them, or else from what was kept."""

    def source_to_code(  # type: ignore[override]  # of which a static form is declared
        self, data: bytes, path: str, *, _optimize: int = -1
    ) -> CodeType:
        """Return the code of a module beside which no bytecode is: what was kept of this source, else compiled now."""
        if _is_written_beside(path):
            return super().source_to_code(data, path, _optimize=_optimize)
        compiled_by = (MAGIC_NUMBER, str(sys.flags.optimize).encode(), os.fsencode(path))
        name = hashlib.sha256(b"\0".join([*compiled_by, data])).hexdigest()
        if (code := _kept(name)) is None:
            code = super().source_to_code(data, path, _optimize=_optimize)
            _keep(name, code)
        return code


def keep_bytecode() -> None:
    """Have this process, from here on, take the bytecode that was kept of modules that have none, and keep it.

    For processes that mxsweep starts or is: how modules are imported is nothing for a library to change.
    """
    if _KEEPING not in sys.path_hooks:
        sys.path_hooks.insert(0, _KEEPING)
        sys.path_importer_cache.clear()  # which remembers who imports from a folder


_KEEPING = FileFinder.path_hook(
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (_KeepingLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def _is_written_beside(path: str) -> bool:
    """Return whether Python itself writes a module's bytecode."""
    if sys.dont_write_bytecode:
        return False
    folder = os.path.dirname(cache_from_source(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK)


def _kept(name: str) -> CodeType | None:
    """Return the code that was kept under a name; None where there is none, or it is damaged."""
    try:
        content = _place(name).read_bytes()
    except OSError:
        return None
    digest, bytecode = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(bytecode).digest() != digest:
        return None
    code: CodeType = marshal.loads(bytecode)
    return code


def _keep(name: str, code: CodeType) -> None:
    """Keep a code. Where that is not possible, it is compiled again next time."""
    bytecode = marshal.dumps(code)
    with contextlib.suppress(OSError):
        write_atomically(_place(name), hashlib.sha256(bytecode).digest() + bytecode, durable=False)


def _place(name: str) -> Path:
    return cache_folder(FOLDER) / name[:2] / name
