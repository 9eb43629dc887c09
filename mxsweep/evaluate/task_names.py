"""Look up lm-eval's tasks by name without importing lm-eval, whose own index of tasks takes 6 to 25 s to read."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from mxsweep.terminal.errors import ConfigError

_NAMES = re.compile(r"^(?:task|group|tag):[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


def unknown_task(names: Sequence[str], own: Sequence[str] = ()) -> str | None:
    """Return why one of ``names`` cannot be evaluated: lm-eval has no task, group or tag of the name. Else None.

    ``own`` are the names of tasks of one's own, one of which may be meant.

    A name that stands in one of lm-eval's files is known (this takes a second at most); only for another is the index
    read, which also has what Python makes.
    """
    unseen = [name for name in names if name != "story" and not _has_file(name)]
    if not unseen or _tasks_folder() is None or set(unseen) <= _names_in_files():
        return None
    from mxsweep.evaluate.tasks import check_task_names

    try:
        check_task_names(unseen, own)
    except ConfigError as error:
        return str(error)
    return None


@functools.cache
def _tasks_folder() -> Path | None:
    try:
        spec = importlib.util.find_spec("lm_eval")
    except ValueError:  # a module without a spec, made by hand
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "tasks"


@functools.cache
def _has_file(name: str) -> bool:
    """Tell whether a single task of this name has a file of this name, as most do."""
    folder = _tasks_folder()
    if folder is None or not re.fullmatch(r"[\w.+-]+", name):
        return False
    file = next(folder.rglob(f"{name}.yaml"), None)
    return file is not None and name in _NAMES.findall(file.read_text(encoding="utf-8", errors="replace"))


@functools.cache
def _names_in_files() -> set[str]:
    folder = _tasks_folder()
    files = folder.rglob("*.yaml") if folder is not None else ()
    return {name for file in files for name in _NAMES.findall(file.read_text(encoding="utf-8", errors="replace"))}
