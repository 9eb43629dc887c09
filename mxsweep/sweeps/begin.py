"""Do what a command asks for: plan its runs, refuse those that cannot be, and show the plan or run it."""

from __future__ import annotations

import sys
from pathlib import Path

from mxsweep.config.checks import is_folder
from mxsweep.config.overrides import prepare
from mxsweep.config.sweep_settings import Gpus, Slurm
from mxsweep.machine.gpus import visible_gpu_count
from mxsweep.results.manifest import Command
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.impossible import why_impossible, why_not_here
from mxsweep.sweeps.plan import Plan, PlannedRun, plan
from mxsweep.sweeps.run_sweep import run_single, run_sweep
from mxsweep.sweeps.without_effect import check_effects
from mxsweep.terminal.command import EXIT_USAGE
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.escapes import printable


def plan_command(command: Command, multirun: bool, paths_from: Path | None = None) -> tuple[Plan, bool]:
    """Return the plan of a command, and whether it is one of a sweep: by -m, or by an experiment that sweeps.

    Args:
        command: what was typed.
        multirun: whether -m was typed.
        paths_from: the folder from which the command's relative paths count; None for the current one.

    Raises:
        ConfigError: words that make no sense, or a folder of config files that is not there.
    """
    config_dir = Path(command.config_dir) if command.config_dir else None
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError(f"--config-dir: {command.config_dir!r} is not a folder")
    overrides, sweeps = prepare(command.overrides, config_dir)
    multirun = multirun or sweeps
    return plan(overrides, multirun, config_dir, paths_from), multirun


def begin(planned: Plan, multirun: bool, command: Command | None, named: bool) -> int:
    """Show a plan or run it, and return the exit code.

    Args:
        planned: the runs.
        multirun: whether they are a sweep.
        command: what a sweep is to be known by when it is resumed; None where that is in its manifest already.
        named: whether the user chose the sweep's folder.

    Raises:
        ConfigError: of the runs asked for, none can be, or a remedy that was typed has no effect in any of them.
    """
    if not planned.settings.resume:
        for told in check_effects(planned.runs, planned.settings.reuse):
            print(f"mxsweep: {told}", file=sys.stderr)
    if planned.settings.dry_run:
        shown = preview(planned.runs, planned.settings.reuse)
        print(printable(shown.text))
        return EXIT_USAGE if shown.is_refused else 0
    refuse_impossible(planned)
    if not multirun and planned.settings.launcher is not None:
        raise ConfigError("hydra/launcher: is for sweeps; add -m, or leave it out")
    return run_sweep(planned, named, command) if multirun else run_single(planned)


def refuse_impossible(planned: Plan) -> None:
    """Raise ConfigError where of the runs that were asked for none can be.

    Where some can, those that cannot say so themselves, in their records.
    """
    problems = []
    for run in planned.runs:
        if run.added:
            continue
        problem = _refusal(run, planned)
        if problem is None:
            return
        problems.append(problem)
    raise ConfigError("\n".join(dict.fromkeys(problems)))


def _refusal(run: PlannedRun, planned: Plan) -> str | None:
    """Return why a run is not begun; None where it is, or is done already and is only to be collected again."""
    if run.config is None or planned.settings.resume:
        return run.error
    if problem := why_impossible(run):
        return problem
    if isinstance(planned.settings.launcher, Slurm):  # its jobs run on another machine
        return None
    if isinstance(planned.settings.launcher, Gpus) and run.config.model.device.startswith("cuda:"):
        return None  # which GPU a run gets is the launcher's to say, and it refuses such a device with its own reason
    if run.config.backend == "cuda" and visible_gpu_count():
        return None  # asked any further, the GPU would begin work in this process, which may only start others
    return why_not_here(run)
