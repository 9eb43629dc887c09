"""Go on with a sweep: ``resume=true``, alone with all that was planned, or with the runs that further knobs name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mxsweep.config.checks import expanded, is_folder
from mxsweep.config.knobs import decides_no_result
from mxsweep.config.override_grammar import verbatim
from mxsweep.results.manifest import Command, ManifestError, read_manifest
from mxsweep.results.record import newest_sweep
from mxsweep.sweeps.begin import begin, plan_command
from mxsweep.sweeps.given_again import (
    GIVEN_AGAIN,
    asked_of,
    check_config_dir,
    check_given,
    gives_again,
    typed_values,
)
from mxsweep.sweeps.plan import Plan
from mxsweep.terminal.errors import ConfigError

SWEEP_DIR = "hydra.sweep.dir"


def resume_sweep(command: Command) -> int:
    """Go on with the sweep that a command names, or the newest, and return the exit code.

    Raises:
        ConfigError: a folder that holds no sweep, or words that make no sense.
    """
    values = knob_values(command)
    folder = _named_folder(command) if SWEEP_DIR in values else newest_sweep(only_sweeps=True)
    if folder is None:
        raise ConfigError(f"resume: there is no sweep below ./multirun; give its folder as {SWEEP_DIR}=FOLDER")
    # Beside knobs that decide no result, resume=true means the sweep as it was.
    of_runs = [word for word in command.overrides if not decides_no_result(_split(word)[0])]
    plans = [] if of_runs and not _may_give_again(of_runs) else _own_plans(command, folder, of_runs)
    names_runs = not plans
    plans = plans or [_plan_in(folder, command)]
    runs = {run.config_hash: run for each in plans for run in each.runs}
    planned = Plan(list(runs.values()), plans[-1].settings)
    return begin(planned, True, manifest_command(command) if names_runs else None, named=True)


def _own_plans(command: Command, folder: Path, of_runs: Sequence[str]) -> list[Plan]:
    """Return the plans of the commands that a sweep was begun and extended by, if what was typed means these.

    Args:
        command: what was typed to resume it.
        of_runs: those of its words that say something of runs: they give again what the sweep's words cannot be taken
            for, or mean runs of their own; then no plan is returned.

    Raises:
        ConfigError: the sweep asks for something that was not given again.
    """
    olds = _commands_of(folder)
    if not of_runs:
        for old in olds:
            check_config_dir(old, command, folder)
    elif any(old.config_dir and not command.config_dir for old in olds):
        return []
    further = Command([word for word in command.overrides if word not in of_runs], command.config_dir)
    plans = [_plan_in(folder, _with(old, further)) for old in olds]
    asked = [asked_of(each, folder) for each in plans]
    if of_runs and not gives_again(typed_values(of_runs), asked):
        return []
    for old, of_old in zip(olds, asked, strict=True):
        check_given(old, of_old, typed_values(command.overrides), folder)
    return plans


def _may_give_again(words: Sequence[str]) -> bool:
    """Return whether every word is of a knob that a sweep may ask to have given again."""
    return all(_split(word)[0] in GIVEN_AGAIN for word in words)


def _plan_in(folder: Path, command: Command) -> Plan:
    place = verbatim(f"./{folder}" if str(folder).startswith("~") else str(folder))  # which is expanded already
    return plan_command(_with(command, Command([f"{SWEEP_DIR}={place}"])), True, _elsewhere(command))[0]


def knob_values(command: Command) -> dict[str, str]:
    """Return a command's overrides, knob to value, without quotes."""
    return {key: value.strip("'\"") for key, value in map(_split, command.overrides)}


def manifest_command(command: Command) -> Command:
    """Return the command as a sweep's manifest keeps it: without what says how it was begun."""
    return _without(command, "resume", "dry_run", SWEEP_DIR)


def _commands_of(folder: Path) -> list[Command]:
    """Return the commands that a sweep was begun and extended by. Raises ConfigError where there are none."""
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        raise ConfigError(f"{SWEEP_DIR}: {error}") from None
    if manifest is None:
        raise ConfigError(f"resume: {str(folder)!r} holds no sweep (no sweep.json); give another {SWEEP_DIR}, or knobs")
    if not manifest.commands:
        raise ConfigError(f"resume: the sweep.json in {str(folder)!r} names no command to go on with; give the knobs")
    return manifest.commands


def _elsewhere(command: Command) -> Path | None:
    """Return the folder that a command was typed in; None where that is the current one, or is not known."""
    return Path(command.cwd) if command.cwd not in (None, os.getcwd()) else None


def _named_folder(command: Command) -> Path:
    """Return the folder to go on in: as typed if there is one of that name, else without Hydra's quotes."""
    typed = next(value for key, value in map(_split, reversed(command.overrides)) if key == SWEEP_DIR)
    folders = [expanded(SWEEP_DIR, text) for text in (typed, knob_values(command)[SWEEP_DIR])]
    return folders[0] if is_folder(folders[0]) else folders[1]


def _split(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    return key.lstrip("+"), value


def _without(command: Command, *keys: str) -> Command:
    kept = [word for word in command.overrides if _split(word)[0] not in keys]
    return Command(kept, command.config_dir, command.cwd)


def _with(command: Command, more: Command) -> Command:
    """Return a command with further overrides, which win over its own; another launcher comes without the old knobs."""
    replaced: Sequence[str] = list(knob_values(more))
    if "hydra/launcher" in replaced:
        replaced = [*replaced, *(key for key in knob_values(command) if key.startswith("hydra.launcher."))]
    kept = _without(command, *replaced).overrides
    return Command([*kept, *more.overrides], more.config_dir or command.config_dir, command.cwd)
