"""Load lm-eval's tasks, once a process, for every run that uses them.

Three things cost lm-eval 0.4.13 more than a small evaluation does, and are avoided: its index of all tasks (6 to
25 s), read only for a task whose file cannot be found by its name; its Jinja templates, compiled anew for every
document; and a data set loaded again for every run.
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import lm_eval.utils
from datasets import Dataset
from jinja2 import TemplateError
from lm_eval.tasks import TaskManager

from mxsweep.config.checks import check_rows, file_digest
from mxsweep.evaluate.quiet import quiet_lm_eval
from mxsweep.evaluate.stories import story_task_config
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

# The same template text always compiles to the same template.
lm_eval.utils.env.from_string = functools.lru_cache(maxsize=None)(lm_eval.utils.env.from_string)

_kept: dict[tuple[Any, ...], dict[str, Any]] = {}


def load_tasks(
    names: tuple[str, ...],
    *,
    data: Mapping[str, str] | None = None,
    fields: Mapping[str, str] | None = None,
    num_fewshot: int | None = None,
    seed: int = 1234,
) -> dict[str, Any]:
    """Return lm-eval's task dictionary (``tasks``, ``groups``, ``group_map``); the same objects for the same call.

    Args:
        names: tasks, groups or tags of lm-eval, or "story".
        data: for a task, a JSON-lines file that replaces its data set.
        fields: for a task, the field that a row of its file must hold.
        num_fewshot: examples before each question; None for the task's own number.
        seed: of the choice of those examples.

    Raises:
        ConfigError: an unknown task, a file that does not fit, a data set that cannot be had.
    """
    data, fields = dict(data or {}), dict(fields or {})
    # A file by its content, too: one that was written anew is another data set.
    files = tuple(
        (name, file, file_digest(file) if Path(file).expanduser().is_file() else None)
        for name, file in sorted(data.items())
    )
    key = (names, files, num_fewshot, seed)
    if key not in _kept:
        _kept[key] = _load(names, data, fields, num_fewshot)
    for task in _kept[key]["tasks"].values():
        # Every run draws the same few-shot examples: the task's generator went on with the last run.
        task.set_fewshot_seed(seed=seed)
    return _kept[key]


def _load(
    names: tuple[str, ...], data: dict[str, str], fields: dict[str, str], num_fewshot: int | None
) -> dict[str, Any]:
    quiet_lm_eval()
    manager = _manager_of(names)
    fed = [name for name in names if name in data and name != "story"]
    for name in fed:
        _check_single(name, manager)
    rows = {name: Dataset.from_list(check_rows(data[name], fields.get(name))) for name in fed}
    try:
        specs = [_spec(name, rows.get(name), manager) for name in names]
        loaded: dict[str, Any] = dict(manager.load(specs))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, TemplateError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"task: {', '.join(names)} cannot be loaded ({type(error).__name__}: {reason}); "
            "without a network, give a task's rows in a local file with task.data=FILE.jsonl"
        ) from error
    for task in loaded["tasks"].values():
        # As lm-eval's own simple_evaluate does: a task that fixes 0 examples keeps it.
        fixed = task.get_config("num_fewshot")
        if num_fewshot is not None and fixed != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif fixed is None:
            task.set_config(key="num_fewshot", value=0)
        elif num_fewshot:
            log.warning("task.num_fewshot=%s is not used: the task itself fixes 0", num_fewshot)
    return loaded


def _check_single(name: str, manager: TaskManager) -> None:
    if name not in manager.all_subtasks:
        raise ConfigError(f"task.data: {name!r} is a group of tasks or written in Python; a file can feed single tasks")


def _spec(name: str, rows: Dataset | None, manager: TaskManager) -> Any:
    """Return what lm-eval's manager loads: a name, a task's config, or a task whose one split are these rows."""
    if name == "story":
        return story_task_config()
    if rows is None:
        return name

    def dataset(**_: Any) -> dict[str, Dataset]:
        return {"test": rows}

    one_split = {"training_split": None, "validation_split": None, "test_split": "test", "fewshot_split": "test"}
    # A group may give its members' configs other values, which a name by itself cannot have.
    member = {"task": name, "custom_dataset": dataset} | one_split
    return manager.load({"group": f"{name} with rows of a file", "task": [member]})["tasks"][name]


def _manager_of(names: tuple[str, ...]) -> TaskManager:
    """Return a task manager that knows ``names``: over the folders of the tasks' own files, or over all of lm-eval."""
    wanted = [name for name in names if name != "story"]
    root = Path(lm_eval.tasks.__file__).parent
    files = [next(iter(root.rglob(f"{name}.yaml")), None) for name in wanted]
    folders = [file.parent for file in files if file is not None]
    if len(folders) == len(wanted):
        manager = TaskManager(include_defaults=False, include_path=list(folders))
        # Not for a group, whose tasks may stand in other folders, which only the full index knows.
        if all(name in manager.all_subtasks for name in wanted):
            return manager
    check_task_names(wanted)
    return _full_manager()


def check_task_names(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that lm-eval's index has no task, group or tag of."""
    quiet_lm_eval()
    log.info("Reading lm-eval's index of tasks (up to half a minute, once)")
    manager = _full_manager()
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            raise ConfigError(
                f"task: {name!r} is not a task of lm-eval; "
                + (f"near it: {', '.join(close)}; " if close else "")
                + "allowed: story, lambada_openai, wikitext, any name that `lm-eval ls tasks` lists"
            )


@functools.cache
def _full_manager() -> TaskManager:
    return TaskManager()
