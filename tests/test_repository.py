"""What stands around the package: the README, the pages, the targets, the public names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mxsweep

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [
    *sorted((REPOSITORY / "docs").glob("*.md")),
    README,
    *map(REPOSITORY.joinpath, ("CONTRIBUTING.md", "CHANGELOG.md")),
]
README_LIMIT = 9_800  # bytes
LEFT_BY_RUNS = {"experiment/budget.yaml"}


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page that are marked as being in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what a link into a page may name, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert README.stat().st_size <= README_LIMIT


def test_the_readme_begins_with_what_the_gate_runs() -> None:
    first, second, *_ = blocks(README, "bash")
    assert first.splitlines()[-1].startswith("python -m mxsweep -m ")
    assert second.splitlines()[-1] == "pytest"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_page_is_listed() -> None:
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (REPOSITORY / "docs/README.md").read_text(encoding="utf-8"))
    pages = {page.name for page in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
    assert set(listed) == pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_import_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert missing == [], node.module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w-]+/)+[\w.-]*\.(?:py|yaml|md|cu))`", text)
    named += re.findall(r"`((?:mxsweep|conf|tests|benchmarks|docs)/[\w./-]*)`", text)
    places = (REPOSITORY, REPOSITORY / "mxsweep", REPOSITORY / "conf")
    missing = [name for name in named if not any((place / name).exists() for place in places)]
    assert [name for name in missing if "NAME" not in name and name not in LEFT_BY_RUNS] == []


def test_the_page_of_recipes_has_each_experiment_once() -> None:
    """By the command that does it: what trains is a recipe of ``mxsweep.train``."""
    rows = re.findall(
        r"^\| `python -m (\S+) experiment=(\w+)` \|", (REPOSITORY / "docs/recipes.md").read_text(), re.MULTILINE
    )
    files = sorted((REPOSITORY / "conf/experiment").glob("*.yaml"))
    trained = {file.stem for file in files if "override /train:" in file.read_text(encoding="utf-8")}
    commands = {file.stem: f"mxsweep{'.train' if file.stem in trained else ''}" for file in files}
    assert sorted(rows) == sorted((command, name) for name, command in commands.items())


def test_the_page_of_trainings_has_each_recipe_of_formats() -> None:
    (sentence,) = re.findall(
        r"`conf/recipe/` has (.*?), each with its source", (REPOSITORY / "docs/training.md").read_text(), re.DOTALL
    )
    files = {file.stem for file in (REPOSITORY / "conf/recipe").glob("*.yaml")} - {"none"}
    assert sorted(re.findall(r"`(\w+)`", sentence)) == sorted(files)


def test_targets_that_are_called_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = set()
    for name in (".ci/run", "CONTRIBUTING.md", ".pre-commit-config.yaml"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        for words in re.findall(r"(?:^|`)make ((?:[a-z]+ ?)+)", text, re.MULTILINE):
            called |= set(words.split())
    assert {"lint", "types", "wheel"} <= called <= targets


def test_hooks_are_local() -> None:
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repository["repo"] for repository in hooks["repos"]} == {"local"}


def test_public_names_are_those_that_dir_shows() -> None:
    program = "import mxsweep, sys; print(*dir(mxsweep)); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert shown.stdout.split() == sorted(mxsweep.__all__)
    assert all(getattr(mxsweep, name) is not None for name in mxsweep.__all__)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        mxsweep.nothing_of_this_name  # noqa: B018


def test_as_many_test_processes_begin_as_are_asked_for_or_one_more_than_there_are_cpus(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pytestconfig.pluginmanager.has_plugin("xdist"):
        pytest.skip("pytest runs without xdist")
    from xdist.plugin import pytest_xdist_auto_num_workers

    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=pytestconfig) == 3
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS")
    count = pytest_xdist_auto_num_workers(pytestconfig)
    assert pytestconfig.hook.pytest_xdist_auto_num_workers(config=pytestconfig) == count + 1


def test_tests_run_without_xdist() -> None:
    words = ["-o", "addopts=", "-p", "no:xdist", "--import-mode=importlib", "--collect-only", "tests/test_words.py"]
    answer = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True, cwd=REPOSITORY)
    assert answer.returncode == 0, answer.stdout + answer.stderr
