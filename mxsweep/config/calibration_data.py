"""Look at calibration data as far as planning does: where it comes from, what identifies it, what it must not be.

No torch, no tokenizer.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from mxsweep.config.calibration_files import digests, local_files, path_of
from mxsweep.config.checks import check_choice, file_digest
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.named_texts import check_text_file, has_rows
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.config.task_config import TaskConfig
from mxsweep.files.checkpoints import EMBEDDED
from mxsweep.terminal.errors import ConfigError

SAMPLING_VERSION = 1  # raised when the same config comes to other sequences
TASK_SPLITS = ("train", "validation")


def resolve_calibration(config: CalibrationConfig, model: ModelConfig) -> CalibrationConfig:
    """Return the config with "auto" resolved, checked as far as can be without reading or downloading texts.

    Raises:
        ConfigError: nothing to calibrate on, a file or a folder that is not there, a row without the field.
    """
    if config.source == "auto":
        if model.path != EMBEDDED:
            raise ConfigError(
                f"calibration: 'auto' has texts for the embedded model only, and model.path is {model.path!r}; "
                "give calibration=text calibration.path=FILE (allowed: text, task, hub, stories)"
            )
        config = dataclasses.replace(config, source="stories")
    if config.source == "text":
        check_text_file("calibration.path", config.path or "", config.field)
    elif config.source == "task":
        check_choice("calibration.split", config.split, TASK_SPLITS)
    elif config.source == "hub":
        path = path_of(config)
        if not path.exists() and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", config.path or ""):
            raise ConfigError(
                f"calibration.path: {config.path!r} does not exist; give the name of a data set on the Hugging Face "
                "hub (owner/name), a folder or a file of one"
            )
    return config


def calibration_identity(config: CalibrationConfig) -> dict[str, Any]:
    """Return what decides the sequences, given a tokenizer and a longest length: files by their content.

    Args:
        config: resolved.

    Raises:
        ConfigError: a file vanished or cannot be read.
    """
    shared = {
        "source": config.source,
        "samples": config.samples,
        "length": config.length,
        "seed": config.seed,
        "version": SAMPLING_VERSION,
    }
    if config.source == "stories":
        return shared
    if config.source == "text":
        rows = {"field": config.field} if has_rows(path_of(config)) else {}
        return shared | {"file": digests(config, [path_of(config)])[0]} | rows
    if config.source == "task":
        return shared | {"task": config.path, "split": config.split}
    if config.source == "hub":
        files = local_files(config)
        what: Any = {"name": config.path} if files is None else {"files": _named_digests(config, files)}
        return shared | what | {"configuration": config.name, "split": config.split, "field": config.field}
    raise ValueError(f"calibration.source={config.source!r} is not resolved")


def _named_digests(config: CalibrationConfig, files: list[Path]) -> dict[str, str]:
    """Return digests by the names in the data set's folder, or a single file's suffix: names decide what is read."""
    root = path_of(config)
    names = [file.relative_to(root).as_posix() if root.is_dir() else file.suffix for file in files]
    return dict(zip(names, digests(config, files), strict=True))


def refuse_same_file(config: CalibrationConfig, task: TaskConfig) -> None:
    """Raise ConfigError if a file that is calibrated on holds what a file of ``task.data`` does.

    Needs neither texts nor tasks, so that it can be asked while runs are planned.
    """
    sampled = calibration_identity(config)
    own = {sampled["file"]} if "file" in sampled else set(sampled.get("files", {}).values())
    evaluated = [(name, file, file_digest(file)) for name, file in task.data.items() if own]
    if own and task.own is not None:
        evaluated += [(name, *each) for name in task.own_names for each in task.own.digests(name).items()]
    for name, file, digest in evaluated:
        if digest in own:
            raise ConfigError(
                f"calibration.path: {config.path!r} holds the same as {file!r}, which {name} evaluates; allowed: texts "
                "that are not evaluated"
            )
