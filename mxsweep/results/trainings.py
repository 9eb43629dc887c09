"""Read what a run that trained leaves of its training: curves.parquet, and roles.parquet of what each operand lost.

A file that is missing, damaged, too large or no file of its kind is no error: it says nothing, and `unread_files` says
why. A file is read once in a process, and again only if it was written anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mxsweep.files.training_columns import CURVE_COLUMNS, MEASURES, ROLE_COLUMNS
from mxsweep.formats.training import GRADIENTS, OPERANDS
from mxsweep.results.parquet_files import ParquetError, open_parquet
from mxsweep.results.record import (
    CURVES_NAME,
    RECORD_NAME,
    ROLES_NAME,
    RecordError,
    RunFolder,
    read_record,
)
from mxsweep.results.rows import Row

MOST_ROWS = 2_000_000  # of a file
MEASURED = (*OPERANDS, *GRADIENTS)  # what roles.parquet has rows of
_TEXTS = ("module", "role", "operand", "format")


@dataclass(frozen=True, eq=False)
class Curve:
    """Hold what a training logged, an element a step of it; NaN where nothing was measured.

    Attributes:
        step, tokens: seen when the step was done.
        lr: learning rate.
        loss: of the step's batch, nats a token.
        grad_norm: before it was clipped.
        tokens_per_s: trained a second.
        validation_loss: on the held-out sequences, nats a token.
    """

    step: np.ndarray
    tokens: np.ndarray
    lr: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray
    tokens_per_s: np.ndarray
    validation_loss: np.ndarray


@dataclass(frozen=True, eq=False)
class Roles:
    """Hold what quantizing did to operands and gradients in the steps that were measured, an element a row.

    Attributes:
        step: (n,) int64.
        texts: by module, role, operand and format, (n,) str.
        measures: by the names of MEASURES, (n,) float64; NaN where a measure makes no sense.
    """

    step: np.ndarray
    texts: dict[str, np.ndarray]
    measures: dict[str, np.ndarray]


class _Unread(Exception):
    """Say why a file was not read."""


_read: dict[tuple[Any, ...], Curve | Roles | _Unread] = {}  # (file, its size and age)


def has_trained(row: Row) -> bool:
    """Return whether the run trained the model that it evaluated."""
    return isinstance(row.recorded("training"), dict)


def steps_of_checkpoint(folder: Path) -> int | None:
    """Return for how many steps the run trained that left a checkpoint in this folder below its own.

    None of a folder that no such run left.
    """
    try:
        training = read_record(folder.parent / RECORD_NAME).get("training")
    except RecordError:
        return None
    steps = training.get("steps") if isinstance(training, dict) else None
    return steps if isinstance(steps, int) else None


def read_curve(run: RunFolder) -> Curve | None:
    """Return the curve of a run's training; None where it left none that can be read."""
    found = _content(run, CURVES_NAME)
    return found if isinstance(found, Curve) else None


def read_roles(run: RunFolder) -> Roles | None:
    """Return what quantizing did in a run's training; None where it left nothing of it that can be read."""
    found = _content(run, ROLES_NAME)
    return found if isinstance(found, Roles) else None


def unread_files(rows: Iterable[Row]) -> list[str]:
    """Say of runs that trained which of their files could not be read, and why; no roles are no reason to say so."""
    said: dict[str, None] = {}
    for row in rows:
        if row.run.status != "done" or not has_trained(row):
            continue
        for name in (CURVES_NAME, ROLES_NAME):
            found = _content(row.run, name)
            if isinstance(found, _Unread) and (name == CURVES_NAME or (row.run.path / name).exists()):
                said[f"{row.run.run_id}: {name} {found}"] = None
    return list(said)


def _content(run: RunFolder, name: str) -> Curve | Roles | _Unread:
    path = run.path / name
    try:
        status = path.stat()
    except OSError:
        return _Unread("is not there")
    stamp = (os.path.abspath(path), status.st_mtime_ns, status.st_size, status.st_ino)
    if stamp not in _read:
        try:
            _read[stamp] = _curve(path) if name == CURVES_NAME else _roles(path)
        except _Unread as why:
            _read[stamp] = why
    return _read[stamp]


def _curve(path: Path) -> Curve:
    columns = _columns(path, CURVE_COLUMNS, ())
    order = np.argsort(columns["step"], kind="stable")
    # Of a training that was resumed, a step may have been done and logged twice.
    steps = columns["step"][order]
    last = np.append(steps[1:] != steps[:-1], True) if len(steps) else np.zeros(0, bool)
    return Curve(**{name: columns[name][order][last] for name in CURVE_COLUMNS})


def _roles(path: Path) -> Roles:
    columns = _columns(path, tuple(ROLE_COLUMNS), _TEXTS)
    texts = {name: columns[name] for name in _TEXTS}
    return Roles(columns["step"].astype(np.int64), texts, {name: columns[name] for name in MEASURES})


def _columns(path: Path, names: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns as float64, null as NaN, or as str. Raises _Unread."""
    import pyarrow as pa  # here, since most who read records read none of these

    try:
        with open_parquet(path, MOST_ROWS) as file:
            if missing := [name for name in names if name not in file.schema_arrow.names]:
                raise _Unread(f"has no column {missing[0]}")
            table = file.read(columns=list(names), use_threads=False)
        columns = {}
        for name in names:
            if name in texts:
                columns[name] = np.array([str(text) for text in table[name].to_pylist()], dtype=object)
            else:
                columns[name] = table[name].cast(pa.float64()).to_numpy()
        if np.isnan(columns["step"]).any():
            raise _Unread("has rows without a step")
        return columns
    except ParquetError as error:
        raise _Unread(str(error)) from error
    except (ValueError, TypeError, LookupError, pa.ArrowException) as error:
        raise _Unread("is damaged") from error
