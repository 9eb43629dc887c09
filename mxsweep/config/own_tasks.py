"""Read lm-eval tasks of one's own: what ``task.include_path`` names, and the files that decide what a task asks.

A task is a YAML file with ``task:``, a group one with ``group:``; a tag is a name that tasks share. Values are merged
with those of the files that ``include`` names, as lm-eval does it, whose part in the identity they have. Local data
(``dataset_path`` as a folder, ``dataset_kwargs.data_files``) count from the folder of the file that names them; lm-eval
would count from the current one. Nothing here imports lm-eval, or runs the Python that ``!function`` names.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mxsweep.config.checks import expanded, is_folder
from mxsweep.files.checkpoints import is_file, texts_in
from mxsweep.files.digests import file_digests, stamps
from mxsweep.terminal.errors import ConfigError

SUFFIXES = (".yaml", ".yml")
# What `dataset_path` may name beside data sets: a way to read files, which are then local.
FORMATS_OF_FILES = ("json", "csv", "parquet", "text", "arrow")
# Of `!function` at these keys: code that may read whatever stands beside it.
MAKES_DATA = ("custom_dataset", "class")


@dataclass(frozen=True)
class Function:
    """Hold what ``!function`` names, as ``utils.process_docs``, and the folder that it counts from."""

    name: str
    folder: Path

    @property
    def file(self) -> Path | None:
        """Return the Python file that it is in; None where that is a module of Python's path."""
        file = self.folder / f"{self.name.rpartition('.')[0].replace('.', '/')}.py"
        return file if is_file(file) else None


@dataclass(frozen=True)
class OwnTask:
    """Hold one task or group.

    Attributes:
        name: as its YAML has it.
        file: its YAML.
        is_group: whether it is a group of tasks.
        config: its values, those of included files among them, local data as absolute paths.
        sources: its YAML and those that it includes.
    """

    name: str
    file: Path
    is_group: bool
    config: dict[str, Any]
    sources: tuple[Path, ...]

    @property
    def data(self) -> dict[str, Any]:
        """Return the values that say where its data is, local paths absolute."""
        return {key: self.config[key] for key in ("dataset_path", "dataset_kwargs") if key in self.config}

    @property
    def is_local(self) -> bool:
        """Return whether its rows are of files here, rather than of a data set on the hub."""
        path = self.config.get("dataset_path")
        return path in FORMATS_OF_FILES or (isinstance(path, str) and os.path.isabs(path))

    @property
    def data_files(self) -> list[Path]:
        """Return the local files that its rows are read from. Raises ConfigError for such that are not there."""
        return list(_data_files(self))

    @property
    def tags(self) -> list[str]:
        """Return the names that it shares with others."""
        tags = self.config.get("tag") or []
        return [tags] if isinstance(tags, str) else [str(tag) for tag in tags]


@dataclass(frozen=True)
class OwnTasks:
    """Hold the tasks and groups of a folder or a file, by name.

    Attributes:
        root: the folder, or that of the file.
        tasks: by name.
        unreadable: why YAML files of the folder cannot be read, a sentence each.
    """

    root: Path
    tasks: dict[str, OwnTask]
    unreadable: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of tasks, groups and tags."""
        return tuple(dict.fromkeys([*self.tasks, *(tag for task in self.tasks.values() for tag in task.tags)]))

    def members(self, name: str) -> list[str]:
        """Return the names that a group or tag stands for; none of a task."""
        if name not in self.tasks:
            return [task.name for task in self.tasks.values() if name in task.tags]
        task = self.tasks[name]
        listed = task.config.get("task") if task.is_group else None
        return list(map(_member_name, listed if isinstance(listed, list) else []))

    def below(self, *names: str) -> list[str]:
        """Return names and all that they stand for, those of lm-eval's own tasks among them, each once."""
        found: dict[str, None] = {}
        waiting = list(reversed(names))
        while waiting:
            if (next_name := waiting.pop()) not in found:
                found[next_name] = None
                waiting += self.members(next_name) if next_name in self.names else []
        return list(found)

    def files(self, name: str) -> dict[str, Path]:
        """Return the files that decide what a name asks, under what identifies each wherever the folder lies.

        Raises:
            ConfigError: local data that are not there.
        """
        files = [file for one in self.below(name) if one in self.tasks for file in _files_of(self.tasks[one])]
        return {self._key(file): file for file in sorted(set(files))}

    def digests(self, name: str) -> dict[str, str]:
        """Return the SHA-256 (hex) of each of these files. Raises ConfigError."""
        files = self.files(name)
        try:
            return dict(zip(files, file_digests(list(files.values())), strict=True))
        except OSError as error:
            raise ConfigError(
                f"task.include_path: a file of {name} cannot be read: {error.strerror or error}"
            ) from None

    def _key(self, file: Path) -> str:
        """Return a file's place below the root; of one elsewhere its path, which the YAML names."""
        inside = os.path.relpath(file, self.root)
        return str(file) if inside.startswith("..") else Path(inside).as_posix()


def read_own_tasks(include_path: str) -> OwnTasks:
    """Return the tasks of a folder, or of one YAML file.

    Raises:
        ConfigError: no such folder or file, or a file that is no task.
    """
    path = expanded("task.include_path", include_path)
    if is_folder(path):
        root = path.resolve()
        below = (file for file in sorted(root.rglob("*.yaml")) if is_file(file))  # a pipe would be waited for
        files = tuple(file for file in below if not _is_hidden(file.relative_to(root)))
        found = _read_folder(root, files, stamps(files))
        if not found.tasks:
            why = f" ({found.unreadable[0]})" if found.unreadable else ""
            raise ConfigError(
                f"task.include_path: {include_path!r} holds no task of lm-eval: no YAML file with `task:`{why}"
            )
        return found
    if not is_file(path):
        raise ConfigError(
            f"task.include_path: {include_path!r} does not exist; give a folder of lm-eval's task files, or one of them"
        )
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"task.include_path: {include_path!r} is no YAML file; allowed: a folder, or a .yaml file")
    task = _read_task(path.resolve())
    return OwnTasks(task.file.parent, {task.name: task})


@functools.lru_cache(maxsize=16)
def _read_folder(root: Path, files: tuple[Path, ...], _stamps: Any) -> OwnTasks:
    """Return the tasks of a folder, read again where a file was written anew. Raises ConfigError for two of a name."""
    tasks: dict[str, OwnTask] = {}
    unreadable = []
    for file in files:
        try:
            task = _read_task(file)
        except ConfigError as error:  # a file that only others include is no task, and needs to be none
            unreadable.append(str(error))
            continue
        if task.name in tasks:
            raise ConfigError(
                f"task.include_path: two files of {str(root)!r} are called {task.name!r}: "
                f"{tasks[task.name].file.relative_to(root)} and {file.relative_to(root)}; give each a name of its own"
            )
        tasks[task.name] = task
    return OwnTasks(root, tasks, unreadable)


def _read_task(file: Path) -> OwnTask:
    """Return the task of a YAML file. Raises ConfigError naming the file."""
    sources: list[Path] = []
    values = _read(file, sources)
    config = {key: value for key, (value, _) in values.items()}
    is_group = isinstance(config.get("group"), str) and "class" not in config
    name = config.get("group") if is_group else config.get("task")
    if not isinstance(name, str) or not name:
        there = ", ".join(map(str, config)) or "nothing"
        raise ConfigError(f"task: {str(file)!r} is no task of lm-eval: it has no `task:` with a name, and {there}")
    for key in ("dataset_path", "dataset_kwargs"):
        if key in values:
            config[key] = _with_local_paths(key, config, values[key][1])
    return OwnTask(name, file, is_group, config, tuple(sources))


def _check_members(file: Path, members: Any) -> None:
    """Refuse a group that gives a member other data files: lm-eval would read them from the current folder."""
    for member in members if isinstance(members, list) else []:
        if not isinstance(member, dict):
            continue
        options = member.get("dataset_kwargs")
        if isinstance(options, dict) and options.keys() & {"data_files", "data_dir"}:
            raise ConfigError(
                f"task: the group {str(file)!r} gives its member {_member_name(member)!r} data files of its own, which "
                "no run could be told apart by; allowed: a YAML file for that member, with `include:` and these files"
            )
        _check_members(file, member.get("task"))


def _read(file: Path, sources: list[Path]) -> dict[str, tuple[Any, Path]]:
    """Return a YAML file's values, each with the folder of the file that it stands in; the file's own win over those
    that it includes. Files read are added to ``sources``.
    """
    if file in sources:
        raise ConfigError(f"task: {str(file)!r} includes itself")
    sources.append(file)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _loader(file.parent))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"task: {str(file)!r} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"task: {str(file)!r} is no task of lm-eval: it holds no mapping")
    values: dict[str, tuple[Any, Path]] = {}
    included = content.pop("include", None) or []
    for name in included if isinstance(included, list) else [included]:
        other = file.parent / str(name)
        if not is_file(other):
            raise ConfigError(f"task: {str(file)!r} includes {str(name)!r}, which does not exist")
        values |= _read(other.resolve(), sources)
    return values | {str(key): (value, file.parent) for key, value in content.items()}


def _loader(folder: Path) -> Any:
    class Loader(yaml.SafeLoader):
        pass

    def function(loader: Any, node: Any) -> Function:
        return Function(str(loader.construct_scalar(node)), folder)

    Loader.add_constructor("!function", function)
    return Loader


def _with_local_paths(key: str, config: Mapping[str, Any], folder: Path) -> Any:
    """Return where a task's data is, with absolute paths in place of those that count from a folder."""
    value = config[key]
    if key == "dataset_path":
        is_local = isinstance(value, str) and value not in FORMATS_OF_FILES
        return str(folder / value) if is_local and (folder / value).exists() else value
    if config.get("dataset_path") not in FORMATS_OF_FILES or not isinstance(value, dict):
        return value  # files of a data set on the hub, or of a folder
    local = {name: _absolute(value[name], folder) for name in ("data_files", "data_dir") if name in value}
    return value | local


def _absolute(paths: Any, folder: Path) -> Any:
    if isinstance(paths, dict):
        return {key: _absolute(path, folder) for key, path in paths.items()}
    if isinstance(paths, list):
        return [_absolute(path, folder) for path in paths]
    return str(folder / Path(paths).expanduser()) if isinstance(paths, str) and "://" not in paths else paths


def _files_of(task: OwnTask) -> Iterator[Path]:
    """Yield the files that decide what one task asks: YAML, Python, data. Raises ConfigError for data not there."""
    if task.is_group:
        _check_members(task.file, task.config.get("task"))
    yield from task.sources
    yield from _data_files(task)
    for key, function in _functions(task.config):
        file = function.file
        if file is None:
            _check_module(task, function)
        elif key in MAKES_DATA:  # whatever stands beside it may be read
            yield from _all_files(function.folder)
        else:  # with the modules that it may import
            yield from (other for other in _all_files(function.folder) if other.suffix == ".py")


def _data_files(task: OwnTask) -> Iterator[Path]:
    path, given = task.config.get("dataset_path"), task.config.get("dataset_kwargs")
    kwargs = given if isinstance(given, dict) else {}
    if isinstance(path, str) and os.path.isabs(path):
        yield from _all_files(Path(path))
    if path not in FORMATS_OF_FILES:
        return
    for named in texts_in(kwargs.get("data_files")):
        if "://" in named:
            continue
        pattern = Path(named)
        has_wildcard = any(character in named for character in "*?[")
        found = (
            sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))) if has_wildcard else [pattern]
        )
        if not found or not all(map(is_file, found)):
            raise ConfigError(
                f"task: {task.name}: its data file {named!r} does not exist; data_files count from the folder of the "
                f"YAML file that names them ({task.file})"
            )
        yield from found
    for folder in texts_in(kwargs.get("data_dir")):
        yield from _all_files(Path(folder))


def _check_module(task: OwnTask, function: Function) -> None:
    module = function.name.partition(".")[0]
    try:
        found = "." in function.name and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ConfigError(
            f"task: {task.name}: !function {function.name} names no {module}.py beside {task.file}, nor a module of "
            "Python's; allowed: FILE.FUNCTION"
        )


def _functions(value: Any, key: str = "") -> Iterator[tuple[str, Function]]:
    """Yield each ``!function`` of a config with the key that it stands at."""
    if isinstance(value, Function):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _functions(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _functions(item, key)


def _all_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _member_name(member: Any) -> str:
    """Return the name of a member of a group, which may come with values of its own."""
    return str(member.get("task") or member.get("group")) if isinstance(member, dict) else str(member)
