"""The layers of the package, checked from its imports, also those inside functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "mxsweep"

# An import goes from a package to one above it in this list, never the other way.
LAYERS = (
    "terminal",
    "machine",
    "files",
    "statistics",
    "formats",
    "config",
    "numerics",
    "solvers",
    "export",
    "model",
    "forward",
    "evaluate",
    "calibrate",
    "training",
    "results",
    "study",
    "report",
    "runs",
    "measure",
    "sweeps",
)
WITHOUT_TORCH = ("terminal", "machine", "files", "statistics", "formats", "config", "results", "study", "report")
HEAVY = ("torch", "transformers", "lm_eval", "safetensors.torch")
COMPUTING = (*HEAVY, "datasets", "matplotlib", "numpy", "pandas", "pyarrow", "scipy")
IN_A_PACKAGE = "mxsweep.export.__main__"  # a command, too: its package's name is what is typed
COMMANDS = ("__main__", "collect", "inspect", "sensitivity", "train")
ASSETS = (
    "assets"  # the embedded model and how it was made: data to everything else, so that it may import what it needs
)
TEST_FOLDERS_OF_NO_PACKAGE = ("data", "helpers", "integration", "matrix", "peers", "__pycache__")


@cache
def module_files() -> dict[str, Path]:
    """Return every module of the package, dotted name to file."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_names(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, dotted: of `from a.b import c` a.b.c if that is a module, else a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in module_files() else node.module


@cache
def imports(for_types_too: bool = True) -> dict[str, frozenset[str]]:
    """Return for every module what it imports.

    Args:
        for_types_too: also under `if TYPE_CHECKING`, where an import is never done.
    """
    names = {}
    for module, path in module_files().items():
        tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"), path)
        if not for_types_too:
            tree = WithoutTypeChecking().visit(tree)
        names[module] = frozenset(imported_names(tree, path))
    return names


class WithoutTypeChecking(ast.NodeTransformer):
    """Take out what only type checkers read."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)


def imports_within() -> Iterator[tuple[str, str]]:
    """Yield every import of one of the package's modules by another: importer, imported."""
    for module, names in imports().items():
        yield from ((module, name) for name in sorted(names) if name in module_files())


def place_of(module: str) -> str:
    """Return the folder of a module below mxsweep/, or the name of a module that lies there itself."""
    return module.partition(".")[2].partition(".")[0]


def test_every_folder_has_a_layer_and_nothing_lies_beside_them_but_the_commands() -> None:
    places = {place_of(module) for module in module_files()} - {""}
    assert places == {*LAYERS, *COMMANDS, ASSETS}
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__", *COMMANDS}


def test_no_import_runs_upward() -> None:
    rank = {name: number for number, name in enumerate(LAYERS)}
    upward = []
    for module, name in imports_within():
        importer, imported = place_of(module), place_of(name)
        if (
            module != IN_A_PACKAGE
            and importer in rank
            and imported != importer
            and rank.get(imported, len(LAYERS)) > rank[importer]
        ):
            upward.append(f"{module} imports {name}")
    assert upward == []


def test_no_module_imports_a_command_the_assets_or_the_public_names() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, name in imports_within()
        if (place_of(name) in (*COMMANDS, ASSETS, "") or name == IN_A_PACKAGE) and place_of(module) != ASSETS
    ]
    assert wrong == []


def test_no_circle_between_modules() -> None:
    graph: dict[str, set[str]] = {module: set() for module in module_files()}
    for module, name in imports_within():
        graph[module].add(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_packages_without_torch_name_nothing_that_needs_torch() -> None:
    wrong = []
    for module, names in imports(for_types_too=False).items():
        if place_of(module) not in WITHOUT_TORCH:
            continue
        heavy = [name for name in names if name in HEAVY or name.split(".")[0] in HEAVY]
        inner = [name for name in names if name in module_files() and place_of(name) not in WITHOUT_TORCH]
        wrong += [f"{module} imports {name}" for name in sorted(heavy + inner)]
    assert wrong == []


def test_packages_without_torch_import_without_torch() -> None:
    modules = [module for module in module_files() if place_of(module) in WITHOUT_TORCH]
    program = (
        "import importlib, sys\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        f"    heavy = {set(HEAVY)!r} & sys.modules.keys()\n"
        "    assert not heavy, f'{module}: {heavy}'\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr


def test_what_starts_runs_and_holds_their_results_imports_without_torch() -> None:
    program = (
        "import sys\n"
        "import mxsweep.__main__, mxsweep.runs.run, mxsweep.runs.run_result, mxsweep.sweeps.worker\n"
        f"heavy = {set(HEAVY)!r} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert finished.returncode == 0, finished.stderr


def test_questions_and_refusals_import_nothing_that_computes(tmp_path: Path) -> None:
    """What is answered without a model is answered at once: libraries that compute take seconds to import."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    asked = [
        ("__main__", ["--help"], 0),
        ("__main__", ["block_size=16", "--cfg", "job"], 0),
        ("__main__", ["block_size=-1"], 2),
        ("__main__", ["no_such_knob=1"], 2),
        ("__main__", ["-m", "block_size=16,32", "reuse=always"], 2),
        ("__main__", ["model=hf", "model.path=owner/on-the-hub", "dry_run=true"], 0),
        ("train", ["--help"], 0),
        ("collect", ["--status", "."], 0),
        ("collect", ["--status", "nowhere"], 2),
    ]
    program = (
        "import importlib, sys\n"
        f"for command, words, code in {asked!r}:\n"
        "    main = importlib.import_module(f'mxsweep.{command}').main\n"
        "    assert main(words) == code, words\n"
        f"    heavy = {set(COMPUTING)!r} & sys.modules.keys()\n"
        "    assert not heavy, (words, heavy)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert finished.returncode == 0, finished.stderr


def test_tests_mirror_the_package() -> None:
    tests = REPOSITORY / "tests"
    folders = {path.name for path in tests.iterdir() if path.is_dir() and any(path.glob("*.*"))}
    assert folders - {*LAYERS, *TEST_FOLDERS_OF_NO_PACKAGE} == set()
    assert {path.name for path in tests.glob("test_*.py")} == {"test_layers.py", "test_repository.py", "test_words.py"}


def test_the_page_on_the_architecture_has_the_layers_in_this_order() -> None:
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| (yes|no) \|", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(LAYERS)
    assert [name for name, torch in rows if torch == "no"] == list(WITHOUT_TORCH)
