"""Train a model: the loop from its first step, or from where it was stopped, to its last."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from mxsweep.forward.losses import mean_of_sums
from mxsweep.terminal.progress_callback import TRAINING, Progress
from mxsweep.training.corpus import Corpus, load_corpus
from mxsweep.training.curve import Curve
from mxsweep.training.initial_model import InitialModel, load_initial
from mxsweep.training.job import Rows, TrainingJob
from mxsweep.training.layers import training_layers
from mxsweep.training.optimizers import kinds_of, make_optimizers, set_learning_rate
from mxsweep.training.passes import Passes
from mxsweep.training.roles import RoleObserver
from mxsweep.training.saved_state import (
    newest_state,
    put_back,
    random_states,
    save_state,
    set_random_states,
    weights_and_moments,
)
from mxsweep.training.schedule import learning_rate
from mxsweep.training.step import Step
from mxsweep.training.team import Team

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Hold what came of a training: ``weights`` of the model by name, and the rows and the summary of a Trained."""

    initial: InitialModel
    weights: dict[str, torch.Tensor]
    curve: Rows
    roles: Rows
    validation: Rows
    summary: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def train(job: TrainingJob, folder: Path, team: Team, progress: Progress) -> Outcome:
    """Train as one process of a team; every process of it calls this.

    Args:
        folder: below which states are saved, and looked for.

    Raises:
        ConfigError: what a user can mend; and whatever else may go wrong.
    """
    train, total = job.train, job.train.total_steps
    _seed(job.seed)
    initial = load_initial(job)
    corpus = load_corpus(job, initial.tokenizer, progress)
    step = Step()
    with training_layers(initial.model, job.recipe, step):
        running = _Running.begin(initial, job, team, step)
        done, resumed_from = running.resume(folder)
        step.number = done  # whose numbers a validation draws where no step is left to take
        curve, roles, passes = running.curve, running.roles, running.passes
        progress(done, total, TRAINING)

        while done < total and curve.diverged_at is None:
            step.number = done + 1
            is_last = step.number == total
            if _is_due(train.measure_every, step.number) or is_last:
                curve.fetch()  # so that its time is that of this step alone
                step.observer = RoleObserver(arithmetic=job.recipe.arithmetic)

            rate = learning_rate(train, step.number)
            set_learning_rate(running.optimizers, rate)
            loss = passes.gradients(corpus.sequences(done * train.batch, train.batch))
            norm = team.whole(nn.utils.clip_grad_norm_(running.model.parameters(), train.clip or math.inf))
            for optimizer in running.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done += 1
            curve.add(done, rate, loss, norm)

            if step.observer is not None:
                roles += step.observer.rows(done)
                step.observer = None
            if _is_due(train.eval_every, done) and not is_last:
                curve.fetch()
                curve.add_validation(_mean_loss(-passes.log_likelihoods(corpus.heldout), train.length)[0])
                curve.start_clock()
            if _is_due(train.checkpoint_every, done) or is_last:
                curve.fetch()
                if curve.diverged_at is None:  # else there is nothing to go on from
                    running.save(folder, done)
                curve.start_clock()
            progress(done, total, TRAINING)

        curve.fetch()
        log_likelihoods = passes.log_likelihoods(corpus.heldout)
        weights = {name: team.whole(tensor.detach()) for name, tensor in initial.model.state_dict().items()}
    validation_loss, stderr = _mean_loss(-log_likelihoods, train.length)
    if not math.isfinite(validation_loss) and curve.diverged_at is None:  # of weights that the last step spoilt
        curve.diverged_at = done
    if curve.diverged_at is not None:
        running.warnings.append(f"the training diverged at step {curve.diverged_at} of {total} and ended there")
        validation_loss, stderr = math.nan, math.nan
    curve.add_validation(validation_loss)
    summary = running.summary() | {"resumed_from": resumed_from}
    summary |= {"validation_loss": validation_loss, "validation_stderr": stderr}
    validation = _validation_rows(corpus, log_likelihoods)
    return Outcome(initial, weights, curve.rows, roles, validation, summary, running.warnings)


@dataclass
class _Running:
    """Hold what changes while a model is trained, and is saved.

    Attributes:
        model: not as the team wrapped it: DDP puts a prefix before every name, and states are to have one set of names.
    """

    job: TrainingJob
    team: Team
    model: PreTrainedModel
    optimizers: Sequence[Optimizer]
    passes: Passes
    curve: Curve
    roles: Rows
    warnings: list[str]

    @classmethod
    def begin(cls, initial: InitialModel, job: TrainingJob, team: Team, step: Step) -> _Running:
        kinds = kinds_of(initial.model)
        wrapped = team.wrap(initial.model)
        wrapped.train()
        optimizers = make_optimizers(wrapped, kinds, job.train)
        if job.train.compile:
            wrapped.compile()
        curve = Curve([], job.train.batch * job.train.length, team.device)
        passes = Passes(wrapped, initial.model, job.train, team, step)
        return cls(job, team, initial.model, optimizers, passes, curve, [], list(initial.warnings))

    def resume(self, folder: Path) -> tuple[int, int | None]:
        """Take up the newest state that was saved; return the steps that are done, and None where there is none."""
        state, passed_over = newest_state(folder, self.job.identity)
        self.warnings += passed_over
        if state is None:
            return 0, None
        put_back(state, self.model, self.optimizers, self.team)
        set_random_states(state["random"])
        self.passes.micro_batch = min(self.passes.micro_batch, state["micro_batch"])
        self.curve = Curve(state["curve"], self.job.train.batch * self.job.train.length, self.team.device)
        self.roles += state["roles"]
        return state["step"], state["step"]

    def save(self, folder: Path, done: int) -> None:
        """Save the state after ``done`` steps; the first process of the team writes it."""
        state = weights_and_moments(self.model, self.optimizers, self.team)
        state |= {"step": done, "random": random_states(), "micro_batch": self.passes.micro_batch}
        state |= {"curve": self.curve.rows, "roles": self.roles}
        if self.team.leads:
            save_state(folder, self.job.identity, state, self.job.train.keep)

    def summary(self) -> dict[str, Any]:
        curve, seconds = self.curve, self.curve.seconds
        tokens = curve.rows[-1]["tokens"]
        return {
            "steps": curve.rows[-1]["step"],
            "tokens": tokens,
            # The median: steps that are measured, and those in which kernels are built, take many times as long.
            "tokens_per_s": statistics.median(row["tokens_per_s"] for row in curve.rows),
            "seconds": seconds,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "loss": curve.loss if curve.diverged_at is None else math.nan,
            "diverged_at": curve.diverged_at,
            "micro_batch": self.passes.micro_batch,
            "processes": self.team.size,
        }


def _seed(seed: int) -> None:
    """Seed every generator, as dropout draws from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _is_due(every: int | None, done: int) -> bool:
    return every is not None and done % every == 0


def _mean_loss(losses: np.ndarray, length: int) -> tuple[float, float]:
    """Return the mean over tokens of sequences' losses, and its standard error."""
    return mean_of_sums(losses, [length] * len(losses))


def _validation_rows(corpus: Corpus, log_likelihoods: np.ndarray) -> Rows:
    digests = [hashlib.sha256(sequence.astype("<i8").tobytes()).hexdigest() for sequence in corpus.heldout]
    return [
        {"doc_id": number, "doc_hash": digest, "loglikelihood": float(value), "tokens": corpus.length}
        for number, (digest, value) in enumerate(zip(digests, log_likelihoods, strict=True))
    ]
