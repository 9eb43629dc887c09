"""The words of the package: docstrings begin with a verb, a file name stands for one subject."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mxsweep"
NO_VERBS = {"of", "what", "whether", "those", "these", "this", "that", "it", "they", "which", "how", "where", "when"}
NO_VERBS |= {"as", "to", "for", "the", "a", "an", "every", "each"}
ONE_SUBJECT_TWICE = {"gguf", "sensitivity", "train"}  # files read and written; the command, and what it measures


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), text


@pytest.mark.parametrize("place", sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}))
def test_docstrings_begin_with_a_verb(place: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / place).rglob("*.py")) if "." not in place else [PACKAGE / place]:
        for name, text in docstrings(path):
            if text.split()[0].strip("`:,").lower() in NO_VERBS:
                wrong.append(f"{path.relative_to(PACKAGE)} {name}: {text.splitlines()[0]}")
    assert wrong == []


def test_a_file_name_stands_for_one_subject() -> None:
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        if path.stem not in ("__init__", "__main__"):
            places[path.stem].append(path.parent.name)
    assert {name for name, folders in places.items() if len(folders) > 1} <= ONE_SUBJECT_TWICE
