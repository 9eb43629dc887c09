"""Look at every row of a task before a model is loaded: a row that makes no sense is named by its line.

A data set has columns, each of one type. A column that is none (a number here, a text there) is left out where the task
does not read it, and refused by the line where it does.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask, Task

from mxsweep.config.checks import check_rows, line_of_row
from mxsweep.config.own_tasks import OwnTask
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

# What JSON lines are called; of `.json` files some are.
JSON_LINES = (".jsonl", ".ndjson", ".json")
NO_COLUMN = (pa.ArrowException, ValueError, OverflowError, TypeError)  # what pyarrow raises


def dataset_of(
    file: str, rows: Sequence[dict[str, Any]], reads: Callable[[str], bool], knob: str = "task.data"
) -> Dataset:
    """Return the rows of a task's file as a data set, with the columns that its first row has.

    Args:
        file: that the rows are of, for messages.
        rows: as :func:`mxsweep.config.checks.check_rows` returns them.
        reads: whether the task may read a field of this name.
        knob: what names the file, for messages.

    Raises:
        ConfigError: a field that the task reads is not of one type, naming the line.
    """
    try:
        return Dataset.from_list(list(rows))
    except NO_COLUMN:
        pass  # column by column, then, to name the line
    kept = []
    for name in rows[0]:
        if (problem := _column_problem([row.get(name) for row in rows])) is None:
            kept.append(name)
            continue
        number, why = problem
        text = f"{file!r} line {line_of_row(file, number)}: the field {name!r} {why}"
        if reads(name):
            raise ConfigError(f"{knob}: {text}; allowed: values of one type in a field")
        log.warning("%s: %s, and is left out: the task does not read it", knob, text)
    return Dataset.from_list([{name: row.get(name) for name in kept} for row in rows])


def check_data_files(task: OwnTask, columns: bool = False) -> None:
    """Raise ConfigError, naming the line, for a row of a task's own JSON-lines files that no data set can be made of.

    What is no JSON lines (one array, rows below a ``field``, other formats) is left to datasets.

    Args:
        task: of one's own.
        columns: whether to look for fields that are not of one type, too.
    """
    kwargs = task.config.get("dataset_kwargs")
    if task.config.get("dataset_path") != "json" or not isinstance(kwargs, dict) or kwargs.get("field") is not None:
        return
    for file in filter(_is_json_lines, task.data_files):
        rows = check_rows(str(file), None, knob=f"task: {task.name}", all_text=True)
        if columns:
            dataset_of(str(file), rows, lambda _: True, knob=f"task: {task.name}")


def _is_json_lines(file: Path) -> bool:
    """Return whether a file's name says that it holds JSON lines, and it does not begin as something else."""
    if file.suffix not in JSON_LINES:
        return False
    with file.open("rb") as content:
        first = next((line.removeprefix(codecs.BOM_UTF8).strip() for line in content if line.strip()), b"")
    return first[:1] != b"[" and (file.suffix != ".json" or (first[:1] == b"{" and first[-1:] == b"}"))


def reads_of(config: Any) -> Callable[[str], bool]:
    """Return what tells whether a task with this config may read a field: its name stands there, or Python does."""
    text = str(config)
    return lambda name: config is None or "!function" in text or bool(re.search(rf"\b{re.escape(name)}\b", text))


def check_documents(name: str, task: Task, place: Callable[[int], str]) -> None:
    """Raise ConfigError for a row that a task cannot make a question and an answer of.

    Args:
        name: of the task.
        task: as lm-eval loaded it.
        place: what to call a row, by its number among those that are evaluated, from 0.
    """
    if not isinstance(task, ConfigurableTask):
        return
    for number, doc in enumerate(task.eval_docs):
        try:
            problem = _document_problem(task, doc)
        except Exception as error:  # of a template, or the task's own Python, which may raise anything
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if problem:
            raise ConfigError(f"task: {name}: {place(number)} is no question of this task: {problem}")


def _document_problem(task: ConfigurableTask, doc: dict[str, Any]) -> str | None:
    question, answer = task.doc_to_text(doc), task.doc_to_target(doc)
    if task.OUTPUT_TYPE != "multiple_choice":
        is_scored = task.OUTPUT_TYPE in ("loglikelihood", "loglikelihood_rolling")
        texts = [question, answer] if task.OUTPUT_TYPE == "loglikelihood" else [answer] if is_scored else [question]
        bad = next((text for text in texts if not isinstance(text, str)), None)
        if bad is not None or None in texts:
            return f"{bad!r} stands where a text is asked for"
        return f"what is scored is {answer!r}, without a word" if is_scored and not answer.strip() else None
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list) or not choices or not all(isinstance(one, str) and one for one in choices):
        return f"its choices are {choices!r}; allowed: a list of texts"
    right = question if task.multiple_input else answer
    named = right if isinstance(right, list) else [right]
    if not named or not all(isinstance(one, int | str) for one in named):
        return f"its right choice is {right!r}; allowed: the number of a choice, from 0, or its text"
    return None


def _column_problem(values: list[Any]) -> tuple[int, str] | None:
    """Return the number of the first value that does not fit those before it, and why; None where all fit."""
    if _fits(values):
        return None
    good, bad = 0, len(values)  # so many values from the first on fit, and so many do not
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _fits(values[:middle]) else (good, middle)
    value = values[good]
    before = next((one for one in values[:good] if one is not None), None)
    if _fits([value]):
        return good, f"is {_kind(value)}, and {_kind(before)} in lines before"
    return good, f"holds {value!r:.60}, which no column can"


def _fits(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except NO_COLUMN:
        return False
    return True


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")
