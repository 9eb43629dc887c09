"""`python -m mxsweep`: Hydra composes, run_one.py runs, collect.py collects."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mxsweep.config import from_hydra
from mxsweep.errors import ConfigError
from mxsweep.overrides import as_typed, conf_dir, prepare
from mxsweep.results.record import write_record
from mxsweep.run_one import describe_error, final_line, new_record, run
from mxsweep.sweep.dry_run import dry_run_text
from mxsweep.sweep.plan import PlannedRun, plan, register_run_id

log = logging.getLogger("mxsweep")

EXIT_FAILED = 1  # a run failed; the others are recorded
EXIT_USAGE = 2  # nothing was run: the command line makes no sense
EXIT_INTERRUPTED = 130  # by Ctrl-C, as a shell counts it


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 if a run failed, 2 if nothing could be run, 130 if interrupted."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("mxsweep: interrupted before a run began", file=sys.stderr)
        return EXIT_INTERRUPTED


def _main(words: list[str]) -> int:
    parser = get_args_parser()
    parser.prog = "mxsweep"
    args = parser.parse_intermixed_args(words)
    config_dir = Path(args.config_dir).resolve() if args.config_dir else None
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: {args.config_dir!r} is not a folder")
    overrides, sweeps = prepare(args.overrides, config_dir)
    flags = [word for word in words if word not in args.overrides]
    if _only_asks(args):
        return _launch(flags + overrides, planned=0)
    multirun = args.multirun or sweeps
    runs = plan(overrides, multirun, config_dir)
    code = _answer_early(runs, multirun)
    if code is not None:
        return code
    if sweeps and not args.multirun:
        flags.append("--multirun")
    return _launch(flags + overrides, len(runs))


def _only_asks(args: Any) -> bool:
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)


def _answer_early(runs: list[PlannedRun], multirun: bool) -> int | None:
    """Where a plan needs no run, or allows none, say so and return the exit code; None where the runs should start."""
    if any(run.dry_run for run in runs):
        print(dry_run_text(runs))
        return EXIT_USAGE if all(run.error for run in runs) else 0
    if all(run.error is not None for run in runs):
        return _refuse("\n".join(dict.fromkeys(run.error or "" for run in runs)))
    field, folder = ("hydra.sweep.dir", runs[0].sweep_dir) if multirun else ("hydra.run.dir", runs[0].run_dir)
    if not multirun and (folder / "result.json").exists():
        return _refuse(f"{field}: {str(folder)!r} already holds a run; give another folder")
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.rmdir()  # Hydra makes it again, a second later perhaps and so under another name
    except OSError as error:
        return _refuse(f"{field}: {str(folder)!r} cannot be made ({error.strerror}); give a folder that can be written")
    return None


def _refuse(message: str) -> int:
    print(f"mxsweep: {message}", file=sys.stderr)
    return EXIT_USAGE


def _launch(words: list[str], planned: int) -> int:
    """Let Hydra run the jobs; afterwards, of a sweep, collect them."""
    register_run_id()
    failures: list[str] = []
    sweep_dir: Path | None = None

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(cfg: DictConfig) -> None:
        nonlocal sweep_dir
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        overrides = [as_typed(override) for override in settings.overrides.task]
        if settings.mode == RunMode.MULTIRUN:
            sweep_dir = Path(settings.sweep.dir)
            log.info("run %d of %d: %s", settings.job.num + 1, planned, " ".join(overrides))
        record = _run_job(cfg, folder, overrides)
        (log.info if record["status"] == "done" else log.error)("%s", final_line(record, _shorten(folder)))
        if record["status"] != "done":
            failures.append(record["run_id"])

    sys.argv = [sys.argv[0], *words]
    try:
        job()
    except KeyboardInterrupt:
        finished = f"; for the runs that finished: python -m mxsweep.collect {_shorten(sweep_dir)}" if sweep_dir else ""
        print(f"mxsweep: interrupted{finished}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if sweep_dir is not None:
        _collect(sweep_dir)
    return EXIT_FAILED if failures else 0


def _run_job(cfg: DictConfig, folder: Path, overrides: list[str]) -> dict[str, Any]:
    try:
        config = from_hydra(cfg)
    except ConfigError as error:
        # One impossible combination of a sweep: recorded as it was asked for, since it has no typed config.
        asked = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(asked, dict)
        record = new_record(folder.name, {str(key): value for key, value in asked.items()}, overrides)
        record["error"] = describe_error(error)
        write_record(folder, record)
        return record
    return run(config, folder, overrides=overrides, stamp=cfg.stamp)


def _collect(folder: Path) -> None:
    from mxsweep.collect import collect

    result = collect([folder])
    print(f"\n{result.text}")
    if result.write_error:
        print(f"mxsweep: {result.write_error}", file=sys.stderr)
    else:
        print(f"\nWritten to {_shorten(folder)}: {', '.join(path.name for path in result.files)}")


def _shorten(folder: Path) -> Path:
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder


if __name__ == "__main__":
    sys.exit(main())
