"""`python -m mxsweep`: Hydra composes, run_one.py runs, sweep/ runs many, collect.py collects."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from mxsweep.config.checks import expanded, is_folder
from mxsweep.config.knobs import decides_no_result
from mxsweep.config.option_files import conf_dir
from mxsweep.config.override_grammar import verbatim
from mxsweep.config.overrides import prepare
from mxsweep.config.sweep_settings import Slurm
from mxsweep.machine.gpus import visible_gpu_count
from mxsweep.results.manifest import Command, ManifestError, read_manifest
from mxsweep.results.record import newest_sweep
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.sweeps.dry_run import dry_run_text
from mxsweep.sweeps.plan import Plan, PlannedRun, name_run, plan
from mxsweep.sweeps.run_sweep import run_single, run_sweep
from mxsweep.terminal.command import EXIT_USAGE, run_command
from mxsweep.terminal.errors import ConfigError

SWEEP_DIR = "hydra.sweep.dir"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a run failed, 2 if nothing could be run, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command("mxsweep", lambda: _main(words), "interrupted before a run began")


def _main(words: list[str]) -> int:
    parser = get_args_parser()
    parser.prog = "mxsweep"
    args = parser.parse_intermixed_args(words)
    for flag in ("config_path", "config_name", "experimental_rerun", "shell_completion", "package"):
        if getattr(args, flag):
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name}: has no use here; config files of your own are added by --config-dir FOLDER")
    if args.help or args.hydra_help or args.cfg or args.info:
        return _ask_hydra(args)
    if args.config_dir is not None and not (args.config_dir and is_folder(Path(args.config_dir))):
        raise ConfigError(f"--config-dir: {args.config_dir!r} is not a folder")
    command = Command(args.overrides, str(Path(args.config_dir).resolve()) if args.config_dir else None, os.getcwd())
    if _values(command).get("resume", "").lower() == "true":
        return _resume(command)
    planned, multirun = _plan(command, args.multirun)
    return _run(planned, multirun, command, named=SWEEP_DIR in _values(command))


def _ask_hydra(args: Namespace) -> int:
    """--help, --cfg and the like, which Hydra answers without running anything."""
    config_dir = Path(args.config_dir).resolve() if args.config_dir else None
    grids, _ = prepare(args.overrides, config_dir)
    # Says what is wrong with them, which Hydra would do at length. Of a sweep, the first run is shown.
    asked = next(run for run in plan(grids, True, config_dir).runs if not run.added)
    overrides = [] if args.hydra_help else list(asked.words)  # the help is of Hydra's flags, and knows no knobs
    name_run("RUN_ID")

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def nothing(_: DictConfig) -> None: ...

    flags = ["--help"] if args.help else ["--hydra-help"] if args.hydra_help else ["--cfg", args.cfg or "job"]
    if args.info and not (args.help or args.hydra_help or args.cfg):
        flags = ["--info", args.info]
    flags += ["--resolve"] * bool(args.resolve and args.cfg)
    flags += [f"--config-dir={config_dir}"] * bool(config_dir)
    sys.argv = [sys.argv[0], *flags, *overrides]
    nothing()
    return 0


def _plan(command: Command, multirun: bool) -> tuple[Plan, bool]:
    """The plan, and whether it is one of a sweep: by -m, or by an experiment that sweeps."""
    config_dir = Path(command.config_dir) if command.config_dir else None
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError(f"--config-dir: {command.config_dir!r} is not a folder")
    overrides, sweeps = prepare(command.overrides, config_dir)
    multirun = multirun or sweeps
    return plan(overrides, multirun, config_dir), multirun


def _run(planned: Plan, multirun: bool, command: Command | None, named: bool) -> int:
    errors = [run.error for run in planned.runs if run.error is not None]
    if planned.settings.dry_run:
        print(dry_run_text(planned.runs))
        return EXIT_USAGE if len(errors) == len(planned.runs) else 0
    asked = [run for run in planned.runs if not run.added]
    problems = [problem for run in asked if (problem := _problem(run, planned))]
    if len(problems) == len(asked):
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    if not multirun and planned.settings.launcher is not None:
        raise ConfigError("hydra/launcher: is for sweeps; add -m, or leave it out")
    if not multirun:
        return run_single(planned)
    return run_sweep(planned, named, command and _without(command, "resume", "dry_run", SWEEP_DIR))


def _problem(run: PlannedRun, planned: Plan) -> str | None:
    """Why a run cannot be, here where it would be done; the run itself says so where others of the sweep can be."""
    if run.config is None:
        return run.error
    if planned.settings.resume or isinstance(planned.settings.launcher, Slurm):
        return None
    if run.config.backend == "cuda" and visible_gpu_count():
        return None  # asked any further, the GPU would begin work in this process, which may only start others
    try:
        refuse_unavailable_backend(run.config)
    except ConfigError as error:
        return str(error)
    return None


def _resume(command: Command) -> int:
    """Go on with a sweep: with the runs that the command names or, if it names none, with all that were planned."""
    folder = _named_folder(command) if SWEEP_DIR in _values(command) else newest_sweep(only_sweeps=True)
    if folder is None:
        raise ConfigError(f"resume: there is no sweep below ./multirun; give its folder as {SWEEP_DIR}=FOLDER")
    # Beside knobs that decide no result, resume=true means the sweep as it was.
    knobs = [key for key in _values(command) if not decides_no_result(key)]
    commands = [command]
    if not knobs:
        try:
            manifest = read_manifest(folder)
        except ManifestError as error:
            raise ConfigError(f"{SWEEP_DIR}: {error}") from None
        if manifest is None:
            raise ConfigError(
                f"resume: {str(folder)!r} holds no sweep (no sweep.json); give another {SWEEP_DIR}, or knobs"
            )
        if not manifest.commands:
            raise ConfigError(
                f"resume: the sweep.json in {str(folder)!r} names no command to go on with; give the knobs"
            )
        _check_cwd(manifest.commands)
        commands = [_with(old, command) for old in manifest.commands]
    place = verbatim(f"./{folder}" if str(folder).startswith("~") else str(folder))  # which is expanded already
    plans = [_plan(_with(each, Command([f"{SWEEP_DIR}={place}"])), True)[0] for each in commands]
    runs = {run.config_hash: run for each in plans for run in each.runs}
    planned = Plan(list(runs.values()), plans[-1].settings)
    return _run(planned, True, command if knobs else None, named=True)


def _check_cwd(commands: Sequence[Command]) -> None:
    """Paths in a sweep's commands are those of the folder that it was begun in."""
    for command in commands:
        with_paths = {"model.path", "task.data"} & _values(command).keys()
        if with_paths and command.cwd not in (None, os.getcwd()):
            raise ConfigError(
                f"resume: the sweep's {min(with_paths)} is relative to {command.cwd!r}, where it was begun; change to "
                "that folder, or give the knobs again"
            )


def _named_folder(command: Command) -> Path:
    """The folder to go on in: as typed if there is one of that name, else without the quotes that Hydra takes."""
    typed = next(value for key, _, value in map(_split, reversed(command.overrides)) if key == SWEEP_DIR)
    folders = [expanded(SWEEP_DIR, text) for text in (typed, _values(command)[SWEEP_DIR])]
    return folders[0] if is_folder(folders[0]) else folders[1]


def _split(word: str) -> tuple[str, str, str]:
    key, equals, value = word.partition("=")
    return key.lstrip("+"), equals, value


def _values(command: Command) -> dict[str, str]:
    """A command's overrides, knob to value, without quotes."""
    return {key: value.strip("'\"") for key, _, value in map(_split, command.overrides)}


def _without(command: Command, *keys: str) -> Command:
    kept = [word for word in command.overrides if _split(word)[0] not in keys]
    return Command(kept, command.config_dir, command.cwd)


def _with(command: Command, more: Command) -> Command:
    """A command with further overrides, which win over its own. Another launcher comes without the old one's knobs."""
    replaced = [*_values(more), *(key for key in _values(command) if key.startswith("hydra.launcher."))]
    kept = _without(command, *(replaced if "hydra/launcher" in _values(more) else _values(more))).overrides
    return Command([*kept, *more.overrides], more.config_dir or command.config_dir, command.cwd)


if __name__ == "__main__":
    sys.exit(main())
