"""Make the folder of a sweep or run, and say how to go on with what is in it."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from itertools import count
from pathlib import Path

from mxsweep.config.sweep_settings import Settings
from mxsweep.files.locks import is_held
from mxsweep.results.manifest import ManifestError, read_manifest
from mxsweep.results.record import find_runs
from mxsweep.sweeps.launch import LAUNCHES
from mxsweep.sweeps.launch import LOCK_NAME as LAUNCH_LOCK
from mxsweep.terminal.errors import ConfigError


def open_sweep_folder(settings: Settings, named: bool) -> Path:
    """Return the folder of a sweep, made if need be.

    Args:
        named: whether the user chose the folder; else another is taken where it is another sweep's.

    Raises:
        ConfigError: the folder holds a sweep that nobody asked to resume, or cannot be written.
    """
    folder = make_writable("hydra.sweep.dir", settings.sweep_dir, new=not named)
    if not settings.resume and _holds_sweep(folder):
        if not _is_being_worked_on(folder):
            raise ConfigError(
                f"hydra.sweep.dir: {str(folder)!r} already holds a sweep; add resume=true to go on with it, or give "
                "another folder"
            )
        print(f"mxsweep: another process works on {folder}; this one helps", file=sys.stderr)
    return folder


def make_writable(field: str, folder: Path, new: bool = False) -> Path:
    """Return a folder that can be written, made if need be.

    Args:
        field: the knob that names the folder, for the error.
        new: take a folder of another name where this one is there already.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    try:
        for number in count(2) if new else ():
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:  # by a sweep that began in the same second
                folder = folder.with_name(f"{folder.name.partition('.')[0]}.{number}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # what permissions say is not all: file systems may be read-only
            pass
    except OSError as error:
        raise ConfigError(
            f"{field}: {str(folder)!r} cannot be made or written ({error.strerror}); give a folder that can be"
        ) from None
    return folder


def how_to_go_on(folder: Path) -> str:
    """Return how much of a sweep is done, and the command that does the rest."""
    runs = find_runs(folder)
    done = sum(run.status == "done" for run in runs)
    return (
        f"{done} of {len(runs)} runs are done and kept. To go on: "
        f"python -m mxsweep resume=true hydra.sweep.dir={quote_folder(folder)}"
    )


def quote_folder(folder: Path) -> str:
    """Return a folder's name as it can be pasted into a shell."""
    text = str(shorten_folder(folder))
    return shlex.quote(f"./{text}" if text.startswith("~") else text)  # a name that is no user's home


def shorten_folder(folder: Path) -> Path:
    """Return a folder relative to the working directory, if it lies in that."""
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder


def _holds_sweep(folder: Path) -> bool:
    try:
        return read_manifest(folder) is not None
    except ManifestError as error:
        raise ConfigError(f"hydra.sweep.dir: {error}") from None


def _is_being_worked_on(folder: Path) -> bool:
    return any(is_held(lock) for lock in (folder / LAUNCHES).glob(f"*/{LAUNCH_LOCK}"))
