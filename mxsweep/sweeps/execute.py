"""Do the runs of a sweep one after the other, whoever gets to them first.

Any number of processes may work on one sweep: this one, workers beside it, others on machines that see the same folder.
They need no one to hand out work: each goes through the list of runs, claims one that has no result and no claim
(a lock in the run's folder), does it, and goes on. What is done is what a result.json says is done.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mxsweep.config.run_config import RunConfig
from mxsweep.files.atomic import remove_unfinished, write_atomically
from mxsweep.files.locks import CLAIM_NAME, Lock, this_process
from mxsweep.results.proven import Candidate, Proof, prove
from mxsweep.results.record import HYDRA_FOLDER, LOG_NAME, RECORD_NAME, RecordError, read_record, write_record
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.interrupts import raise_lost_interrupt

LOG_FORMAT = ("[%(asctime)s] %(message)s", "%H:%M:%S")  # on a terminal, and of a worker
NOTES_EVERY_S = 2.0  # how often a worker says in its claim how far it is


@dataclass(frozen=True)
class SweepRun:
    """Hold a planned run with its folder: everything that a worker needs to do the run.

    Attributes:
        config: None where it cannot be; then ``error`` says why, and ``composed`` holds what was composed.
        yaml: what Hydra composed, file name to content.
        old_failure: of a run that failed before this launch, when (st_mtime_ns of its result.json): that failure does
            not count, a later one does.
        candidate: the run as others may prove it; None where none is to.
        provers: the runs of the sweep that may prove it, should they be done when it begins.
        keeps_exponents: whether it is to keep what it takes to prove another run, of this launch or a later one.
    """

    run_id: str
    folder: Path
    overrides: tuple[str, ...]
    config_hash: str
    config: RunConfig | None
    error: str | None
    composed: dict[str, Any]
    yaml: dict[str, str]
    old_failure: int | None = None
    candidate: Candidate | None = None
    provers: tuple[Candidate, ...] = ()
    keeps_exponents: bool = False


class SweepObserver(Protocol):
    """Hear how a sweep goes, run by run."""

    def begin(self, run: SweepRun) -> None:
        """Hear that a run began."""

    def advance(self, run: SweepRun, done: int, total: int, phase: str = "") -> None:
        """Hear how many requests of a run are scored or, of a phase with a name, how much of that is done."""

    def end(self, run: SweepRun, record: dict[str, Any]) -> None:
        """Hear that a run is done or has failed."""

    def lost(self, run: SweepRun, why: str) -> None:
        """Hear that the process that did a run is gone, and left no result."""


def settled_record(run: SweepRun) -> dict[str, Any] | None:
    """Return the run's record if nothing is left to do: the run is done, or failed since the launch began."""
    path = run.folder / RECORD_NAME
    try:
        written = path.stat().st_mtime_ns
        record = read_record(path)
    except (FileNotFoundError, RecordError):
        return None
    if record.get("config_hash") != run.config_hash:
        return None
    return record if record["status"] == "done" or written != run.old_failure else None


def work(runs: Sequence[SweepRun], launch: str, retries: int = 0, observers: Sequence[SweepObserver] = ()) -> None:
    """Do all runs that are not settled and that no other process does, until there is none.

    Args:
        launch: a name of the launch that this process belongs to; a run's deaths are counted within one.
        retries: how often a run is begun again whose process died.

    Raises:
        OSError: a run's files cannot be written, which would be so for the next run, too.
    """
    pending = list(runs)
    found_work = True
    while pending and found_work:
        found_work, claimed_by_others = False, []
        for run in pending:
            raise_lost_interrupt()
            if (record := settled_record(run)) is None:
                claim = Lock.take(run.folder / CLAIM_NAME)
                if claim is None:
                    claimed_by_others.append(run)
                    continue
                try:
                    record = settled_record(run)  # by whoever had the claim before
                    if record is None:
                        found_work = True
                        record = _do_claimed(run, claim, launch, retries, observers)
                finally:
                    claim.release()
            for observer in observers:
                observer.end(run, record)
        # Once more: one of the others may have died since.
        pending = claimed_by_others


def _do_claimed(
    run: SweepRun, claim: Lock, launch: str, retries: int, observers: Sequence[SweepObserver]
) -> dict[str, Any]:
    """Do a run that this process has claimed. The death of the process, should it die, is counted before it could."""
    before = claim.read()
    deaths = before.get("deaths", 0) if before.get("launch") == launch else 0
    notes = {**this_process(), "launch": launch, "deaths": deaths + 1}
    if deaths > retries:
        times = "once" if deaths == 1 else f"{deaths} times"
        return _record_failure(
            run, RuntimeError(f"the process that did this run died {times} (killed, crashed, or out of host memory)")
        )
    claim.write(notes)
    for observer in observers:
        observer.begin(run)
    last_noted = time.monotonic()

    def advance(done: int, total: int, phase: str = "") -> None:
        nonlocal last_noted
        raise_lost_interrupt()
        for observer in observers:
            observer.advance(run, done, total, phase)
        if time.monotonic() - last_noted > NOTES_EVERY_S:
            last_noted = time.monotonic()
            scored = {"answered": done, "requests": total}
            _note(claim, notes | ({"phase": phase, "done": done, "total": total} if phase else scored))

    try:
        record = _perform(run, advance)
    except BaseException:
        _note(claim, notes | {"deaths": deaths})  # stopped, which is no death
        raise
    _note(claim, {})
    return record


def _note(claim: Lock, notes: dict[str, Any]) -> None:
    """Write into a claim how far its run is. That this cannot be written is no reason to lose the run."""
    with contextlib.suppress(OSError):
        claim.write(notes)


def _perform(run: SweepRun, advance: Callable[..., None]) -> dict[str, Any]:
    """Do a run in its folder; return its record."""
    for folder in (run.folder, run.folder / HYDRA_FOLDER):
        remove_unfinished(folder)  # of a process that was killed: nobody else is at this run
    for name, content in run.yaml.items():
        write_atomically(run.folder / HYDRA_FOLDER / name, content)
    with _logged_to(run.folder / LOG_NAME):
        if run.config is None:
            return _record_failure(run, ConfigError(run.error))
        from mxsweep.runs.run import run as do_run

        return do_run(
            run.config,
            run.folder,
            overrides=run.overrides,
            run_id=run.run_id,
            progress=advance,
            proof=_proof_of(run),
            keeps_exponents=run.keeps_exponents,
        )


def _proof_of(run: SweepRun) -> Proof | None:
    """Return the proof of what a run comes to by one that is done; None where there is none."""
    if run.candidate is None:
        return None
    for prover in run.provers:
        try:
            record = read_record(prover.folder / RECORD_NAME)
        except RecordError:  # not begun, or not done
            continue
        if (proof := prove(run.candidate, prover, record)) is not None:
            return proof
    return None


def _record_failure(run: SweepRun, error: Exception) -> dict[str, Any]:
    """Write and return the record of a run that failed without having begun."""
    from mxsweep.runs.new_record import describe_error, new_record

    config = run.config.as_dict() if run.config else run.composed
    record = new_record(run.run_id, config, run.overrides, run.config_hash)
    record["error"] = describe_error(error)
    write_record(run.folder, record)
    return record


class _RunLog(logging.FileHandler):
    """Write what is logged, as long as that can be done."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: a log that cannot be written is no reason to lose the run, or to fill a terminal."""


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Write what is logged also into the file ``path``."""
    handler = _RunLog(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
