"""Hold what a run evaluates as a config has it: lm-eval tasks, and the files that feed them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from mxsweep.config.checks import expanded, is_folder, line_of_row, rows_of
from mxsweep.config.own_tasks import SUFFIXES, OwnTasks, read_own_tasks
from mxsweep.files.digests import stamps
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted

# Of a row: longer than any book. Its tokens would take gigabytes.
MOST_CHARACTERS = 2**23


@dataclass(frozen=True)
class TaskConfig:
    """Hold which lm-eval tasks a run evaluates, and what feeds them.

    ``data`` maps a task to a local file that replaces its data set; ``fields`` to the field a row must hold.
    ``include_path`` is a folder of tasks of one's own, or the file of one; ``fewshot_evaluated`` allows few-shot
    examples from the evaluated rows.
    """

    names: tuple[str, ...]
    fields: dict[str, str]
    data: dict[str, str]
    num_fewshot: int | None
    apply_chat_template: bool
    include_path: str | None = None
    fewshot_evaluated: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) and name for name in self.names):
            raise ConfigError(f"task: {quoted(self.names)} must be one or more names of lm-eval tasks")
        if not isinstance(self.fields, dict):
            raise ConfigError(
                f"task.fields: {quoted(self.fields)} must map tasks to fields, as {{lambada_openai: text}}"
            )
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"task: {quoted(self.names)} names a task twice")
        for name in self.data:
            if name not in self.names:
                raise ConfigError(f"task.data: {name!r} is not among the tasks {', '.join(self.names)}")
            if name == "story":
                raise ConfigError("task.data: the task 'story' generates its own data and takes no file")
        self.rows_of_files()  # refuses those that cannot be read
        if (own := self.own) is not None:
            for name in self.own_names:
                own.files(name)  # refuses data that are not there

    def rows_of_files(self) -> dict[str, int]:
        """Return how many rows the file of each task that has one holds. Raises ConfigError for a row that is none."""
        return {
            name: _count_rows(file, self.fields.get(name), stamps([expanded("task.data", file)]))
            for name, file in self.data.items()
        }

    @cached_property
    def own(self) -> OwnTasks | None:
        """Return the tasks of one's own; None without any. Raises ConfigError."""
        return None if self.include_path is None else read_own_tasks(self.include_path)

    @property
    def own_names(self) -> list[str]:
        """Return those of the names that are tasks of one's own."""
        return [name for name in self.names if self.own is not None and name in self.own.names]

    @property
    def names_of_lm_eval(self) -> list[str]:
        """Return the names that lm-eval must know: those that are not one's own, members of one's own groups too."""
        own = self.own
        if own is None:
            return list(self.names)
        return [name for name in own.below(*self.names) if name not in own.names]

    @property
    def name(self) -> str:
        """Return what tables call the tasks."""
        return "+".join(self.names) or "none"


def resolve_task(knobs: dict[str, Any]) -> TaskConfig:
    """Return the config of what is evaluated. Raises ConfigError."""
    names, data, include_path = knobs.pop("names"), knobs.pop("data"), knobs.pop("include_path")
    names = tuple(names) if isinstance(names, list) else (names,)
    names = tuple(_named(name, include_path) for name in names)
    if data is None:
        data = {}
    elif not isinstance(data, dict):
        if not names:
            raise ConfigError(f"task.data: {quoted(data)} goes with a task, and task=none is none")
        if len(names) > 1:
            raise ConfigError(
                f"task.data: {quoted(data)} is one file for the tasks {', '.join(names)}; "
                f"write a mapping, as task.data={{{names[0]}: FILE.jsonl}}"
            )
        data = {names[0]: data}
    data = {key: str(file) for key, file in data.items()}
    return TaskConfig(names=names, data=data, include_path=include_path, **knobs)


def _named(name: Any, include_path: str | None) -> Any:
    """Return the name of the task in a file that stands in place of a name, ``task=FILE.yaml``; a name as it is.

    The file itself is ``include_path``, whose relative path counts from where it was typed.
    """
    if not isinstance(name, str) or not name.endswith(SUFFIXES):
        return name
    if include_path is None:
        raise ConfigError(f"task.names: {name!r} is a file; write task={name}")
    if is_folder(expanded("task.include_path", include_path)):
        raise ConfigError(
            f"task: {name!r} is a file and task.include_path a folder; give the file alone, or the folder with the "
            "name of a task in it"
        )
    (task,) = read_own_tasks(include_path).tasks
    return task


@lru_cache(maxsize=256)
def _count_rows(file: str, field: str | None, _stamps: Any) -> int:
    """Return how many rows a task's file holds, read once while it stays.

    Raises:
        ConfigError: a row that cannot be read, by its line.
    """
    number = -1
    for number, (row, _) in enumerate(rows_of(file, field)):
        if field is not None and len(row[field]) > MOST_CHARACTERS:
            raise ConfigError(
                f"task.data: {file!r} line {line_of_row(file, number)}: the field {field!r} holds {len(row[field]):,} "
                f"characters; allowed: up to {MOST_CHARACTERS:,}"
            )
    return number + 1
