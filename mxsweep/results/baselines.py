"""Find the baseline of runs that were collected without one, in the folders beside theirs, or say how to make it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mxsweep.config import knobs
from mxsweep.results.groups import Results
from mxsweep.results.identity import baseline_hashes
from mxsweep.results.record import RECORD_NAME, RecordError, read_record
from mxsweep.results.rows import Row
from mxsweep.results.studies import has_environment_of

HOMES = ("outputs", "multirun")  # where commands put runs and sweeps, beside each other
MOST_FOLDERS = 20_000  # that are looked into
_OF_ONE_RUN = ("stamp", "export")  # knobs of what was asked for, and of no baseline
_NAMED_BY_HASH = re.compile(r"_[0-9a-f]{8}$")


def find_baselines(results: Results) -> list[Path]:
    """Return folders of runs that are the baselines of groups without one, each its rows' own; none where none is seen.

    They are looked for beside the runs, and in the ``outputs`` and ``multirun`` that the runs lie in. A baseline has
    the same model, task, data and conditions, was made in the same environment, and is done.
    """
    found: dict[Path, None] = {}
    for group in results.groups:
        if not any(row.is_baseline for row in group.rows):
            found |= dict.fromkeys(baselines_of(group.rows))
    here = Path.cwd()
    return [folder.relative_to(here) if folder.is_relative_to(here) else folder for folder in found]


def baselines_of(rows: Sequence[Row]) -> list[Path]:
    """Return folders of runs that are baselines of rows, each row's own; looked for as in `find_baselines`."""
    wanted: dict[str, Row] = {}
    for row in rows:
        wanted |= dict.fromkeys(baseline_hashes(row.run), row)
    return list(_look_for(wanted, _places(rows))) if wanted else []


def baseline_command(row: Row) -> str | None:
    """Return the command that makes a run's baseline; None where the run does not say enough, or is a training."""
    if not baseline_hashes(row.run) or isinstance(row.recorded("training"), dict):
        return None
    kept = [word for word in row.run.overrides if _is_kept(word)]
    plain = [f"{group}=none" for group in knobs.element_groups()]
    return " ".join(["python -m mxsweep", *map(shlex.quote, kept), *plain])


def run_command(row: Row) -> str:
    """Return the command that makes a run once more, where it was made; "" where its record has no words."""
    words = [(_root(word), word) for word in row.run.overrides]
    kept = [word for root, word in words if root not in _OF_ONE_RUN and not knobs.is_of_sweep(root)]
    return " ".join(["python -m mxsweep", *map(shlex.quote, kept)]) if kept else ""


def _root(word: str) -> str:
    key = word.lstrip("+~").partition("=")[0]
    return re.split(r"[.@]", key, maxsplit=1)[0]


def _is_kept(word: str) -> bool:
    root = _root(word)
    return not (knobs.decides_only_quantized(root) or knobs.is_of_sweep(root) or root in _OF_ONE_RUN)


def _places(rows: Iterable[Row]) -> list[Path]:
    """Return the folders to look in: that of a run, and the homes of runs and sweeps that it lies in or beside."""
    places: dict[Path, None] = {}
    for row in rows:
        folder = Path(os.path.abspath(row.run.path))
        places[folder.parent] = None
        for above in folder.parents[:2]:
            if above.name in HOMES:
                places |= dict.fromkeys(above.with_name(name) for name in HOMES)
    return list(places)


def _look_for(wanted: dict[str, Row], places: Iterable[Path]) -> Iterator[Path]:
    """Yield the folder of a done run of each wanted hash, the newest first seen in each place."""
    missing = dict(wanted)
    for folder in _run_folders(places):
        by_name = _NAMED_BY_HASH.search(folder.name)
        if by_name and not any(hashed.startswith(by_name[0][1:]) for hashed in missing):
            continue
        try:
            record = read_record(folder / RECORD_NAME)
        except RecordError:
            continue
        row = missing.get(str(record.get("config_hash")))
        if row is not None and record["status"] == "done" and has_environment_of(row, record):
            own = baseline_hashes(row.run)
            missing = {hashed: other for hashed, other in missing.items() if hashed not in own}
            yield folder
        if not missing:
            return


def _run_folders(places: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders with a record in these places and one level below, the newest names first."""
    looked_into = 0
    for place in places:
        for folder in (sub for top in _folders(place) for sub in (top, *_folders(top))):
            looked_into += 1
            if looked_into > MOST_FOLDERS:
                return
            if (folder / RECORD_NAME).is_file():
                yield folder


def _folders(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
    return [place / name for name in sorted(names, reverse=True)]
