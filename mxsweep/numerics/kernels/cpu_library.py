"""Hold the library that quantizes on this machine's CPU, where it has a C++ compiler: load the one kept, or build it.

A compiler takes one to two seconds for all formats and dtypes together, once a machine: the library is kept in the
cache folder, under a name that all it depends on is part of. It is built in a thread, beside what the process does
meanwhile, and as soon as it would have been worth its while. A process that ends sooner does not wait for it.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mxsweep.files.cache import cache_folder
from mxsweep.files.kept_texts import keep_content, kept_content
from mxsweep.numerics.kernels.cpu_build import Compilation, compiler, library_name
from mxsweep.numerics.kernels.cpu_check import NoLibrary, load_and_try

log = logging.getLogger(__name__)

# Elements that torch quantizes in about the time that a compiler takes on one core.
WORTH_BUILDING = 2**25
_SECONDS_TO_END = 10  # that a process waits for the thread to tidy up after a compiler that was stopped


class CpuLibrary:
    """Find, build and hold the library. A process has one: `LIBRARY`."""

    def __init__(self) -> None:
        self._loaded: ctypes.CDLL | None = None
        self._elements = 0  # that were quantized without it
        self._looked = False  # whether one was kept
        self._given_up = False
        self._builder: threading.Thread | None = None
        self._compilation = Compilation()
        self._lock = threading.Lock()

    @property
    def built_by(self) -> str | None:
        """Return the compiler that the library in use was built by, as "GCC 12.2.0"; None where there is none."""
        return None if self._loaded is None else str(self._loaded.mx_compiler().decode())

    def for_elements(self, count: int) -> ctypes.CDLL | None:
        """Return the library if it is there, to quantize so many elements with; None where that is done otherwise.

        Where one is kept, the first call loads it. Where none is, it is built once there have been enough elements.
        Whatever goes wrong is logged, once.
        """
        if self._loaded is not None or self._given_up:
            return self._loaded
        with self._lock:
            try:
                if not self._looked:
                    self._looked, self._loaded = True, _kept_library()
                self._elements += count
                if self._loaded is None and self._elements >= WORTH_BUILDING:
                    self._begin()
            except Exception as error:
                self._give_up(error)
        return self._loaded

    def build(self) -> ctypes.CDLL | None:
        """Return the library, built if need be; None where that is not possible, which was logged."""
        if self.for_elements(0) is None:
            self.for_elements(WORTH_BUILDING)
            if self._builder is not None:
                self._builder.join()
        return self._loaded

    def _begin(self) -> None:
        if self._builder is None and not self._given_up:
            builder = threading.Thread(target=self._build, name="mxsweep-compiling", daemon=True)
            builder.start()
            self._builder = builder
            atexit.register(self._stop, os.getpid())

    def _build(self) -> None:
        try:
            self._loaded = _built_library(self._compilation)
        except Exception as error:
            if not self._compilation.stopped:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._given_up:
            self._given_up = True
            named = f"CXX={os.environ['CXX']!r}: " if "CXX" in os.environ else ""
            said = str(error) if isinstance(error, NoLibrary) else f"{type(error).__name__}: {error}"
            log.warning("There is no library, so that torch's operations quantize on the CPU: %s%s", named, said)

    def _stop(self, process: int) -> None:
        """Let a process end without its compiler, which is not that of a process forked from it."""
        if os.getpid() == process and self._builder is not None:
            self._compilation.stop()
            self._builder.join(_SECONDS_TO_END)


LIBRARY = CpuLibrary()


def _kept_library() -> ctypes.CDLL | None:
    if not compiler():
        return None
    name = library_name()
    if kept_content(name) is None:
        return None
    try:
        with ThreadPoolExecutor(1, "mxsweep-loading") as own:  # see cpu_check.py
            return own.submit(load_and_try, cache_folder() / name).result()
    except OSError as error:  # built for a machine that was much like this one
        log.info("the library that quantizes on the CPU is not loaded: %s", error)
        return None


def _built_library(compilation: Compilation) -> ctypes.CDLL | None:
    if not compiler():
        return None
    with tempfile.TemporaryDirectory(prefix="mxsweep-") as folder:
        built = Path(folder) / "rows.so"
        compilation.build(built)
        library = load_and_try(built)
        keep_content(library_name(), built.read_bytes())
        return library
