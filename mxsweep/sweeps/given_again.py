"""Take from a sweep's folder what cannot run code; the rest is typed again by whoever resumes the sweep.

A sweep.json may be a stranger's. What its words would have run (a checkpoint's own code, Python of tasks, set-up lines
of jobs) is taken from the command line alone. What they name outside of the folder (models, data, folders of config
files, a place to log to), and chat templates, which may run without end, are taken also where the same command was
typed by this user before, which its digest in the cache folder says: so one's own sweeps are resumed without typing
more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mxsweep.config.knobs import paths
from mxsweep.config.override_grammar import quote, read_override, sweep_values
from mxsweep.config.recorded_config import values_of
from mxsweep.config.run_config import RunConfig
from mxsweep.config.sweep_knobs import SBATCH
from mxsweep.config.sweep_settings import Settings, Slurm
from mxsweep.files.atomic import write_atomically
from mxsweep.files.cache import cache_folder
from mxsweep.files.checkpoints import EMBEDDED
from mxsweep.files.digests import json_digest
from mxsweep.results.manifest import Command
from mxsweep.sweeps.plan import Plan
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import written

TRUST, KERNEL, TASKS = "model.trust_remote_code", "model.attention", "task.include_path"
TEMPLATE = "task.apply_chat_template"  # a program of the model's, in a sandbox without limits
SETUP = "hydra.launcher.setup"
RUNS_CODE = (TRUST, KERNEL, TASKS, SETUP, SBATCH)
GROUPS = {"model": "model.path", "task": TASKS}  # which a path may be typed for, too
GIVEN_AGAIN = {*RUNS_CODE, TEMPLATE, *GROUPS, *paths()}  # knobs of runs that a sweep may ask for
_NAMES_NO_FILE = {"auto", "bytes", EMBEDDED, None, ""}  # values of knobs that name files

Asked = dict[str, list[Any]]  # by knob, the values of a sweep's runs that have to be given again


def asked_of(plan: Plan, folder: Path) -> Asked:
    """Return what a plan made of the words of the sweep in ``folder`` would run, or takes from outside of it."""
    asked: Asked = {}
    for run in plan.runs:
        for knob, value in _of_config(run.config, folder.resolve()) if run.config else ():
            if value not in asked.setdefault(knob, []):
                asked[knob].append(value)
    return asked | {knob: [value] for knob, value in _of_settings(plan.settings)}


def _of_config(config: RunConfig, folder: Path) -> Iterable[tuple[str, Any]]:
    values = values_of(config)
    if config.model.trust_remote_code:
        yield TRUST, True
    if "/" in config.model.attention:  # a kernel on the hub
        yield KERNEL, config.model.attention
    if config.task.include_path:
        yield TASKS, config.task.include_path
    if config.task.apply_chat_template:
        yield TEMPLATE, True
    for knob in paths():
        if knob == TASKS or (knob == "calibration.path" and values["calibration.source"] == "task"):
            continue
        named = values[knob]
        for value in named.values() if isinstance(named, dict) else [named]:
            if value not in _NAMES_NO_FILE and not _is_inside(str(value), folder):
                yield knob, value


def _of_settings(settings: Settings) -> Iterable[tuple[str, Any]]:
    if isinstance(settings.launcher, Slurm):
        if settings.launcher.setup:
            yield SETUP, settings.launcher.setup
        if settings.launcher.sbatch:
            yield SBATCH, settings.launcher.sbatch
    if settings.logging.name != "none":
        yield "logging", settings.logging.name


def _is_inside(path: str, folder: Path) -> bool:
    """Return whether a path is one of a file or folder below ``folder``: a name on the hub is none."""
    full = Path(path).expanduser()
    return full.exists() and full.resolve().is_relative_to(folder)


def gives_again(typed: Mapping[str, Sequence[Any]], asked: Sequence[Asked]) -> bool:
    """Return whether each of the typed values is one of those asked for by one of a sweep's commands."""
    return all(
        any(_is_same(value, other) for of_one in asked for other in of_one.get(GROUPS.get(knob, knob), ()))
        for knob, values in typed.items()
        for value in values
    )


def typed_values(words: Iterable[str]) -> dict[str, list[Any]]:
    """Return the values of overrides by their knobs. Raises ConfigError for a word that is none."""
    values: dict[str, list[Any]] = {}
    for word in words:
        bare = word.lstrip("+")
        knob, _, text = bare.partition("=")
        try:
            override = read_override(bare)
            found = sweep_values(override) if override.is_sweep_override() else [override.value()]
        except ConfigError:  # a path, which may hold anything
            found = [text]
        values.setdefault(knob, []).extend(getattr(value, "text", value) for value in found)
    return values


def check_given(command: Command, asked: Asked, typed: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Raise ConfigError, with the words to type, unless all that a command of the sweep asks for was given.

    Args:
        command: one of those that are in the sweep's folder.
        asked: what it asks for.
        typed: the values of the words that were typed to resume the sweep, by knob.
        folder: the sweep's.
    """
    given = {GROUPS.get(knob, knob): values for knob, values in typed.items()}
    known = was_typed_here(command)
    missing: list[str] = []
    for knob, values in asked.items():
        if knob == "logging":
            lacks = [] if knob in given or known else values
        else:  # the values that were composed, since Hydra merges a typed mapping with that of the sweep's words
            lacks = [value for value in values if not any(_is_same(value, other) for other in given.get(knob, ()))]
            lacks = [] if known and knob not in RUNS_CODE else lacks
        # Hydra takes new keys of a mapping behind ++ only.
        missing += [f"{'++' * isinstance(value, dict)}{knob}={_text(value)}" for value in lacks]
    if missing:
        raise _refusal(folder, missing)


def check_config_dir(command: Command, typed: Command, folder: Path) -> None:
    """Raise ConfigError where a command of the sweep has config files that nobody named here. Its files stay unread."""
    if command.config_dir and not typed.config_dir and not was_typed_here(command):
        raise _refusal(folder, ["--config-dir", command.config_dir])


def _refusal(folder: Path, missing: Sequence[str]) -> ConfigError:
    words = shlex.join(["resume=true", f"hydra.sweep.dir={folder}", *missing])
    return ConfigError(
        f"resume: the sweep.json in {str(folder)!r} names what may run code or lies outside of the folder, which is "
        f"taken from the command line only; if you trust it: python -m mxsweep {words}"
    )


def _is_same(value: Any, other: Any) -> bool:
    """Return whether two values are the same, or name the same file."""
    if value == other or not (isinstance(value, str) and isinstance(other, str)):
        return bool(value == other)
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        return os.path.samefile(Path(value).expanduser(), Path(other).expanduser())
    return False


def _text(value: Any) -> str:
    """Return a value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(quote(str(item)) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {_text(item)}' for key, item in value.items())}}}"
    return written(value)


# What this user typed


def remember_typed(command: Command) -> None:
    """Note that this user typed a command; where nothing can be kept, resuming asks for its paths again."""
    with contextlib.suppress(OSError):
        write_atomically(_note_of(command), "", durable=False)


def was_typed_here(command: Command) -> bool:
    """Return whether this user typed the same words, in the same folder, before."""
    try:
        return _note_of(command).is_file()
    except OSError:
        return False


def _note_of(command: Command) -> Path:
    return cache_folder("typed") / json_digest(dataclasses.asdict(command))
