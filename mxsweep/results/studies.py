"""Tell the studies apart that were collected together, and count once what several of them hold the same of.

A study is a folder that was named to be collected, unless that is a run itself. With two studies or more each row says
of which it is. A run that is another once more, the same in all that decides its result and in every metric, is one row
of both studies. Studies that were made in different environments are never compared with each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mxsweep.files.digests import json_digest
from mxsweep.results.record import HYDRA_FOLDER, RECORD_NAME, Folders
from mxsweep.results.rows import Row, label

STUDY = "study"  # knobs of a row, beside those of its config
ENVIRONMENT = "environment"
NOTES = ("diagnostics", "noise")  # entries of an identity that change no metric
DECIDING = ("mxsweep", "torch", "transformers", "lm_eval", "cuda", "device_name")  # entries that may change numbers


def study_names(dirs: Folders) -> dict[Path, str]:
    """Return a name of each study, by its resolved folder: as much of the path's end as tells it from the others."""
    named = [dirs] if isinstance(dirs, Path | str) else list(dirs)
    folders = dict.fromkeys(Path(each).resolve() for each in named if not _is_run(Path(each)))
    return {folder: _name(folder, [other for other in folders if other != folder]) for folder in folders}


def with_studies(rows: Sequence[Row], names: Mapping[Path, str]) -> list[Row]:
    """Return the rows with their studies and, where these differ in it, their environments among their knobs.

    Rows of a single study come back as they are, and so does a row of none: of a run that was named by itself.
    """
    if len(names) < 2:
        return list(rows)
    of_rows = [_study_of(row.run.path, names) for row in rows]
    made_in: dict[str, set[str]] = {}
    for row, name in zip(rows, of_rows, strict=True):
        # The record of a run that failed before its model was loaded does not say on which device.
        if name is not None and row.run.status == "done" and (values := environment(row)):
            made_in.setdefault(name, set()).add(json_digest(_deciding(values)))
    several = len({frozenset(each) for each in made_in.values()}) > 1
    named = []
    for row, name in zip(rows, of_rows, strict=True):
        knobs = {} if name is None else {STUDY: name}
        # A row of no study, as of a baseline found beside them, goes with the studies of its environment.
        own = made_in[name] if name in made_in else {json_digest(_deciding(environment(row)))}
        if several and (alike := [other for other in made_in if made_in[other] == own]):
            knobs[ENVIRONMENT] = ", ".join(alike)
        named.append(replace(row, knobs=row.knobs | knobs))
    return named


def without_repeats(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without those of runs that are another one once more; the one that measured the most stays.

    Two runs are one if all that decides the result is the same, what is noted beside it aside, and every metric of it
    came out the same to the last digit.
    """
    alike: dict[object, list[Row]] = {}
    for row in rows:
        alike.setdefault(_sameness(row), []).append(row)
    kept = {id(max(same, key=_measured)): same for same in alike.values()}
    return [replace(row, knobs=row.knobs | _studies(kept[id(row)])) for row in rows if id(row) in kept]


def environment(row: Row) -> dict[str, str]:
    """Return what a row's run was made with, flat; empty where its record does not say."""
    return _environment_in(row.run.record or {})


def has_environment_of(row: Row, record: Mapping[str, Any]) -> bool:
    """Return whether a record is of a run that was made in the row's environment, as far as that may change numbers."""
    return same_environment(record, row.run.record or {})


def same_environment(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two records are of runs that were made in one environment, as far as that may change numbers."""
    return _deciding(_environment_in(record)) == _deciding(_environment_in(other))


def _environment_in(record: Mapping[str, Any]) -> dict[str, str]:
    recorded = record.get("environment")
    return flat_environment(recorded) if isinstance(recorded, dict) else {}


def flat_environment(recorded: Mapping[str, Any]) -> dict[str, str]:
    """Return a record's environment as names and texts, the versions of packages among them."""
    flat: dict[str, str] = {}
    for name, value in recorded.items():
        if isinstance(value, dict):
            flat |= {key: label(item) for key, item in value.items()}
        else:
            flat[name] = label(value)
    return flat


def explain_environments(rows: Iterable[Row]) -> str | None:
    """Say in what the environments of studies differ that are not compared for it; None where they are compared."""
    values: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        if ENVIRONMENT in row.knobs:
            for name, value in _deciding(environment(row)).items():
                where = values.setdefault(name, {}).setdefault(label(row.knobs[ENVIRONMENT]), {})
                where[value] = None
    differing = []
    for name, by_environment in values.items():
        if len({tuple(sorted(each)) for each in by_environment.values()}) > 1:
            said = (f"{' and '.join(each)} in {where}" for where, each in by_environment.items())
            differing.append(f"{name} is {', '.join(said)}")
    if not differing:
        return None
    return f"Studies of different environments are not compared with each other: {'; '.join(differing)}."


def _is_run(folder: Path) -> bool:
    return (folder / RECORD_NAME).exists() or (folder / HYDRA_FOLDER).is_dir()


def _name(folder: Path, others: Sequence[Path]) -> str:
    parts = folder.parts[1:] or folder.parts
    for count in range(1, len(parts) + 1):
        tail = parts[-count:]
        if not any((other.parts[1:] or other.parts)[-count:] == tail for other in others):
            return os.path.join(*tail)
    return str(folder)


def _study_of(run: Path, names: Mapping[Path, str]) -> str | None:
    """Return the innermost study that a run lies in; None of a run that lies in none."""
    folder = run.resolve()
    return next((names[each] for each in (folder, *folder.parents) if each in names), None)


def _deciding(values: Mapping[str, str]) -> dict[str, str]:
    return {name: values[name] for name in DECIDING if name in values}


def _sameness(row: Row) -> object:
    """Return what two rows of one result have the same of; of a record that says too little, what no other has."""
    identity, hashed = row.recorded("identity"), row.recorded("config_hash")
    if isinstance(identity, dict):
        decided = json_digest({name: value for name, value in identity.items() if name not in NOTES})
    elif isinstance(hashed, str):
        decided = hashed
    else:
        return id(row)
    metrics = tuple((name, repr(value)) for name, value in sorted(row.metrics.items()))  # in which NaN is NaN
    return row.task, decided, json_digest(_deciding(environment(row))), metrics


def _measured(row: Row) -> tuple[bool, bool, bool, bool]:
    return bool(row.noise), bool(row.distance), bool(row.tensors), not row.proven_by


def _studies(rows: Sequence[Row]) -> dict[str, str]:
    names = dict.fromkeys(str(row.knobs[STUDY]) for row in rows if STUDY in row.knobs)
    return {STUDY: ", ".join(names)} if names else {}
