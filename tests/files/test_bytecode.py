"""Bytecode is kept where Python writes none beside a module, and is of the source that there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mxsweep.files.bytecode import DIGEST_BYTES, FOLDER

# Says what a module holds, and whether Python compiled it.
PROGRAM = """
import sys
from mxsweep.files.bytecode import keep_bytecode
keep_bytecode(); keep_bytecode()
compiled = []
sys.addaudithook(lambda name, about: name == "compile" and compiled.append(str(about[1])))
import some_module, some_package.inner
print(some_module.HELD, some_package.inner.HELD, sum("some_" in path for path in compiled))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module and a package, of which Python may write no bytecode there."""
    modules = tmp_path / "modules"
    (modules / "some_package").mkdir(parents=True)
    (modules / "some_package" / "__init__.py").write_text("")
    (modules / "some_package" / "inner.py").write_text("HELD = 'inner'")
    (modules / "some_module.py").write_text("HELD = 'first'")
    return tmp_path


def run(folder: Path, *words: str, **environment: str) -> str:
    """Import the modules; return what they hold, and how many were compiled."""
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    paths = os.pathsep.join([str(folder / "modules"), str(Path(__file__).resolve().parents[2])])
    done = subprocess.run(
        [sys.executable, *words, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": paths, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def kept(folder: Path) -> list[Path]:
    """The files that were kept of the three modules; a few of mxsweep's own are imported after, too."""
    return [path for path in (folder / "cache" / "mxsweep" / FOLDER).glob("*/*") if b"some_" in path.read_bytes()]


def test_a_module_is_compiled_once(folder: Path) -> None:
    assert run(folder) == "first inner 3"
    assert len(kept(folder)) == 3
    assert run(folder) == "first inner 0"
    assert run(folder, "-O") == "first inner 3"  # which leaves asserts out
    assert not list((folder / "modules").rglob("*.pyc"))


def test_a_source_that_changed_is_compiled_anew(folder: Path) -> None:
    run(folder)
    source = folder / "modules" / "some_module.py"
    times = source.stat()
    source.write_text("HELD = 'other'")  # as long, and of the same time
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(folder) == "other inner 1"


@pytest.mark.parametrize("damage", [lambda content: content[:-5], lambda content: b"", lambda content: content + b"x"])
def test_what_is_damaged_is_compiled_anew(damage: object, folder: Path) -> None:
    run(folder)
    for path in kept(folder):
        path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert run(folder) == "first inner 3"
    assert run(folder) == "first inner 0"
    assert all(len(path.read_bytes()) > DIGEST_BYTES for path in kept(folder))


def test_without_a_place_to_keep_it_modules_are_imported_all_the_same(folder: Path) -> None:
    (folder / "cache").write_text("a file")
    assert run(folder) == run(folder) == "first inner 3"


def test_nothing_is_kept_where_python_writes_beside_the_module(folder: Path) -> None:
    assert run(folder, PYTHONDONTWRITEBYTECODE="") == "first inner 3"
    assert not kept(folder) and len(list((folder / "modules").rglob("*.pyc"))) == 3
    assert run(folder) == "first inner 0"


def test_a_library_imports_as_python_does(folder: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; before = list(sys.path_hooks); import mxsweep; assert sys.path_hooks == before",
        ],
        check=False,
    )
    assert done.returncode == 0
