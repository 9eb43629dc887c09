"""Look up lm-eval's tasks by name without importing lm-eval, whose own index of tasks takes 6 to 25 s to read.

The names are those that its files give to tasks, groups and tags. Files that others include are read as well, since
names stand there, too; a few names thus are found that lm-eval has no task of, which it says when the run begins.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

# A key at the beginning of a line; behind it a word, or whatever else YAML has there, over several lines.
_NAMED = re.compile(
    rb"""^["']?(task|group|tag)["']?[ \t]*:[ \t]*"""
    rb"""(?:["']?([\w.+-]+)["']?[ \t\r]*$|(.*\n(?:[ \t#-].*\n|\r?\n)*))""",
    re.MULTILINE,
)


def unknown_task(names: Sequence[str], own: Sequence[str] = ()) -> str | None:
    """Return why one of ``names`` cannot be evaluated: lm-eval has no task, group or tag of the name. Else None.

    ``own`` are the names of tasks of one's own, one of which may be meant.
    """
    folder = _tasks_folder()
    if folder is None:
        return None
    unsure = [name for name in names if name != "story" and not _has_its_own_file(name, folder)]
    return not_a_task(unsure, names_in_files(), own) if unsure else None


def not_a_task(names: Sequence[str], known: Collection[str], own: Sequence[str] = ()) -> str | None:
    """Return what to say of the first of ``names`` that is not ``known``, with those near it; None where all are."""
    name = next((name for name in names if name != "story" and name not in known), None)
    if name is None:
        return None
    close = difflib.get_close_matches(name, [*own, *sorted(known)], n=3, cutoff=0.5)
    whose = "lm-eval or of task.include_path" if own else "lm-eval"
    return (
        f"task: {name!r} is not a task of {whose}; "
        + (f"near it: {', '.join(close)}; " if close else "")
        + "allowed: story, lambada_openai, wikitext, any name that `lm-eval ls tasks` lists"
    )


def names_in_files() -> frozenset[str]:
    """Return the names of tasks, groups and tags that stand in lm-eval's files."""
    return frozenset(_files_by_name())


def files_naming(name: str) -> tuple[Path, ...]:
    """Return lm-eval's files that give a name to a task, group or tag."""
    return tuple(_files_by_name().get(name, ()))


@functools.cache
def _has_its_own_file(name: str, folder: Path) -> bool:
    """Return whether a file is called after a task and names it, as most are: the other thousands are not read."""
    files = (Path(place, f"{name}.yaml") for place, _, names in os.walk(folder) if f"{name}.yaml" in names)
    return any(name in _names_of(file.read_bytes() + b"\n") for file in files)


@functools.cache
def _files_by_name() -> dict[str, list[Path]]:
    folder = _tasks_folder()
    found: dict[str, list[Path]] = {}
    for file in _task_files(folder) if folder is not None else ():
        for name in _names_of(file.read_bytes() + b"\n"):
            found.setdefault(name, []).append(file)
    return found


@functools.cache
def _tasks_folder() -> Path | None:
    try:
        spec = importlib.util.find_spec("lm_eval")
    except ValueError:  # a module without a spec, made by hand
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "tasks"


def _task_files(folder: Path) -> Iterator[Path]:
    """Yield lm-eval's YAML files; those that only others include have any name, often without a suffix."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names if name.endswith(("yaml", "yml")) or "." not in name)


def _names_of(content: bytes) -> Iterator[str]:
    for key, word, other in _NAMED.findall(content):
        value: Any = word.decode() if word else _value(other)
        if isinstance(value, str):
            yield value
        elif key == b"tag" and isinstance(value, list):
            yield from map(str, value)


def _value(text: bytes) -> Any:
    """Return what YAML makes of a text; None of what it makes nothing of, as of ``!function``, which is no name."""
    try:
        return yaml.safe_load(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
