"""Build mx.cu and rows.cpp for this machine's CPU, where it has a C++ compiler, and load what comes of it.

A compiler takes one to two seconds for all formats and dtypes together, once a machine: the library is kept in the
cache folder, under a name that all it depends on is part of. It is built in a thread, beside what the process does
meanwhile, and as soon as it would have been worth its while. ``CXX`` names another compiler than the first of
`COMPILERS`, with options behind it, or is empty for none.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from importlib import resources
from pathlib import Path

from mxsweep.files.cache import cache_folder
from mxsweep.files.kept_texts import keep_content, kept_content

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
SOURCES = ("mx.cu", "rows.cpp")
# A product and a sum stay two roundings, and nothing else may change a bit either.
FLAGS = (
    "-std=c++17", "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-fno-exceptions", "-fno-rtti", "-w", "-shared", "-fPIC",
)  # fmt: skip
# Where CPUs differ in the vectors that they have.
OF_THIS_CPU = ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ()
# Elements that torch quantizes in about the time that a compiler takes on one core.
WORTH_BUILDING = 2**25
_MOST_SECONDS = 300


class CpuLibrary:
    """Find, build and hold the library. A process has one: `LIBRARY`."""

    def __init__(self) -> None:
        self._loaded: ctypes.CDLL | None = None
        self._elements = 0  # that were quantized without it
        self._looked = False  # whether one was kept
        self._builder: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def built_by(self) -> str | None:
        """Return the compiler that the library in use was built by, as "GCC 12.2.0"; None where there is none."""
        return None if self._loaded is None else str(self._loaded.mx_compiler().decode())

    def for_elements(self, count: int) -> ctypes.CDLL | None:
        """Return the library if it is there, to quantize so many elements with; None where that is done otherwise.

        Where one is kept, the first call loads it. Where none is, it is built once there have been enough elements.
        """
        if self._loaded is not None:
            return self._loaded
        with self._lock:
            if not self._looked:
                self._looked, self._loaded = True, _kept_library()
            self._elements += count
            if self._loaded is None and self._elements >= WORTH_BUILDING:
                self._begin()
        return self._loaded

    def build(self) -> ctypes.CDLL | None:
        """Return the library, built if need be; None where that is not possible, which was logged."""
        if self.for_elements(0) is None:
            with self._lock:
                self._begin()
            if self._builder is not None:
                self._builder.join()
        return self._loaded

    def _begin(self) -> None:
        if self._builder is None:
            self._builder = threading.Thread(target=self._build, name="mxsweep-compiling")
            self._builder.start()

    def _build(self) -> None:
        self._loaded = _built_library()


LIBRARY = CpuLibrary()


@functools.cache
def _compiler() -> tuple[str, ...]:
    """Return the compiler's path and its options; empty where there is none."""
    named = os.environ.get("CXX")
    if named is not None:
        program, *options = shlex.split(named) or [""]
        found = shutil.which(program) if program else None
        if program and found is None:
            log.warning("CXX: there is no program %r, so that torch's operations quantize on the CPU", program)
        return (found, *options) if found else ()
    return next(((path,) for path in map(shutil.which, COMPILERS) if path), ())


def _command() -> list[str]:
    return [*_compiler(), *FLAGS, *OF_THIS_CPU]


def _source() -> str:
    folder = resources.files("mxsweep.numerics.kernels")
    texts = ((name, folder.joinpath(name).read_text(encoding="utf-8")) for name in SOURCES)
    return "\n".join(f'#line 1 "{name}"\n{text}' for name, text in texts)


def _name() -> str:
    """Return the name under which the library is kept: of source, compiler, options, the C library and the CPU."""
    program = Path(_compiler()[0]).resolve()
    status = program.stat()
    depends = (
        _source(), _command(), str(program), status.st_size, status.st_mtime_ns, platform.platform(), _kind_of_cpu(),
    )  # fmt: skip
    return f"kernels/rows-{hashlib.sha256(repr(depends).encode()).hexdigest()[:32]}.so"


def _kind_of_cpu() -> str:
    """Return what a CPU says of its model and of the instructions that it has; "" where a system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].split("\n")
    except OSError:
        return ""
    told = ("model", "model name", "cpu family", "vendor_id", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.split("\t")[0].split(":")[0].strip() in told)


def _kept_library() -> ctypes.CDLL | None:
    if not _compiler():
        return None
    try:
        name = _name()
        return _load(cache_folder() / name) if kept_content(name) is not None else None
    except OSError as error:  # built for a machine that was much like this one
        log.info("the library that quantizes on the CPU is not loaded: %s", error)
        return None


def _built_library() -> ctypes.CDLL | None:
    if not _compiler():
        return None
    with tempfile.TemporaryDirectory(prefix="mxsweep-") as folder:
        built = Path(folder) / "rows.so"
        try:
            command = [*_command(), "-x", "c++", "-", "-o", str(built)]
            subprocess.run(command, input=_source().encode(), capture_output=True, check=True, timeout=_MOST_SECONDS)
            library = _load(built)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or b""
            log.warning(
                "%s built no library that quantizes on the CPU, so that torch's operations do: %s %s",
                _compiler()[0], error, said.decode(errors="replace").strip()[:500],
            )  # fmt: skip
            return None
        keep_content(_name(), built.read_bytes())
        return library


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.mx_compiler.restype = ctypes.c_char_p
    library.mx_format_size.restype = ctypes.c_int64
    library.mx_quantize_rows.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library
