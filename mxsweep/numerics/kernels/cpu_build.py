"""Make one C++ source of mx.cu, rows.cpp and measures.cpp, and have this machine's compiler build a library of it.

``CXX`` names another compiler than the first of `COMPILERS`, with options behind it, or is empty for none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import threading
from pathlib import Path

from mxsweep.numerics.kernels.cpu_check import NoLibrary
from mxsweep.numerics.kernels.source import joined_files

COMPILERS = ("c++", "g++", "clang++")
SOURCES = ("mx.cu", "rows.cpp", "measures.cpp")
# They stand behind options of CXX, as the last one counts. A product and a sum stay two roundings, and nothing else may
# change a bit either. Without start files, of which the source needs none, none is among them that has a process make
# zeros of subnormal numbers.
FLAGS = (
    "-std=c++17", "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-fno-fast-math",
    "-fno-unsafe-math-optimizations", "-fno-finite-math-only", "-fno-associative-math", "-fno-reciprocal-math",
    "-fsigned-zeros", "-fno-rounding-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fno-exceptions", "-fno-rtti", "-w", "-shared", "-fPIC", "-nostartfiles",
)  # fmt: skip
# Where CPUs differ in the vectors that they have.
OF_THIS_CPU = ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ()
_MOST_SECONDS = 60


class Compilation:
    """Run a compiler, which a thread waits for, in a group of processes that another thread may end."""

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def build(self, path: Path) -> None:
        """Write the library to a path.

        Raises:
            NoLibrary: the compiler failed, or took too long, or was stopped.
            OSError: it cannot be run.
        """
        command = [*command_line(), "-x", "c++", "-", "-o", str(path)]
        with self._lock:
            if self.stopped:
                raise NoLibrary("stopped")
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        with process:
            try:
                _, said = process.communicate(source().encode(), timeout=_MOST_SECONDS)
            except subprocess.TimeoutExpired:
                raise NoLibrary(f"{command[0]} built none in {_MOST_SECONDS} seconds") from None
            finally:
                self._end()
        if process.returncode:
            text = said.decode(errors="replace").strip()[:500]
            raise NoLibrary(f"{command[0]} built none, and ended with {process.returncode}: {text}")

    def stop(self) -> None:
        """End the compiler and what it started, now or when it would begin."""
        with self._lock:
            self.stopped = True
            self._end()

    def _end(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)  # a compiler starts others
                else:
                    process.kill()


def compiler() -> tuple[str, ...]:
    """Return the compiler's path and its options; empty where there is none.

    Raises:
        NoLibrary: CXX names none.
    """
    named = os.environ.get("CXX")
    if named is None:
        return next(((path,) for path in map(shutil.which, COMPILERS) if path), ())
    try:
        program, *options = shlex.split(named) or [""]
    except ValueError as error:
        raise NoLibrary(f"it cannot be split into words: {error}") from None
    found = shutil.which(program) if program else None
    if program and found is None:
        raise NoLibrary(f"there is no program {program!r}")
    return (found, *options) if found else ()


def command_line() -> list[str]:
    """Return the compiler with all options."""
    return [*compiler(), *FLAGS, *OF_THIS_CPU]


def source() -> str:
    """Return the C++ source."""
    return joined_files(*SOURCES)


def library_name() -> str:
    """Return the name under which the library is kept: of source, compiler, options, the C library and the CPU."""
    program = Path(compiler()[0]).resolve()
    status = program.stat()
    depends = (
        source(), command_line(), str(program), status.st_size, status.st_mtime_ns, platform.platform(), _kind_of_cpu(),
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
