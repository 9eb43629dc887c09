"""The story of a sweep: a folder, the planned runs in it, those left to do, and what came out.

Not called sweep.py for the reason that run_one.py is not called run.py.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from mxsweep.config.sweep_settings import Settings
from mxsweep.files.locks import holder, is_held, one_at_a_time
from mxsweep.results.manifest import Command, Manifest, ManifestError, ManifestRun, merge_manifest, read_manifest
from mxsweep.results.record import RECORD_NAME, find_runs
from mxsweep.sweeps.execute import Observer, SweepRun, settled
from mxsweep.sweeps.launch import LAUNCHES, Launch, LaunchError, begin_launch
from mxsweep.sweeps.launch import LOCK_NAME as LAUNCH_LOCK
from mxsweep.sweeps.launchers import check_launcher, launch_runs
from mxsweep.sweeps.plan import Plan, PlannedRun
from mxsweep.sweeps.progress import Progress
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger("mxsweep")

COLLECT_LOCK = ".collect.lock"
EXIT_FAILED = 1  # a run failed or has no result; the others are recorded
EXIT_INTERRUPTED = 130  # by Ctrl-C, as a shell counts it


def run_sweep(plan: Plan, named: bool, command: Command | None) -> int:
    """Do what is left to do of a sweep, and collect it. Returns the exit code.

    Args:
        named: whether the user chose the folder; else another is taken where it is another sweep's.
        command: what to do again when the sweep is resumed without knobs; None for what is in its manifest already.

    Raises:
        ConfigError: before anything starts.
    """
    settings = plan.settings
    check_launcher(settings.launcher, [run.config for run in plan.runs if run.config is not None])
    folder = _sweep_folder(settings, named)
    try:
        with begin_launch(folder, _launch_name()) as launch:
            manifest = merge_manifest(folder, command, map(_manifest_run, plan.runs))
            runs = _with_folders(plan.runs, manifest, folder)
            done, todo = [], []
            for run in runs:
                if record := settled(run):
                    done.append((run, record))
                else:
                    todo.append(run)
            _say_what_is_left(folder, runs, todo, plan)
            with _observed(settings, runs, done, folder) as observers:
                later = launch_runs(settings.launcher, todo, launch, observers) if todo else None
        if later is None:
            # One process after the other, so that the table is that of the one which looked last.
            with one_at_a_time(folder / COLLECT_LOCK):
                _collect(folder)
    except KeyboardInterrupt:
        print(f"mxsweep: interrupted; {_how_to_go_on(folder)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except LaunchError as error:
        if any(run.status in ("done", "failed") for run in find_runs(folder)):
            _collect(folder)
        print(f"mxsweep: {error}; {_how_to_go_on(folder)}", file=sys.stderr)
        return EXIT_FAILED
    except ManifestError as error:
        raise ConfigError(f"hydra.sweep.dir: {error}") from None
    except OSError as error:
        where = f": {error.filename!r}" if error.filename else ""
        print(
            f"mxsweep: cannot write ({error.strerror or error}{where}); {_how_to_go_on(folder)}",
            file=sys.stderr,
        )
        return EXIT_FAILED
    if later is not None:
        print(f"mxsweep: {later}; how far they are: python -m mxsweep.collect --status {_quoted(folder)}")
        return 0
    others = sum(settled(run) is None and not _failed_or_missing(run) for run in runs)
    if others:
        print(f"mxsweep: {others} of {len(runs)} runs are still being done by another process", file=sys.stderr)
    return EXIT_FAILED if any(_failed_or_missing(run) for run in runs) else 0


def _failed_or_missing(run: SweepRun) -> bool:
    # Before the result is looked for: a process gives up its claim only after it wrote one.
    is_at_work = holder(run.folder) is not None
    record = settled(run)
    return not is_at_work if record is None else record["status"] != "done"


def run_single(plan: Plan) -> int:
    """Do a plan's only run. Returns the exit code.

    Raises:
        ConfigError: its folder holds a run.
    """
    (planned,) = plan.runs
    folder = plan.settings.run_dir
    _make("hydra.run.dir", folder)
    if (folder / RECORD_NAME).exists():
        raise ConfigError(f"hydra.run.dir: {str(folder)!r} already holds a run; give another folder")
    run = _sweep_run(planned, folder, planned.run_id)
    try:
        with _observed(plan.settings, [run], [], folder.parent) as observers:
            launch_runs(None, [run], Launch(_launch_name(), folder), observers)
    except KeyboardInterrupt:
        print("mxsweep: interrupted; the run left no result", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        print(f"mxsweep: {str(folder)!r} cannot be written ({error.strerror or error})", file=sys.stderr)
        return EXIT_FAILED
    record = settled(run)
    if record is None:
        print(f"mxsweep: {str(folder)!r} is being written by another process", file=sys.stderr)
        return EXIT_FAILED
    print(f"{folder}")
    return 0 if record["status"] == "done" else EXIT_FAILED


def _sweep_folder(settings: Settings, named: bool) -> Path:
    """The folder of a sweep, made if need be. Raises ConfigError if it is that of one that nobody asked to resume."""
    folder = _make("hydra.sweep.dir", settings.sweep_dir, new=not named)
    if not settings.resume and _holds_sweep(folder):
        if not _is_being_worked_on(folder):
            raise ConfigError(
                f"hydra.sweep.dir: {str(folder)!r} already holds a sweep; add resume=true to go on with it, or give "
                "another folder"
            )
        print(f"mxsweep: another process works on {folder}; this one helps", file=sys.stderr)
    return folder


def _make(field: str, folder: Path, new: bool = False) -> Path:
    """The folder, made if need be; one of another name if it must be `new` and is there already."""
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


def _holds_sweep(folder: Path) -> bool:
    try:
        return read_manifest(folder) is not None
    except ManifestError as error:
        raise ConfigError(f"hydra.sweep.dir: {error}") from None


def _is_being_worked_on(folder: Path) -> bool:
    return any(is_held(lock) for lock in (folder / LAUNCHES).glob(f"*/{LAUNCH_LOCK}"))


def _launch_name() -> str:
    """Of this process, and in its folder's name, so that one can tell whose files these are."""
    return f"{datetime.now().strftime('%Y%m%d_%H%M%S')}_{socket.gethostname()}_{os.getpid()}"


def _manifest_run(run: PlannedRun) -> ManifestRun:
    return ManifestRun(
        run.run_id, run.subdir, run.config_hash, list(run.overrides), [list(words) for words in run.same]
    )


def _with_folders(planned: Sequence[PlannedRun], manifest: Manifest, folder: Path) -> list[SweepRun]:
    """The runs where the manifest puts them: those that were planned before keep their folders."""
    places = {run.config_hash: run for run in manifest.runs}
    uses = Counter(run.folder for run in manifest.runs)
    runs = []
    for run in planned:
        place = places[run.config_hash]
        if uses[place.folder] > 1:
            raise ConfigError(
                f"hydra.sweep.subdir: {place.folder!r} is the folder of another run of this sweep; leave it out"
            )
        runs.append(_sweep_run(run, folder / place.folder, place.run_id))
    return runs


def _sweep_run(planned: PlannedRun, folder: Path, run_id: str) -> SweepRun:
    run = SweepRun(
        run_id=run_id,
        folder=folder,
        overrides=planned.overrides,
        config_hash=planned.config_hash,
        config=planned.config,
        error=planned.error,
        asked=planned.asked,
        yaml=planned.yaml,
    )
    record = settled(run)
    if record is None or record["status"] == "done":
        return run
    return replace(run, old_failure=(folder / RECORD_NAME).stat().st_mtime_ns)


def _say_what_is_left(folder: Path, runs: Sequence[SweepRun], todo: Sequence[SweepRun], plan: Plan) -> None:
    for run in plan.runs:
        for words in run.same:
            print(f"mxsweep: {' '.join(words)}: is the same run as {' '.join(run.overrides)}; it is run once")
    if plan.settings.resume:
        failed = sum(run.old_failure is not None for run in todo)
        again = f", {failed} failed and are run again" if failed else ""
        missing = f", {len(todo) - failed} are missing" if len(todo) > failed else ""
        what = "resuming" if any(run.folder.exists() for run in runs) else "nothing is done yet in"
        done = len(runs) - len(todo)
        print(f"mxsweep: {what} {folder}: {done} of {len(runs)} runs are done and are skipped{again}{missing}")


@contextmanager
def _observed(
    settings: Settings, runs: Sequence[SweepRun], done: Sequence[tuple[SweepRun, dict[str, Any]]], folder: Path
) -> Iterator[list[Observer]]:
    """Show what happens, and log it where the settings say."""
    with ExitStack() as stack:
        progress = Progress(len(runs), len(done), varying=_varying(runs))
        for run, record in done:
            progress.recall(run, record)
        stack.enter_context(progress)
        logging.basicConfig(level=logging.INFO, handlers=[progress.handler], force=True)
        hub, retries = logging.getLogger("huggingface_hub.utils._http"), _HubRetries()
        hub.addFilter(retries)
        stack.callback(hub.removeFilter, retries)
        observers: list[Observer] = [progress]
        if settings.logging.name == "wandb":
            from mxsweep.sweeps.wandb_log import WandbLog

            wandb = stack.enter_context(WandbLog(settings.logging, group=folder.name))
            for run, record in done:  # some perhaps while nobody looked
                wandb.recall(run, record)
            observers.append(wandb)
        yield observers


class _HubRetries(logging.Filter):
    """One line for the dozens, each twice, in which huggingface_hub says that it asks again."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith("Retrying in") and "thrown while requesting" not in message:
            return True
        if not self.said:
            self.said = True
            log.warning("the hub does not answer, and is asked again for a while: %s", " ".join(message.split())[:200])
        return False


def _varying(runs: Sequence[SweepRun]) -> set[str]:
    """The knobs that tell runs apart."""
    knobs = [dict(override.partition("=")[::2] for override in run.overrides) for run in runs]
    return {key for words in knobs for key in words if len({other.get(key) for other in knobs}) > 1}


def _how_to_go_on(folder: Path) -> str:
    runs = find_runs(folder)
    done = sum(run.status == "done" for run in runs)
    return (
        f"{done} of {len(runs)} runs are done and kept. To go on: "
        f"python -m mxsweep resume=true hydra.sweep.dir={_quoted(folder)}"
    )


def _quoted(folder: Path) -> str:
    text = str(_shorten(folder))
    return shlex.quote(f"./{text}" if text.startswith("~") else text)  # a name that is no user's home


def _shorten(folder: Path) -> Path:
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder


def _collect(folder: Path) -> None:
    from mxsweep.report.collection import collect

    result = collect([folder])
    print(f"\n{result.text}")
    if result.write_error:
        print(f"mxsweep: {result.write_error}", file=sys.stderr)
    else:
        figures = [path for path in result.files if path.suffix in (".png", ".svg")]
        others = ", ".join(path.name for path in result.files if path not in figures)
        print(f"\nWritten to {_shorten(folder)}: {others}" + (f" and {len(figures)} figures" if figures else ""))
