"""Do one run: compose a record, train the model if it is to be, evaluate the config, write what came out."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mxsweep.config.run_config import RunConfig
from mxsweep.formats.exported_recipe import NO_EXPORT
from mxsweep.machine.importing import importing
from mxsweep.results.proven import PROVEN_BY, Proof
from mxsweep.results.record import write_record
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.runs.new_record import describe_error, new_record
from mxsweep.runs.run_result import RunResult
from mxsweep.terminal.interrupts import raise_lost_interrupt
from mxsweep.terminal.progress_callback import Progress, silent

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    folder: Path | str | None = None,
    *,
    overrides: Sequence[str] = (),
    stamp: str | None = None,
    run_id: str | None = None,
    progress: Progress | None = None,
    proof: Proof | None = None,
    keeps_exponents: bool = False,
) -> dict[str, Any]:
    """Evaluate one config, after a training if it says so, and return its record.

    Args:
        config: what to run; see :func:`mxsweep.compose`.
        folder: where ``result.json`` (last), ``samples.parquet``, ``lm_eval.json`` and, where they are asked for,
            ``diagnostics.parquet`` and ``noise.parquet`` go, and of a training ``model``, ``curves.parquet`` and
            ``roles.parquet``; None to write nothing. A training goes on from the newest checkpoint there.
        overrides: what the user set, for the record.
        stamp: the time in the run's id, ``%Y%m%d_%H%M%S``; None for now.
        run_id: the run's id; None for one made of the stamp and the config.
        progress: called now and then: while the model is trained, or something is worked out before it is quantized,
            with how much of it is done, how much there is and what it is called; while requests are scored, with how
            many are answered and how many there are.
        proof: of what evaluating comes to, which is taken over then; such a run has no times.
        keeps_exponents: whether the record is to hold the range of exponents that scales wanted, by which the run may
            prove others.

    Returns:
        The record. Its ``status`` is "done" or "failed"; a run that fails for any reason is recorded with its error.

    Raises:
        OSError: the record cannot be written.
        KeyboardInterrupt, SystemExit: as they came; such a run leaves no record, and the model as it was.
    """
    folder = None if folder is None else Path(folder)
    if run_id is None:
        run_id = config.run_id(stamp or datetime.now().strftime("%Y%m%d_%H%M%S"))
    record = new_record(run_id, config.as_dict(), overrides, config.config_hash, config.identity)
    result = None
    started = time.perf_counter()
    try:
        with importing():
            refuse_unavailable_backend(config)
            import_evaluation()
        result = _result(config, folder, progress or silent, overrides, proof, keeps_exponents)
        record["environment"] |= result.device
        record |= result.entries | {"status": "done"}
    except Exception as error:
        raise_lost_interrupt()  # of which a module that was being imported has made this error
        # Whatever stops one run is that run's result: it must neither be lost nor stop a sweep.
        record["error"] = describe_error(error)
    if PROVEN_BY not in record:
        record["timing"]["total_s"] = time.perf_counter() - started
    if folder is not None:
        if result is not None:
            record["warnings"] += result.files.write(folder)
        if record["status"] == "done" and not config.is_baseline and config.further["export"] != NO_EXPORT:
            _export(config, record, folder)
        write_record(folder, record)
        if config.trains and record["status"] == "done":
            from mxsweep.runs.trained_run import remove_checkpoints

            remove_checkpoints(folder)
    return record


def import_evaluation() -> None:
    """Import what evaluates a config, unless it is there: torch, transformers and lm-eval, which take seconds."""
    with importing():
        import mxsweep.runs.evaluate_config  # noqa: F401


def _export(config: RunConfig, record: dict[str, Any], folder: Path) -> None:
    """Write the run's model as a packed checkpoint beside the record; that and the log say how it went.

    No metric hangs on it.
    """
    try:
        # Imported here: safetensors, and what a target needs, are of no use to other runs.
        from mxsweep.runs.export_run import EXPORT_FOLDER, export_run

        out = folder / EXPORT_FOLDER
        shutil.rmtree(out, ignore_errors=True)  # of an attempt that left no record
        manifest = export_run(config, record, folder, config.further["export"], out).manifest
        record["export"] = {name: manifest[name] for name in ("target", "bytes", "verified", "seconds")}
        log.info("Exported the model for %s to %s", manifest["target"], out)
    except Exception as error:
        raise_lost_interrupt()
        # The run is done; that its model has no place in a checkpoint, or no room on the disk, takes nothing from it.
        record["export"] = {"error": describe_error(error)}
        warning = f"export: the model was not written: {error}".replace("written: export: ", "written: ")
        record["warnings"].append(warning)
        log.warning("%s", warning)


def _result(
    config: RunConfig,
    folder: Path | None,
    progress: Progress,
    overrides: Sequence[str],
    proof: Proof | None,
    keeps_exponents: bool,
) -> RunResult:
    """Do what a config says."""
    if config.trains:
        from mxsweep.runs.trained_run import train_and_evaluate

        return train_and_evaluate(config, folder, progress, overrides)
    if proof is not None:
        from mxsweep.runs.evaluate_config import evaluate_proven

        return evaluate_proven(config, progress, overrides, proof)
    if keeps_exponents:
        from mxsweep.runs.evaluate_config import evaluate_proving

        return evaluate_proving(config, progress, overrides)
    from mxsweep.runs.evaluate_config import evaluate_config

    return evaluate_config(config, progress, overrides)
