"""Get documents to calibrate on that others keep: splits of lm-eval's tasks, data sets of the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import datasets
from datasets.exceptions import DatasetsError

from mxsweep.config.checks import expanded
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.machine.hub import offline_where_unreachable
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

# What reads a single file of a data set, by its suffix.
_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow", ".txt": "text"}
_WITHOUT_NETWORK = "without a network, give a text with {0}=text {0}.path=FILE"


def task_documents(config: CalibrationConfig) -> Sequence[str]:
    """Return the documents of a split of an lm-eval task, as the task puts them.

    Raises:
        ConfigError: no such task, a group of tasks, a task without that split, or one whose data cannot be had.
    """
    name = str(config.path)
    try:
        tasks = load_tasks((name,))["tasks"]
    except ConfigError as error:
        reason = str(error).removeprefix("task: ").partition("; without a network")[0]
        raise ConfigError(f"calibration.path: {reason}; {_WITHOUT_NETWORK.format('calibration')}") from error
    if len(tasks) != 1:
        raise ConfigError(f"calibration.path: {name!r} is {len(tasks)} tasks; allowed: one, as {next(iter(tasks), '')}")
    task = next(iter(tasks.values()))
    has, documents = {
        "train": (task.has_training_docs, task.training_docs),
        "validation": (task.has_validation_docs, task.validation_docs),
    }[config.split]
    if not has():
        hint = "calibration=stories generates stories" if name == "story" else "give a task that has one"
        raise ConfigError(f"calibration.path: the task {name!r} has no {config.split} split; {hint}")
    return _TaskTexts(task, documents())


class DataSet(Protocol):
    """Name a column of a data set, as the configs of calibrations and of corpora do."""

    @property
    def path(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def split(self) -> str: ...
    @property
    def field(self) -> str: ...


def hub_documents(config: DataSet, group: str = "calibration") -> ColumnTexts:
    """Return a column of a data set: of the hub, of a folder, or of a single file.

    Args:
        group: of the knobs that name it, for messages.

    Raises:
        ConfigError: a data set that cannot be had, a split or a column that it does not have.
    """
    path = expanded(f"{group}.path", config.path or "")
    try:
        data = _local_data(config, path) if path.exists() else _hub_data(config)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = "check name, split and files" if path.exists() else _WITHOUT_NETWORK.format(group)
        raise ConfigError(
            f"{group}.path: {config.path!r} cannot be loaded ({type(error).__name__}: {reason}); {hint}"
        ) from error
    if config.field not in data.column_names:
        there = ", ".join(map(repr, data.column_names))
        raise ConfigError(f"{group}.field: {config.field!r} is not in {config.path!r}; it has {there}")
    return ColumnTexts(config, data, group)


def text_of(task: Any, document: Any) -> str:
    """Return a document with its answer, as the task is scored: context and continuation in one.

    Where an answer is generated, the first one stands behind the context, as in a few-shot prompt.
    """
    text, target = task.doc_to_text(document), task.doc_to_target(document)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(target)
    choices = task.doc_to_choice(document) if task.get_config("doc_to_choice") else None
    text, target = (_chosen(value, choices) for value in (text, target))
    if task.OUTPUT_TYPE == "loglikelihood":
        return text + target
    delimiter = task.get_config("target_delimiter")
    return f"{text}{' ' if delimiter is None else delimiter}{target}"


def _chosen(value: Any, choices: Sequence[str] | None) -> str:
    """Return a text, or the choice whose number is given instead."""
    if isinstance(value, list | tuple):
        value = value[0] if value else ""
    if choices and isinstance(value, int) and 0 <= value < len(choices):
        value = choices[value]
    return str(value)


class _Texts(Sequence[str]):
    """Turn documents into texts when they are asked for."""

    def __init__(self, documents: Any) -> None:
        # A task written in Python may generate them.
        self._documents = documents if hasattr(documents, "__getitem__") else list(documents)

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._text(self._documents[index])

    def _text(self, document: Any) -> str:
        raise NotImplementedError


class _TaskTexts(_Texts):
    def __init__(self, task: Any, documents: Any) -> None:
        super().__init__(documents)
        self._task = task

    def _text(self, document: Any) -> str:
        return text_of(self._task, document)


class ColumnTexts(_Texts):
    """Read texts of a column; ``fingerprint`` tells the data set from others."""

    def __init__(self, config: DataSet, data: datasets.Dataset, group: str) -> None:
        super().__init__(data.select_columns([config.field]))
        self._config, self._group = config, group
        self.fingerprint = str(data._fingerprint)

    def _text(self, document: Any) -> str:
        text = document[self._config.field]
        if not isinstance(text, str | None):
            raise ConfigError(
                f"{self._group}.field: {self._config.field!r} of {self._config.path!r} holds {str(text)[:50]!r}; "
                "allowed: a column of texts"
            )
        return text or ""


def _local_data(config: DataSet, path: Path) -> datasets.Dataset:
    if path.is_file():
        builder = _BUILDERS.get(path.suffix.lower())
        if builder is None:
            raise ValueError(f"a file of a data set ends in {', '.join(_BUILDERS)}")
        return datasets.load_dataset(builder, data_files=str(path), split=config.split)
    if (path / "state.json").is_file():  # as Dataset.save_to_disk leaves it
        return datasets.load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path))[config.split]
    return datasets.load_dataset(str(path), config.name, split=config.split)


def _hub_data(config: DataSet) -> datasets.Dataset:
    with offline_where_unreachable():
        return datasets.load_dataset(str(config.path), config.name, split=config.split)
