"""Hold what a run evaluates as a config has it: lm-eval tasks, and the files that feed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mxsweep.config.checks import check_rows
from mxsweep.terminal.errors import ConfigError


@dataclass(frozen=True)
class TaskConfig:
    """Hold which lm-eval tasks a run evaluates, and what feeds them.

    ``data`` maps a task to a local file that replaces its data set; ``fields`` to the field a row must hold.
    """

    names: tuple[str, ...]
    fields: dict[str, str]
    data: dict[str, str]
    num_fewshot: int | None
    apply_chat_template: bool

    def __post_init__(self) -> None:
        if not self.names or not all(isinstance(name, str) and name for name in self.names):
            raise ConfigError(f"task: {list(self.names)!r} must be one or more names of lm-eval tasks")
        if not isinstance(self.fields, dict):
            raise ConfigError(f"task.fields: {self.fields!r} must map tasks to fields, as {{lambada_openai: text}}")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"task: {list(self.names)!r} names a task twice")
        for name, file in self.data.items():
            if name not in self.names:
                raise ConfigError(f"task.data: {name!r} is not among the tasks {', '.join(self.names)}")
            if name == "story":
                raise ConfigError("task.data: the task 'story' generates its own data and takes no file")
            check_rows(file, self.fields.get(name), first_only=True)

    @property
    def name(self) -> str:
        """Return what tables call the tasks."""
        return "+".join(self.names)


def resolve_task(knobs: dict[str, Any]) -> TaskConfig:
    """Return the config of what is evaluated. Raises ConfigError."""
    names, data = knobs.pop("names"), knobs.pop("data")
    names = tuple(names) if isinstance(names, list) else (names,)
    if data is None:
        data = {}
    elif not isinstance(data, dict):
        if len(names) > 1:
            raise ConfigError(
                f"task.data: {data!r} is one file for the tasks {', '.join(names)}; "
                f"write a mapping, as task.data={{{names[0]}: FILE.jsonl}}"
            )
        data = {names[0]: data}
    return TaskConfig(names=names, data={key: str(file) for key, file in data.items()}, **knobs)
