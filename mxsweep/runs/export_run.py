"""Export a finished run: rebuild its model as its record says, and write it as a packed checkpoint.

What was searched or solved for is found where it is kept (:mod:`mxsweep.calibrate.artefacts`), or worked out again,
which gives the same. Nothing is quantized that was quantized before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mxsweep.calibrate.prepare import prepare
from mxsweep.config import knobs
from mxsweep.config.composed_config import from_hydra
from mxsweep.config.knob_defaults import defaults
from mxsweep.config.run_config import RunConfig
from mxsweep.evaluate.quiet import no_progress_bars
from mxsweep.export.folder import write_manifest
from mxsweep.files.atomic import write_atomically, write_folder_atomically
from mxsweep.files.checkpoints import EXPORTED_GGUF
from mxsweep.files.gguf_header import SUFFIX
from mxsweep.formats.export_targets import TARGET_NAMES
from mxsweep.formats.exported_recipe import AUTO
from mxsweep.machine.versions import record_environment
from mxsweep.model.load import forget_models
from mxsweep.model.residual import rotated_residual
from mxsweep.results.record import HYDRA_FOLDER, RECORD_NAME, RecordError, read_record
from mxsweep.runs.against_baseline import against_baseline
from mxsweep.runs.evaluator import load_evaluator
from mxsweep.runs.export_card import card, rotates_inputs
from mxsweep.runs.export_place import refuse_without_place
from mxsweep.runs.packed_model import collect
from mxsweep.runs.trained_run import evaluated_checkpoint
from mxsweep.runs.verify_export import Reference, reference_of, verify_export
from mxsweep.runs.write_export import write_export
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

log = logging.getLogger(__name__)

EXPORT_FOLDER = "export"
_MISSING = object()


@dataclass(frozen=True)
class Export:
    """Hold what was written: where, what ``export.json`` holds, and what to say of it, a sentence or more each."""

    folder: Path
    manifest: dict[str, Any]
    notes: Sequence[str]


def read_finished(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return the config and the record of a finished run.

    Raises:
        ConfigError: there is none, it failed, or what it names is no longer what it was.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise ConfigError(f"export: {str(folder)!r} holds no finished run (no {RECORD_NAME}); give a run's folder")
    try:
        record = read_record(path)
        composed = OmegaConf.load(folder / HYDRA_FOLDER / "config.yaml")
    except (RecordError, OSError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"export: {str(folder)!r} cannot be read: {error}") from None
    if record["status"] != "done":
        message = (record.get("error") or {}).get("message", "no reason recorded")
        raise ConfigError(f"export: the run in {str(folder)!r} failed ({message}); allowed: one that is done")
    assert isinstance(composed, DictConfig)
    usual = defaults()
    for knob in (knob for group in ("", *knobs.groups()) for knob in knobs.leaves(group)):
        newer = OmegaConf.select(composed, knob.path, default=_MISSING) is _MISSING  # than the run
        if newer and knob.path in usual:
            OmegaConf.update(composed, knob.path, usual[knob.path], force_add=True)
    OmegaConf.update(composed, "hydra.overrides.task", record["overrides"], force_add=True)
    config = from_hydra(composed)
    if config.config_hash != record["config_hash"]:
        raise ConfigError(
            f"export: {str(folder)!r} was evaluated with what has changed since (its model, its data, or this version "
            "of mxsweep), so that its record is of another model; run it anew"
        )
    return config, record


def export_run(
    config: RunConfig,
    record: dict[str, Any],
    run_folder: Path,
    target: str,
    out: Path,
    *,
    verify: bool = True,
    progress: Progress = silent,
    say: Callable[[str], object] = log.info,
) -> Export:
    """Write the model of a run as a packed checkpoint.

    Args:
        config, record: the run's, done.
        run_folder: where it left what it trained, if it did.
        target: a name, or "auto" for the first that holds the model.
        out: the folder to write, which must not be there or be empty.
        say: called with what is found out as it goes, a sentence each.

    Raises:
        ConfigError: what a user can mend: no target holds the run, the folder is there, or a check failed.
        OSError: the files cannot be written.
    """
    began = time.perf_counter()
    _check_free(out)
    if target not in (AUTO, *TARGET_NAMES):
        raise ConfigError(f"export: {target!r} is not known; allowed: {', '.join((AUTO, *TARGET_NAMES))}")
    if config.trains:
        config = evaluated_checkpoint(config, run_folder)
    if config.recipe.is_baseline:
        raise ConfigError("export: nothing is quantized in this run; allowed: runs with a format")
    written: list[tuple[dict[str, Any], list[str]]] = []

    def write(folder: Path) -> None:
        manifest, notes, reference = _write(config, record, target, folder, progress, say)
        manifest["baseline"] = against_baseline(record, run_folder)
        manifest["seconds"] = {"write": time.perf_counter() - began}
        if verify:
            forget_models()
            verifying = time.perf_counter()
            manifest["verified"] = verify_export(config, record, folder, manifest["target"], reference, progress)
            manifest["seconds"]["verify"] = time.perf_counter() - verifying
        write_manifest(folder, manifest)
        write_atomically(folder / "README.md", card(manifest))
        written.append((manifest, notes))
        _check_free(out)  # again: it took minutes

    with no_progress_bars():
        write_folder_atomically(out, write, replace=False)  # after it was verified: what is there is right
    return Export(out, *written[0])


def _check_free(out: Path) -> None:
    """Raise ConfigError for what is no name of a new folder."""
    if out.suffix.lower() == SUFFIX:
        raise ConfigError(
            f"export: {str(out)!r} is a file's name; name a folder, which {EXPORTED_GGUF} is written into"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"export: {str(out)!r} is there already; name another folder")


def _write(
    config: RunConfig, record: dict[str, Any], target: str, out: Path, progress: Progress, say: Callable[[str], object]
) -> tuple[dict[str, Any], list[str], Reference]:
    evaluator = load_evaluator(config)
    model, tokenizer = evaluator.model, evaluator.lm.tokenizer
    with ExitStack() as stack, torch.no_grad():
        if config.rotation.residual:
            stack.enter_context(rotated_residual(model))
        if config.ptq.budget is None and not config.searches:  # else what is chosen decides
            refuse_without_place(model, config.recipe, target)  # before what may take hours is worked out again
        preparation = prepare(
            model, tokenizer, config, evaluator.tasks["tasks"], evaluator.lm.max_length, progress, record["overrides"]
        )
        for name, account in preparation.account.items():
            if isinstance(account, dict) and account.get("cached") is False:
                say(f"{name} was not kept, and is worked out again")
        packed = collect(model, preparation.recipe, preparation.prepared)
        reference = reference_of(model, preparation, packed)
        manifest = write_export(out, model, tokenizer, packed, target, _origin(record))
    notes = list(preparation.warnings)
    layers = manifest["weights"].values()
    if rotates_inputs(manifest):
        notes.append(
            "inputs are rotated as the model runs, which vLLM does by transform_config in config.json; transformers "
            "does not, and answers as another model would, without a word"
        )
    if any(layer["activation"] and layer["activation_as_served"] != layer["activation"] for layer in layers):
        notes.append(
            "weights are stored bit for bit, and inputs are quantized by whoever serves the checkpoint, by other rules "
            "than this run's (export.json has both): its metrics may differ. runtime= has a run predict them"
        )
    return manifest, notes, reference


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    environment = record_environment()
    return {
        "written_by": "mxsweep.export",
        "versions": environment.get("versions", environment),
        "run_id": record["run_id"],
        "config_hash": record["config_hash"],
        "config": record["config"],
        "metrics": record["metrics"],
        "examples": record["n_effective"],
    }
