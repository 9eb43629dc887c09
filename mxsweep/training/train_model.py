"""Train the model of a run's config, and leave it beside the run as a checkpoint that any other run can take."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.config.run_config import RunConfig
from mxsweep.files.atomic import write_folder_atomically
from mxsweep.model.load import resolve_device
from mxsweep.terminal.progress_callback import Progress
from mxsweep.training.initial_model import load_initial
from mxsweep.training.job import Trained, TrainingJob
from mxsweep.training.loop import Outcome, train
from mxsweep.training.team import Team
from mxsweep.training.together import train_together

MODEL_FOLDER = "model"


def train_model(config: RunConfig, folder: Path, progress: Progress) -> Trained:
    """Train a model, or go on where it was stopped; leave the model and its tokenizer in ``folder``/model.

    Of a training that diverged no model is left.

    Args:
        folder: of the run; states of an unfinished training are in ``folder``/checkpoints.
        progress: hears of the steps, in the phase "training".

    Raises:
        ConfigError: what a user can mend; and whatever else may go wrong.
    """
    job = job_of(config)
    return train_alone(job, folder, progress) if job.train.processes == 1 else train_shared(job, folder, progress)


def job_of(config: RunConfig) -> TrainingJob:
    """Return what training reads of a config."""
    return TrainingJob(
        train=config.train,
        corpus=config.corpus,
        init=config.init,
        model=config.model,
        recipe=config.training_recipe,
        seed=config.seed,
        identity=config.config_hash,
    )


def train_alone(job: TrainingJob, folder: Path, progress: Progress) -> Trained:
    """Train in this process."""
    return _left(train(job, folder, Team(torch.device(resolve_device(job.model.device))), progress), folder)


def train_shared(job: TrainingJob, folder: Path, progress: Progress) -> Trained:
    """Train in several processes, which share the model or its data. Raises as :func:`train_model`."""
    found = train_together(job, folder, progress)
    outcome = Outcome(load_initial(job), **found)
    outcome.initial.model.load_state_dict(outcome.weights)
    return _left(outcome, folder)


def _left(outcome: Outcome, folder: Path) -> Trained:
    """Return what came of a training, its model saved unless it diverged."""
    model, tokenizer = outcome.initial.model.eval(), outcome.initial.tokenizer
    if outcome.summary["diverged_at"] is None:
        save_model(folder / MODEL_FOLDER, model, tokenizer)
    parts = (outcome.curve, outcome.roles, outcome.validation, outcome.summary)
    return Trained(model, tokenizer, *parts, outcome.warnings)


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model with its tokenizer, whole or not at all. Raises OSError."""

    def write(unfinished: Path) -> None:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)

    write_folder_atomically(folder, write)
    for unfinished in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
