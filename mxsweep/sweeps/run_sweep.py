"""Do a planned sweep, or a planned run: its folder, the runs that are left to do, and what came out."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mxsweep.config.sweep_knobs import PROVEN
from mxsweep.config.sweep_settings import Slurm
from mxsweep.files.atomic import remove_unfinished
from mxsweep.files.locks import CLAIM_NAME, holder, one_at_a_time
from mxsweep.files.regular import why_not_written
from mxsweep.results.manifest import Command, Manifest, ManifestError, ManifestRun, merge_manifest
from mxsweep.results.record import LOG_NAME, RECORD_NAME, find_runs
from mxsweep.sweeps.alike import provers_first, with_provers
from mxsweep.sweeps.execute import SweepRun, settled_record
from mxsweep.sweeps.given_again import remember_typed
from mxsweep.sweeps.launch import Launch, LaunchError, begin_launch
from mxsweep.sweeps.launchers import check_launcher, launch_runs
from mxsweep.sweeps.observers import observe_sweep
from mxsweep.sweeps.plan import Plan, PlannedRun
from mxsweep.sweeps.sweep_folder import how_to_go_on, make_writable, open_sweep_folder, quote_folder, shorten_folder
from mxsweep.terminal.command import EXIT_FAILED, EXIT_INTERRUPTED
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.escapes import printable

log = logging.getLogger("mxsweep")


class ReportError(OSError):
    """Say that files of a sweep's report could not be written."""


COLLECT_LOCK = ".collect.lock"


def run_sweep(plan: Plan, named: bool, command: Command | None) -> int:
    """Do what is left to do of a sweep, and collect it; return the exit code.

    Args:
        named: whether the user chose the folder; else another is taken where it is another sweep's.
        command: what to do again when the sweep is resumed without knobs; None for what is in its manifest already.

    Raises:
        ConfigError: before anything starts.
    """
    folder = open_sweep(plan, named)
    try:
        runs, later = do_sweep(plan, folder, command)
    except KeyboardInterrupt:
        print(f"mxsweep: interrupted; {how_to_go_on(folder)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except LaunchError as error:
        if any(run.status in ("done", "failed") for run in find_runs(folder)):
            _collect(folder)
        print(f"mxsweep: {error}; {how_to_go_on(folder)}", file=sys.stderr)
        return EXIT_FAILED
    except ReportError:  # which is said, and the runs are done
        return EXIT_FAILED
    except ManifestError as error:
        raise ConfigError(f"hydra.sweep.dir: {error}") from None
    except OSError as error:
        where = f": {error.filename!r}" if error.filename else ""
        print(f"mxsweep: cannot write ({error.strerror or error}{where}); {how_to_go_on(folder)}", file=sys.stderr)
        return EXIT_FAILED
    if later is not None:
        print(f"mxsweep: {later}; how far they are: python -m mxsweep.collect --status {quote_folder(folder)}")
        return 0
    others = sum(settled_record(run) is None and not _is_failed_or_missing(run) for run in runs)
    if others:
        print(f"mxsweep: {others} of {len(runs)} runs are still being done by another process", file=sys.stderr)
    return EXIT_FAILED if any(map(_is_failed_or_missing, runs)) else 0


def open_sweep(plan: Plan, named: bool) -> Path:
    """Return the folder of a sweep that can be done here, made if need be. Raises ConfigError before anything starts.

    Args:
        named: whether the user chose the folder; else another is taken where it is another sweep's.
    """
    check_launcher(plan.settings.launcher, [run.config for run in plan.runs if run.config is not None])
    return open_sweep_folder(plan.settings, named)


def do_sweep(plan: Plan, folder: Path, command: Command | None) -> tuple[list[SweepRun], str | None]:
    """Do what is left to do of a sweep, and collect it; return all runs and, where others do them, how to follow.

    Raises:
        LaunchError: workers cannot be started, or end one after the other.
        ManifestError: its sweep.json is none.
        OSError: results, or parts of the report, cannot be written.
    """
    from mxsweep.report.figures.draw import drawing_ahead

    is_collected_here = not isinstance(plan.settings.launcher, Slurm)
    # From here on, since one core at least has nothing to do while the first run is imported.
    with drawing_ahead() if is_collected_here else nullcontext():
        runs, later = _launch(plan, folder, command)
        if later is None:
            # One process after the other, so that the table is that of the one which looked last.
            with one_at_a_time(folder / COLLECT_LOCK):
                remove_unfinished(folder, of_the_dead=True)
                if why := _collect(folder):
                    raise ReportError(why)
    return runs, later


def _launch(plan: Plan, folder: Path, command: Command | None) -> tuple[list[SweepRun], str | None]:
    """Write the manifest and do the runs that are left; return all runs and, where others do them, how to follow."""
    with begin_launch(folder, _launch_name()) as launch:
        manifest = merge_manifest(folder, command, map(_manifest_run, plan.runs))
        if command is not None:
            remember_typed(command)
        runs = _with_folders(plan.runs, manifest, folder)
        if plan.settings.reuse == PROVEN:
            runs = provers_first(with_provers(runs))
        done, todo = [], []
        for run in runs:
            if record := settled_record(run):
                done.append((run, record))
            else:
                todo.append(run)
        _say_what_is_left(folder, runs, todo, plan)
        todo = _without_blocked(todo, folder)
        with observe_sweep(plan.settings, runs, done, folder) as observers:
            return runs, launch_runs(plan.settings.launcher, todo, launch, observers) if todo else None


def _without_blocked(runs: Sequence[SweepRun], folder: Path) -> list[SweepRun]:
    """Return the runs whose folders can be written, and say of the others why they are not done."""
    top, free = folder.resolve(), []
    for run in runs:
        problem = why_not_written(run.folder, (RECORD_NAME, LOG_NAME, CLAIM_NAME))
        claim = run.folder / CLAIM_NAME
        if not run.folder.resolve().is_relative_to(top):
            problem = "a link leads out of the sweep's folder"
        elif problem is None and claim.exists() and not os.access(claim, os.R_OK | os.W_OK):
            problem = f"{CLAIM_NAME!r} in it is another user's"
        if problem is None:
            free.append(run)
        else:
            said = f"mxsweep: {run.folder} is left out: {problem}; remove it and resume the sweep"
            print(printable(said), file=sys.stderr)
    return free


def _is_failed_or_missing(run: SweepRun) -> bool:
    """Return whether a run failed, or has no result and nobody works on it."""
    # Before the result is looked for: a process gives up its claim only after it wrote one.
    is_at_work = holder(run.folder) is not None
    record = settled_record(run)
    return not is_at_work if record is None else record["status"] != "done"


def run_single(plan: Plan) -> int:
    """Do a plan's only run; return the exit code.

    Raises:
        ConfigError: its folder holds a run.
    """
    (planned,) = plan.runs
    folder = plan.settings.run_dir
    make_writable("hydra.run.dir", folder)
    if (folder / RECORD_NAME).exists():
        raise ConfigError(f"hydra.run.dir: {str(folder)!r} already holds a run; give another folder")
    run = _sweep_run(planned, folder, planned.run_id)
    if problem := why_not_written(folder, (LOG_NAME, CLAIM_NAME)):
        raise ConfigError(f"hydra.run.dir: {str(folder)!r} is not written to: {problem}; give another folder")
    try:
        with observe_sweep(plan.settings, [run], [], folder.parent) as observers:
            launch_runs(None, [run], Launch(_launch_name(), folder), observers)
    except KeyboardInterrupt:
        print(f"mxsweep: interrupted; the run left no result{_how_to_train_on(run)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        print(f"mxsweep: {str(folder)!r} cannot be written ({error.strerror or error})", file=sys.stderr)
        return EXIT_FAILED
    record = settled_record(run)
    if record is None:
        print(f"mxsweep: {str(folder)!r} is being written by another process", file=sys.stderr)
        return EXIT_FAILED
    if record["status"] == "done" and not (run.config is None or run.config.is_baseline or run.config.trains):
        from mxsweep.report.single_run import cost_text  # here: what compares takes a while to import

        print(cost_text(folder))
    print(f"{folder}")
    return 0 if record["status"] == "done" else EXIT_FAILED


def _how_to_train_on(run: SweepRun) -> str:
    """Return, of a run whose training left a checkpoint, how to go on from there."""
    if run.config is None or not run.config.trains:
        return ""
    from mxsweep.training.saved_state import saved_steps  # here, since it imports torch, as the training did

    if not saved_steps(run.folder):
        return ""
    return f", but a checkpoint: the same command with hydra.run.dir={quote_folder(run.folder)} goes on from there"


def _launch_name() -> str:
    """Return a name for a launch of this process, which tells whose the files in its folder are."""
    return f"{datetime.now().strftime('%Y%m%d_%H%M%S')}_{socket.gethostname()}_{os.getpid()}"


def _manifest_run(run: PlannedRun) -> ManifestRun:
    """Return a planned run as the manifest holds it."""
    return ManifestRun(
        run.run_id, run.subdir, run.config_hash, list(run.overrides), [list(words) for words in run.same]
    )


def _with_folders(planned: Sequence[PlannedRun], manifest: Manifest, folder: Path) -> list[SweepRun]:
    """Return the runs where the manifest puts them: those that were planned before keep their folders."""
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
    """Return a planned run in its folder, with the time of its failure if it failed before."""
    run = SweepRun(
        run_id=run_id,
        folder=folder,
        overrides=planned.overrides,
        config_hash=planned.config_hash,
        config=planned.config,
        error=planned.error,
        composed=planned.composed,
        yaml=planned.yaml,
    )
    record = settled_record(run)
    if record is None or record["status"] == "done":
        return run
    return replace(run, old_failure=(folder / RECORD_NAME).stat().st_mtime_ns)


def _say_what_is_left(folder: Path, runs: Sequence[SweepRun], todo: Sequence[SweepRun], plan: Plan) -> None:
    """Print which runs are the same as others and, when a sweep is resumed, how many are done, failed and missing."""
    for run in plan.runs:
        for words in run.same:
            said = f"mxsweep: {' '.join(words)}: is the same run as {' '.join(run.overrides)}; it is run once"
            print(printable(said))
    if plan.settings.resume:
        failed = sum(run.old_failure is not None for run in todo)
        again = f", {failed} failed and are run again" if failed else ""
        missing = f", {len(todo) - failed} are missing" if len(todo) > failed else ""
        what = "resuming" if any(run.folder.exists() for run in runs) else "nothing is done yet in"
        done = len(runs) - len(todo)
        print(f"mxsweep: {what} {folder}: {done} of {len(runs)} runs are done and are skipped{again}{missing}")


def _collect(folder: Path) -> str | None:
    """Write tables, figures and page of a sweep, and print its table; return why files are missing, which is said."""
    from mxsweep.report.collection import collect

    result = collect([folder])
    print(f"\n{result.text}")
    if result.write_error:
        print(f"mxsweep: {result.write_error}", file=sys.stderr)
    else:
        figures = [path for path in result.files if path.suffix in (".png", ".svg", ".pdf")]
        others = ", ".join(path.name for path in result.files if path not in figures)
        print(f"\nWritten to {shorten_folder(folder)}: {others}" + (f" and {len(figures)} figures" if figures else ""))
    return result.write_error
