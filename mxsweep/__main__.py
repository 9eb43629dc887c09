"""`python -m mxsweep`: Hydra composes, run_one.py runs, collect.py collects."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mxsweep.config import NO_SUCH_KNOB, from_hydra
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
    """The command. Returns its exit code: 0, 1 if a run failed, 2 if nothing could be run."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = get_args_parser().parse_args(words)
    config_dir = Path(args.config_dir).resolve() if args.config_dir else None
    if config_dir is not None and not config_dir.is_dir():
        return _refuse(f"--config-dir: {args.config_dir!r} is not a folder")
    runs: list[PlannedRun] = []
    try:
        overrides, sweeps = prepare(args.overrides, config_dir)
        if not _only_asks(args):
            runs = plan(overrides, args.multirun or sweeps, config_dir)
    except ConfigError as error:
        return _refuse(str(error))
    except OverrideParseException as error:
        return _refuse(f"{error.override}: cannot be read as KNOB=VALUE ({str(error).splitlines()[0]})")
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(_without_jargon(str(error)))
    code = _answer_early(runs)
    if code is not None:
        return code
    flags = [word for word in words if word not in args.overrides]
    if sweeps and not args.multirun:
        flags.append("--multirun")
    return _launch(flags + overrides, len(runs))


def _only_asks(args: Any) -> bool:
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)


def _answer_early(runs: list[PlannedRun]) -> int | None:
    """Where a plan needs no run, or allows none, say so and return the exit code; None where the runs should start."""
    if any(run.dry_run for run in runs):
        print(dry_run_text(runs))
        return EXIT_FAILED if any(run.error for run in runs) else 0
    if runs and all(run.error is not None for run in runs):
        return _refuse("\n".join(dict.fromkeys(run.error or "" for run in runs)))
    if len(runs) == 1 and (runs[0].folder / "result.json").exists():
        return _refuse(f"hydra.run.dir: {str(runs[0].folder)!r} already holds a run; give another folder")
    return None


def _without_jargon(message: str) -> str:
    """Hydra answers a knob that is not there with how to append one, which would not make it a knob."""
    missing = re.match(r"Could not override '([^']+)'", message)
    return f"{missing.group(1)}: {NO_SUCH_KNOB}" if missing else message


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
        where = f" in {_shorten(sweep_dir)}" if sweep_dir else ""
        print(f"mxsweep: interrupted; the runs that had finished are whole{where}", file=sys.stderr)
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
