"""Load lm-eval's tasks, once a process, for every run that uses them.

Three things cost lm-eval 0.4.13 more than a small evaluation does, and are avoided: its index of all tasks (6 to
25 s), read only for a task whose file cannot be found by its name; its Jinja templates, compiled anew for every
document; and a data set loaded again for every run.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import lm_eval.utils
import yaml
from datasets import Dataset
from lm_eval.tasks import TaskManager

from mxsweep.config.checks import check_rows, file_digest, line_of_row
from mxsweep.config.own_tasks import OwnTask, OwnTasks
from mxsweep.evaluate.quiet import quiet_lm_eval
from mxsweep.evaluate.stories import story_task_config
from mxsweep.evaluate.task_names import not_a_task, unknown_task
from mxsweep.evaluate.task_rows import check_data_files, check_documents, dataset_of, reads_of
from mxsweep.machine.hub import offline_where_unreachable
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
    own: OwnTasks | None = None,
) -> dict[str, Any]:
    """Return lm-eval's task dictionary (``tasks``, ``groups``, ``group_map``); the same objects for the same call.

    Args:
        names: tasks, groups or tags of lm-eval, or "story".
        data: for a task, a JSON-lines file that replaces its data set.
        fields: for a task, the field that a row of its file must hold.
        num_fewshot: examples before each question; None for the task's own number.
        seed: of the choice of those examples.
        own: tasks of one's own, which come before lm-eval's of the same name.

    Raises:
        ConfigError: an unknown task, a file that does not fit, a row that makes no sense, a data set that cannot be
            had.
    """
    data, fields = dict(data or {}), dict(fields or {})
    # A file by its content, too: one that was written anew is another data set.
    files = tuple(
        (name, file, file_digest(file) if Path(file).expanduser().is_file() else None)
        for name, file in sorted(data.items())
    )
    own_names = [name for name in names if own is not None and name in own.names]
    contents = [(name, *each) for name in own_names if own for each in own.digests(name).items()]
    key = (names, files, num_fewshot, seed, tuple(contents))
    if key not in _kept:
        _kept[key] = _load(names, data, fields, num_fewshot, own if own_names else None)
    for task in _kept[key]["tasks"].values():
        # Every run draws the same few-shot examples: the task's generator went on with the last run.
        task.set_fewshot_seed(seed=seed)
    return _kept[key]


def _load(
    names: tuple[str, ...],
    data: dict[str, str],
    fields: dict[str, str],
    num_fewshot: int | None,
    own: OwnTasks | None,
) -> dict[str, Any]:
    quiet_lm_eval()
    with _folder_of(own, names) as folder:
        manager = _manager_of(names, own, folder)
        fed = [name for name in names if name in data and name != "story"]
        for name in fed:
            _check_single(name, manager)
        rows = {name: _rows_of(name, data[name], fields.get(name), manager) for name in fed}
        mine = _own_that_read_data(own, names, fed)
        for task in mine:
            check_data_files(task)
        reads_hub = not _is_all_here(names, fed, own, mine)
        try:
            with offline_where_unreachable() if reads_hub else contextlib.nullcontext():
                specs = [_spec(name, rows.get(name), manager) for name in names]
                loaded: dict[str, Any] = dict(manager.load(specs))
        except Exception as error:  # the Python of a task may raise anything
            for task in mine:
                check_data_files(task, columns=True)
            raise ConfigError(_why_not_loaded(names, own, mine, error)) from error
    _check_rows_of(loaded["tasks"], data, own)
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


def _own_that_read_data(own: OwnTasks | None, names: Sequence[str], fed: Sequence[str]) -> list[OwnTask]:
    """Return the tasks of one's own that these names come to and no file feeds."""
    return [own.tasks[name] for name in own.below(*names) if name in own.tasks and name not in fed] if own else []


def _is_all_here(names: Sequence[str], fed: Sequence[str], own: OwnTasks | None, mine: Sequence[OwnTask]) -> bool:
    """Return whether all data of these tasks are on this machine: made here, from files, or one's own."""
    mine_here = own is not None and all(task.is_local for task in mine)
    return all(
        name == "story" or name in fed or (mine_here and own is not None and name in own.names) for name in names
    )


def _why_not_loaded(names: Sequence[str], own: OwnTasks | None, mine: Sequence[OwnTask], error: Exception) -> str:
    """Return what to say of tasks that lm-eval cannot load: with the files of local data, else that a file may do."""
    # datasets says what is wrong in the error behind its own
    reason = " ".join(str(error.__cause__ or error).split())[:300]
    local = [task for task in mine if task.is_local]
    is_all_local = own is not None and all(name in own.names for name in names) and len(local) == len(mine)
    # Before the reason, which is long: a terminal shows the beginning.
    remedy = "" if is_all_local else "; without a network, task.data=FILE.jsonl gives a task's rows in a local file"
    text = f"task: {', '.join(names)} cannot be loaded{remedy} ({type(error).__name__}: {reason})"
    if files := [str(file) for task in local for file in task.data_files]:
        text += f"; the data are read from {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}"
    return text


def _rows_of(name: str, file: str, field: str | None, manager: TaskManager) -> Dataset:
    entry = manager.task_index.get(name)
    return dataset_of(file, check_rows(file, field), reads_of(entry.cfg if entry else None))


def _check_rows_of(tasks: Mapping[str, Any], data: Mapping[str, str], own: OwnTasks | None) -> None:
    """Raise ConfigError for a row of a local file that makes no question: of those of lm-eval's data sets all do."""
    for name, task in tasks.items():
        if name in data:
            in_order = task.config.process_docs is None  # else rows may be others, or fewer
            file = data[name]

            def line(number: int, file: str = file, in_order: bool = in_order) -> str:
                return f"{file!r} line {line_of_row(file, number)}" if in_order else f"row {number + 1} of {file!r}"

            check_documents(name, task, line)
        elif own is not None and name in own.tasks:
            task.config.metadata["config_source"] = str(own.tasks[name].file)  # not the folder that was made for it
            check_documents(name, task, lambda number: f"row {number + 1}")


@contextlib.contextmanager
def _folder_of(own: OwnTasks | None, names: Sequence[str]) -> Iterator[Path | None]:
    """Make, while the context lasts, a folder of the tasks of one's own that these names need; none without any.

    Each has a file there that includes its own and says with absolute paths where its data is. lm-eval thus looks at
    these alone, not at every YAML file below one's folder.
    """
    if own is None:
        yield None
        return
    needed = [name for name in own.below(*names) if name in own.tasks]
    with tempfile.TemporaryDirectory(prefix="mxsweep-tasks-") as folder:
        for number, name in enumerate(needed):
            text = yaml.safe_dump({"include": str(own.tasks[name].file)} | _plain_data(own.tasks[name]))
            (Path(folder) / f"{number}.yaml").write_text(text, encoding="utf-8")
        yield Path(folder)


def _plain_data(task: OwnTask) -> dict[str, Any]:
    """Return where a task's data is, but for what holds ``!function``, which no file can be made of."""
    plain = {}
    for key, value in task.data.items():
        with contextlib.suppress(yaml.YAMLError):
            yaml.safe_dump(value)
            plain[key] = value
    return plain


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


def _manager_of(names: Sequence[str], own: OwnTasks | None = None, folder: Path | None = None) -> TaskManager:
    """Return a task manager that knows ``names``: over the folders of the tasks' own files, or over all of lm-eval.

    Args:
        names: of tasks, groups and tags.
        own: tasks of one's own.
        folder: of files of those.
    """
    wanted = [
        name for name in (own.below(*names) if own else names) if name != "story" and not (own and name in own.names)
    ]
    root = Path(lm_eval.tasks.__file__).parent
    files = [next(iter(root.rglob(f"{name}.yaml")), None) for name in wanted]
    folders = [file.parent for file in files if file is not None]
    if len(folders) == len(wanted):
        manager = TaskManager(include_defaults=False, include_path=[*folders, *([folder] if folder else [])])
        # Not for a group, whose tasks may stand in other folders, which only the full index knows.
        if all(name in manager.all_subtasks for name in wanted):
            return manager
    own_names = own.names if own else ()
    if problem := unknown_task(wanted, own_names):  # without the index, which takes long
        raise ConfigError(problem)
    log.info("Reading lm-eval's index of tasks (up to half a minute, once)")
    if problem := not_a_task(wanted, _full_manager().all_tasks, own_names):
        raise ConfigError(problem)
    return TaskManager(include_path=folder) if folder else _full_manager()


@functools.cache
def _full_manager() -> TaskManager:
    return TaskManager()
