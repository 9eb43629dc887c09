"""`python -m mxsweep`: Hydra composes, run_one.py runs, sweep/ runs many, collect.py collects."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from mxsweep.config import SWEEP_KNOBS
from mxsweep.errors import ConfigError
from mxsweep.overrides import conf_dir, prepare
from mxsweep.results.manifest import Command, ManifestError, read_manifest
from mxsweep.results.record import newest_sweep
from mxsweep.sweep.dry_run import dry_run_text
from mxsweep.sweep.plan import Plan, name_run, plan
from mxsweep.sweep.run_sweep import EXIT_INTERRUPTED, run_single, run_sweep, sweep_folder

EXIT_USAGE = 2  # nothing was run: the command line makes no sense
SWEEP_DIR = "hydra.sweep.dir"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 if a run failed, 2 if nothing could be run, 130 if interrupted."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        print(f"mxsweep: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("mxsweep: interrupted before a run began", file=sys.stderr)
        return EXIT_INTERRUPTED


def _main(words: list[str]) -> int:
    parser = get_args_parser()
    parser.prog = "mxsweep"
    args = parser.parse_intermixed_args(words)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return _ask_hydra(words, args)
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise ConfigError(f"--config-dir: {args.config_dir!r} is not a folder")
    command = Command(args.overrides, str(Path(args.config_dir).resolve()) if args.config_dir else None)
    if _values(command).get("resume", "").lower() == "true":
        return _resume(command)
    planned, multirun = _plan(command, args.multirun)
    return _run(planned, multirun, command, named=SWEEP_DIR in _values(command))


def _ask_hydra(words: list[str], args: Namespace) -> int:
    """--help, --cfg and the like, which Hydra answers without running anything."""
    config_dir = Path(args.config_dir).resolve() if args.config_dir else None
    overrides, _ = prepare(args.overrides, config_dir)
    name_run("RUN_ID")

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def nothing(_: DictConfig) -> None: ...

    sys.argv = [sys.argv[0], *(word for word in words if word not in args.overrides), *overrides]
    nothing()
    return 0


def _plan(command: Command, multirun: bool) -> tuple[Plan, bool]:
    """The plan, and whether it is one of a sweep: by -m, or by an experiment that sweeps."""
    config_dir = Path(command.config_dir) if command.config_dir else None
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: {command.config_dir!r} is not a folder")
    overrides, sweeps = prepare(command.overrides, config_dir)
    multirun = multirun or sweeps
    return plan(overrides, multirun, config_dir), multirun


def _run(planned: Plan, multirun: bool, command: Command | None, named: bool) -> int:
    errors = [run.error for run in planned.runs if run.error is not None]
    if planned.settings.dry_run:
        print(dry_run_text(planned.runs))
        return EXIT_USAGE if len(errors) == len(planned.runs) else 0
    if len(errors) == len(planned.runs):
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    if not multirun:
        return run_single(planned)
    folder = sweep_folder(planned.settings, named)
    return run_sweep(planned, folder, command and _without(command, "resume", "dry_run", SWEEP_DIR))


def _resume(command: Command) -> int:
    """Go on with a sweep: with the runs that the command names or, if it names none, with all that were planned."""
    folder = Path(_values(command)[SWEEP_DIR]) if SWEEP_DIR in _values(command) else newest_sweep(only_sweeps=True)
    if folder is None:
        raise ConfigError(f"resume: there is no sweep below ./multirun; give its folder as {SWEEP_DIR}=FOLDER")
    knobs = [key for key in _values(command) if key not in SWEEP_KNOBS and not key.startswith("hydra")]
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
        commands = [_with(old, command) for old in manifest.commands]
    plans = [_plan(_with(each, Command([f"{SWEEP_DIR}={_quote(str(folder))}"])), True)[0] for each in commands]
    runs = {run.config_hash: run for each in plans for run in each.runs}
    planned = Plan(list(runs.values()), plans[-1].settings)
    return _run(planned, True, command if knobs else None, named=True)


def _values(command: Command) -> dict[str, str]:
    """A command's overrides, knob to value, without quotes."""
    words = (word.partition("=") for word in command.overrides)
    return {key.lstrip("+"): value.strip("'\"") for key, _, value in words}


def _without(command: Command, *keys: str) -> Command:
    kept = [word for word in command.overrides if word.partition("=")[0].lstrip("+") not in keys]
    return Command(kept, command.config_dir)


def _with(command: Command, more: Command) -> Command:
    """A command with further overrides, which win over its own."""
    kept = _without(command, *_values(more)).overrides
    return Command([*kept, *more.overrides], more.config_dir or command.config_dir)


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


if __name__ == "__main__":
    sys.exit(main())
