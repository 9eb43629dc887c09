"""Hold what every remedy of a run works with, and collect what each leaves: for the model, the record, the disk."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from mxsweep.calibrate.artefacts import Artefact, Cost, tensors_digest
from mxsweep.calibrate.kept_transforms import as_tensors
from mxsweep.calibrate.texts import Calibration
from mxsweep.config.run_config import RunConfig
from mxsweep.config.run_identity import REMEDIES_VERSION
from mxsweep.formats import NUMERICS_VERSION, numerics_versions
from mxsweep.formats.recipe import Recipe
from mxsweep.model.attention_interface import implementation_of
from mxsweep.model.prepared import Prepared
from mxsweep.terminal.logged_warnings import LoggedWarnings
from mxsweep.terminal.progress_callback import Progress, in_phase

log = logging.getLogger(__name__)

# Of what is kept on disk: raised whenever names in it, or answers of some models, change. No run's hash has it: there
# the version of the remedies stands, which changes where the answers of all models do.
ARTEFACTS_VERSION = 3


@dataclass
class Preparation:
    """Hold what was worked out for a run before its model is quantized.

    Attributes:
        recipe: the run's, with what was searched for.
        prepared: what goes into the model with it.
        account: what was done and found, for the record.
        files: texts for the run's folder, by their paths in it.
        warnings: what a reader of the results should know, a sentence or more each.
    """

    recipe: Recipe
    prepared: Prepared = field(default_factory=Prepared)
    account: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    warnings: LoggedWarnings = field(default_factory=lambda: LoggedWarnings(log))


class Workbench:
    """Give remedies their model, calibration data and artefacts; each remedy finds in ``result`` what came before it.

    Args:
        model: unquantized, as it is before and after each remedy.
        config: the run's.

    Attributes:
        result: what was worked out so far.
    """

    def __init__(self, model: PreTrainedModel, config: RunConfig, progress: Progress) -> None:
        self.model, self.config = model, config
        self.result = Preparation(config.recipe)
        self._progress = progress
        self._calibration: Calibration | None = None
        self._warned_of: set[str] = set()
        self._key: dict[str, Any] = {
            "model": config.model.identity(),
            "attention": implementation_of(model.config.get_text_config()),
            "device": model.device.type,
            "residual": config.rotation.residual,
            "versions": [REMEDIES_VERSION, NUMERICS_VERSION, ARTEFACTS_VERSION],
        }

    def use_calibration(self, calibration: Calibration) -> None:
        """Have the remedies that follow calibrate on these sequences."""
        self._calibration = calibration
        self._key["calibration"] = calibration.identity
        self.result.account["calibration"] = calibration.description
        if calibration.shortage:
            self.result.warnings.append(calibration.shortage)  # logged when the texts were read
        log.info("Calibration: %s", calibration.description)

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """Return the calibration sequences, token ids (T,) each."""
        assert self._calibration is not None
        return self._calibration.sequences

    def artefact(self, kind: str, recipe: Recipe | None, **settings: Any) -> Artefact:
        """Return the artefact that depends on these, the model and the calibration.

        With a recipe it depends on the matrices of inputs, too, by their values: worked out again, elsewhere, they may
        be others that are as good (numerics/wush.py), and what was made in the basis of the first is wrong in theirs.

        Args:
            recipe: None where nothing of it matters.
            settings: plain data that the recipe does not tell.
        """
        versions = [] if recipe is None else numerics_versions(recipe.formats())[1:]
        if recipe is not None and not versions:
            recipe = dataclasses.replace(recipe, seed=0)  # nothing draws from it
        if versions:
            settings["stochastic"] = versions
        if recipe is not None and self.result.prepared.input_transforms:
            settings["input_transforms"] = tensors_digest(as_tensors(self.result.prepared.input_transforms))
        key = self._key | {"kind": kind, "recipe": repr(recipe), **settings}
        return Artefact(key, self._peak_gpu_bytes, self._warned_of)

    def phase(self, name: str) -> Progress:
        """Return the callback for the progress of one remedy."""
        return in_phase(self._progress, name)

    @contextmanager
    def accounted(self, name: str, artefacts: Sequence[Artefact]) -> Iterator[dict[str, Any]]:
        """Account for the work in the context under ``name``: what is put into the mapping, its time and memory.

        What of it was kept from before is accounted for by what it cost then: ``kept_seconds``, and the memory if that
        was more. Waiting for another process is none of it.

        Args:
            artefacts: of the work; more may be added in the context.
        """
        account: dict[str, Any] = {}
        if self._is_on_gpu:
            torch.cuda.reset_peak_memory_stats(self.model.device)
        began, waited = time.perf_counter(), sum(artefact.waited for artefact in artefacts)
        yield account
        waited = sum(artefact.waited for artefact in artefacts) - waited
        account["seconds"] = time.perf_counter() - began - waited
        kept = reduce(Cost.and_then, (artefact.kept for artefact in artefacts), Cost())
        if kept.seconds:
            account["kept_seconds"] = kept.seconds
        if self._is_on_gpu:
            account["peak_gpu_bytes"] = max(self._peak_gpu_bytes(), kept.peak_gpu_bytes)
            torch.cuda.reset_peak_memory_stats(self.model.device)  # the run's own peak is without it
        self.result.account[name] = account

    @property
    def _is_on_gpu(self) -> bool:
        return self.model.device.type == "cuda"

    def _peak_gpu_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.model.device) if self._is_on_gpu else 0
