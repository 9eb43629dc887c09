"""Read outcomes by example: what ``samples.parquet`` beside a record holds, as arrays.

A file is read once in a process, and again only if it was written anew. Runs over the same documents share one
array of keys, so that a thousand runs take little memory and whether two saw the same documents is seen at once.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mxsweep.files.sample_columns import LOGLIKELIHOODS, RIGHT
from mxsweep.results.metrics import COUNTED, MARGIN, accuracy_metric, is_loss, is_perplexity, main_metric
from mxsweep.results.parquet_files import ParquetError, open_parquet
from mxsweep.results.record import SAMPLES_NAME, RunFolder

_WEIGHTS = ("words", "bytes", "tokens")


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Hold what a run answered on one task, an element an example, in the order of doc_id.

    Attributes:
        keys: (n,) what tells the documents apart: doc_hash (str) or, in files without it, doc_id (int).
        correct: (n,) bool; None where the task counts no right answers, or gives points for half right ones.
        loglikelihood: (n,) float64, nats; None where the task has no perplexity.
        margin: (n,) float64, nats, log-likelihood of the right choice minus the largest of the others'; None where the
            task has no margin.
        chance: (n,) float64, the share of an example's choices that are right, which is how often a guess is; None
            where that is not known, as of free answers.
        weights: (n,) float64, words of the example (or bytes, of a task without word_perplexity, or tokens, of a loss);
            None for 1 each.
        firsts: (m,) int64, ascending, the first of each set of examples that ask the same; None where all differ, or
            it is not known.
    """

    keys: np.ndarray
    correct: np.ndarray | None
    loglikelihood: np.ndarray | None
    weights: np.ndarray | None
    firsts: np.ndarray | None = None
    margin: np.ndarray | None = None
    chance: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)


_read: dict[tuple[Any, ...], dict[str, Outcomes]] = {}  # (file, its size and age) -> task -> outcomes
# Of each set of documents the column and the array: by length, first and last, so that few are looked through.
_keys: dict[tuple[Any, ...], list[tuple[Any, np.ndarray]]] = {}


def read_outcomes(run: RunFolder, task: str) -> Outcomes | None:
    """Read what a run answered on a task; None without a readable samples.parquet, or with nothing to compare in it.

    A task with several filters has several rows a document. Those of the filter that the run's main metric names are
    taken (`exact_match,strict` names `strict`), or those of the first filter in the file where it names none.
    """
    path = run.path / SAMPLES_NAME
    try:
        status = path.stat()
    except OSError:
        return None
    stamp = (os.path.abspath(path), status.st_mtime_ns, status.st_size, status.st_ino)
    if stamp not in _read:
        _read[stamp] = _parse(path, (run.record or {}).get("metrics") or {})
    return _read[stamp].get(task)


def why_unread(run: RunFolder) -> str | None:
    """Return why a run's samples.parquet cannot be read, behind its name; None where it can."""
    try:
        with open_parquet(run.path / SAMPLES_NAME):
            return None
    except ParquetError as why:
        return str(why)


def _parse(path: Path, metrics: dict[str, Any]) -> dict[str, Outcomes]:
    """Return a file's outcomes by task; nothing if it is damaged. `metrics` are the record's, by task."""
    import pyarrow as pa  # here, since most who read records read no samples, and it takes a while

    known = ("task", "doc_id", "doc_hash", "input_hash", "filter", "loglikelihood", MARGIN, *COUNTED, *_WEIGHTS)
    known += (LOGLIKELIHOODS, RIGHT)
    try:
        with open_parquet(path) as file:
            there = set(file.schema_arrow.names)
            names = [name for name in known if name in there]
            table = file.read(columns=names, use_threads=False).combine_chunks()
        if not {"task", "doc_id"} <= set(names):
            return {}
        by_task = {}
        for task, rows in _parts(table, "task"):
            of_task = metrics.get(task) or {}
            if (outcomes := _of_table(_of_filter(rows, of_task), of_task)) is not None:
                by_task[str(task)] = outcomes
        return by_task
    except (OSError, ValueError, TypeError, LookupError, pa.ArrowException):
        return {}


def _parts(table: Any, name: str) -> Iterable[tuple[Any, Any]]:
    """Return the rows with each value of a column, in the order that the values appear in."""
    import pyarrow.compute as pc

    values = [value for value in pc.unique(table[name]).to_pylist() if value is not None]
    if len(values) == 1 and table[name].null_count == 0:
        return [(values[0], table)]
    return [(value, table.filter(pc.equal(table[name], value))) for value in values]


def _of_filter(table: Any, metrics: dict[str, Any]) -> Any:
    """Return the rows of one filter; see `read_outcomes`."""
    if "filter" not in table.column_names:
        return table
    parts = dict(_parts(table, "filter"))
    if len(parts) < 2:
        return table
    named = (main_metric(metrics) or "").partition(",")[2]
    return parts.get(named, next(iter(parts.values())))


def _of_table(table: Any, metrics: dict[str, Any]) -> Outcomes | None:
    if not table.num_rows:
        return None
    doc_id = _numbers(table, "doc_id").astype(np.int64)
    order = None if (np.diff(doc_id) > 0).all() else np.argsort(doc_id, kind="stable")
    if order is not None:
        table, doc_id = table.take(order), doc_id[order]
    correct = _correct(table, metrics)
    loglikelihood = _numbers(table, "loglikelihood") if "loglikelihood" in table.column_names else None
    # pandas writes NaN as null: a column of nulls alone is one of another task, unless this one has a perplexity.
    if (
        loglikelihood is not None
        and np.isnan(loglikelihood).all()
        and not any(is_perplexity(name) or is_loss(name) for name in metrics)
    ):
        loglikelihood = None
    # A task that does not say of every example what is right has no such metric.
    margin = _numbers(table, MARGIN) if MARGIN in metrics and MARGIN in table.column_names else None
    if correct is None and loglikelihood is None and margin is None:
        return None
    weights = None
    for name in _WEIGHTS if loglikelihood is not None else ():
        if name in table.column_names and not np.isnan(column := _numbers(table, name)).any():
            weights = column
            break
    return Outcomes(_keys_of(table, doc_id), correct, loglikelihood, weights, _firsts(table), margin, _chance(table))


def _correct(table: Any, metrics: dict[str, Any]) -> np.ndarray | None:
    main = (accuracy_metric(metrics) or "").split(",")[0]
    for name in dict.fromkeys((main, *COUNTED)):
        if name in table.column_names:
            column = _numbers(table, name)
            if ((column == 0) | (column == 1)).all():
                return column == 1
    return None


def _chance(table: Any) -> np.ndarray | None:
    """Return the share of each example's choices that are right; None where it is not known of every one."""
    if not {LOGLIKELIHOODS, RIGHT} <= set(table.column_names):
        return None
    choices, right = (_lengths(table, name) for name in (LOGLIKELIHOODS, RIGHT))
    return right / choices if (choices > 0).all() and (right > 0).all() else None


def _lengths(table: Any, name: str) -> np.ndarray:
    """Return the lengths of a column's lists as float64, null as NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.list_value_length(table[name]).cast(pa.float64()).to_numpy()


def _numbers(table: Any, name: str) -> np.ndarray:
    """Return a column as float64, null as NaN."""
    import pyarrow as pa

    return table[name].cast(pa.float64()).to_numpy()


def _firsts(table: Any) -> np.ndarray | None:
    """Return the number of the first of each set of examples that ask the same; None where all differ, or unknown.

    They are the same if their documents are, or what the model is asked is: a row's number parts two documents, and
    few-shot examples part two inputs. Of the two, what tells fewer examples apart is taken.
    """
    import pyarrow.compute as pc

    firsts = None
    for name in ("doc_hash", "input_hash"):
        if name not in table.column_names or table[name].null_count:
            continue
        column = table[name].combine_chunks().dictionary_encode()
        codes = pc.cast(column.indices, "int64").to_numpy()
        if len(column.dictionary) < (len(codes) if firsts is None else len(firsts)):
            _, firsts = np.unique(codes, return_index=True)  # the codes are in the order in which hashes appear
    return firsts


def _keys_of(table: Any, doc_id: np.ndarray) -> np.ndarray:
    import pyarrow as pa

    by_hash = "doc_hash" in table.column_names and not table["doc_hash"].null_count
    column = table["doc_hash"].combine_chunks() if by_hash else pa.array(doc_id)
    # Comparing a column with those known takes a hundredth of the time that making texts of it does.
    alike = _keys.setdefault((len(column), column[0].as_py(), column[-1].as_py()), [])
    for known, keys in alike:
        if known.equals(column):
            return keys
    keys = np.array(column.to_pylist(), dtype=str) if by_hash else doc_id
    alike.append((column, keys))
    return keys
