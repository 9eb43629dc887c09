"""Bytecode is kept in the cache folder where Python was told to write none and an installation came without it."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mxsweep.files.bytecode import FOLDER

# Says whether Python compiled a module, in this process and in one that it starts.
IMPORT = """
compiled = []
sys.addaudithook(lambda name, about: name == "compile" and compiled.append(str(about[1])))
import torch.inner
print(torch.inner.HELD, sum("inner" in path for path in compiled))
"""
PROGRAM = f"""
import subprocess, sys
from mxsweep.files.bytecode import keep_bytecode
keep_bytecode(); keep_bytecode()
{IMPORT}
subprocess.run([sys.executable, "-c", "import sys" + {IMPORT!r}], check=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a package that goes by torch's name."""
    package = tmp_path / "modules" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("HELD = 'first'")
    return tmp_path


def imported(folder: Path, **environment: str) -> list[str]:
    """Import the package; return what each process printed."""
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    paths = os.pathsep.join([str(folder / "modules"), str(Path(__file__).resolve().parents[2])])
    done = subprocess.run(
        [sys.executable, "-u", "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": paths, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def kept(folder: Path) -> list[Path]:
    return list((folder / "cache" / "mxsweep" / FOLDER).rglob("inner.*.pyc"))


def test_a_module_is_compiled_once(folder: Path) -> None:
    assert imported(folder) == ["first 1", "first 0"]
    assert imported(folder) == ["first 0", "first 0"]
    assert len(kept(folder)) == 1
    assert not list((folder / "modules").rglob("*.pyc"))


def test_a_source_that_changed_is_compiled_anew(folder: Path) -> None:
    imported(folder)
    (folder / "modules" / "torch" / "inner.py").write_text("HELD = 'another'")
    assert imported(folder) == ["another 1", "another 0"]


def test_bytecode_that_came_with_an_installation_is_used(folder: Path) -> None:
    assert compileall.compile_dir(folder / "modules", quiet=2)
    assert imported(folder) == ["first 0", "first 0"]
    assert not kept(folder)


def test_where_python_writes_bytecode_it_is_left_to(folder: Path) -> None:
    assert imported(folder, PYTHONDONTWRITEBYTECODE="") == ["first 1", "first 0"]
    assert not kept(folder)


def test_a_place_that_somebody_named_for_bytecode_stays(folder: Path) -> None:
    assert imported(folder, PYTHONPYCACHEPREFIX=str(folder / "theirs")) == ["first 1", "first 1"]
    assert not kept(folder)


def test_without_a_place_to_keep_it_modules_are_imported_all_the_same(folder: Path) -> None:
    (folder / "cache").write_text("a file")
    assert imported(folder) == ["first 1", "first 1"]


def test_a_library_imports_as_python_does() -> None:
    settings = "sys.pycache_prefix, sys.dont_write_bytecode"
    code = f"import sys; before = {settings}; import mxsweep; assert ({settings}) == before"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
