"""Sources of kernels compiled by the host's compiler, for running them on machines without a GPU."""

import shutil
import subprocess
from pathlib import Path

import pytest

HELPERS = Path(__file__).parent
OPTIONS = ("-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-shared", "-fPIC")


def compiled(name: str, source: str, folder: Path, *options: str, compilers: tuple[str, ...] = ("g++", "c++")) -> Path:
    """The library that a C++ file of this folder makes of a source, which it includes as SOURCE.

    Skips the test where there is no compiler.
    """
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        pytest.skip(f"no C++ compiler ({' or '.join(compilers)}) on this machine")
    folder.mkdir(exist_ok=True)
    written, built = folder / "source.cu", folder / "library.so"
    written.write_text(source, encoding="utf-8")
    command = [compiler, *OPTIONS, *options, f'-DSOURCE="{written}"', "-o", built, HELPERS / name]
    subprocess.run(command, check=True)
    return built
