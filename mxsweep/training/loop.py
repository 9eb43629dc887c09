"""Train a model: the loop from its first step, or from where it was stopped, to its last."""

from __future__ import annotations

import hashlib
import logging
import math
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
from mxsweep.forward.seeding import seed_generators
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
    seed_generators(job.seed)  # which dropout draws from
    initial = load_initial(job)
    corpus = load_corpus(job, initial.tokenizer, progress)
    step = Step()
    with training_layers(initial.model, job.recipe, step):
        running = _Running.begin(initial, job, team, step)
        resumed_from = running.resume(folder)
        total = job.train.total_steps
        if resumed_from is not None and team.leads:
            log.info("Training goes on from step %d of %d", resumed_from, total)
        progress(running.done, total, TRAINING)
        while running.done < total and running.curve.diverged_at is None:
            running.take_step(corpus)
            is_last = running.done == total
            if _is_due(job.train.eval_every, running.done) and not is_last:
                running.validate(corpus)
            if _is_due(job.train.checkpoint_every, running.done) or is_last:
                running.save(folder)
            progress(running.done, total, TRAINING)
        running.curve.fetch()
        log_likelihoods = running.passes.log_likelihoods(corpus.heldout)
        weights = {name: team.whole(tensor.detach()) for name, tensor in initial.model.state_dict().items()}
    loss, stderr = running.ended(*_mean_loss(-log_likelihoods, corpus.length))
    summary = running.summary() | {"resumed_from": resumed_from}
    summary |= {"validation_loss": loss, "validation_stderr": stderr}
    validation = _validation_rows(corpus, log_likelihoods)
    return Outcome(initial, weights, running.curve.rows, running.roles, validation, summary, running.warnings)


@dataclass
class _Running:
    """Hold what changes while a model is trained, and is saved.

    Attributes:
        model: not as the team wrapped it: DDP puts a prefix before every name, and states are to have one set of names.
        running: the model as the team wrapped it.
        step: what the layers read.
        done: steps that are done.
    """

    job: TrainingJob
    team: Team
    model: PreTrainedModel
    running: nn.Module
    step: Step
    optimizers: Sequence[Optimizer]
    passes: Passes
    curve: Curve
    roles: Rows
    warnings: list[str]
    done: int = 0

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
        return cls(job, team, initial.model, wrapped, step, optimizers, passes, curve, [], list(initial.warnings))

    def resume(self, folder: Path) -> int | None:
        """Take up the newest state that was saved; return the steps that were done then, None without a state."""
        state, passed_over = newest_state(folder, self.job.identity)
        self.warnings += passed_over
        if state is None:
            return None
        put_back(state, self.model, self.optimizers, self.team)
        set_random_states(state["random"])
        self.passes.micro_batch = min(self.passes.micro_batch, state["micro_batch"])
        self.curve = Curve(state["curve"], self.job.train.batch * self.job.train.length, self.team.device)
        self.roles += state["roles"]
        self.done = state["step"]
        self.step.number = self.done  # whose numbers a validation draws where no step is left to take
        return self.done

    def take_step(self, corpus: Corpus) -> None:
        """Take the step after those that are done, and measure what formats do in it where that is due."""
        train = self.job.train
        self.step.number = self.done + 1
        if _is_due(train.measure_every, self.step.number) or self.step.number == train.total_steps:
            self.curve.fetch()  # so that its time is that of this step alone
            self.step.observer = RoleObserver(arithmetic=self.job.recipe.arithmetic)

        rate = learning_rate(train, self.step.number)
        set_learning_rate(self.optimizers, rate)
        loss = self.passes.gradients(corpus.sequences(self.done * train.batch, train.batch))
        norm = self.team.whole(nn.utils.clip_grad_norm_(self.running.parameters(), train.clip or math.inf))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.curve.add(self.done, rate, loss, norm)

        if self.step.observer is not None:
            self.roles += self.step.observer.rows(self.done)
            self.step.observer = None

    def validate(self, corpus: Corpus) -> None:
        """Add the loss on the held-out sequences to the curve."""
        self.curve.fetch()
        self.curve.add_validation(_mean_loss(-self.passes.log_likelihoods(corpus.heldout), corpus.length)[0])
        self.curve.start_clock()

    def save(self, folder: Path) -> None:
        """Save the state, unless it is known to have diverged; the first process of the team writes it."""
        self.curve.fetch()
        if self.curve.diverged_at is None:  # else there is nothing to go on from
            state = weights_and_moments(self.model, self.optimizers, self.team)
            state |= {"step": self.done, "random": random_states(), "micro_batch": self.passes.micro_batch}
            state |= {"curve": self.curve.rows, "roles": self.roles}
            if self.team.leads:
                save_state(folder, self.job.identity, state, self.job.train.keep)
        self.curve.start_clock()

    def ended(self, loss: float, stderr: float) -> tuple[float, float]:
        """Add the last validation loss to the curve, and return both; NaN of a training that diverged, which warns."""
        if not math.isfinite(loss) and self.curve.diverged_at is None:  # of weights that the last step spoilt
            self.curve.diverged_at = self.done
        if self.curve.diverged_at is not None:
            steps = f"step {self.curve.diverged_at} of {self.job.train.total_steps}"
            self.warnings.append(f"the training diverged at {steps} and ended there")
            loss, stderr = math.nan, math.nan
        self.curve.add_validation(loss)
        return loss, stderr

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
