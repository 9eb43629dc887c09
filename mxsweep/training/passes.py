"""Take a batch of sequences through a model in micro-batches: gradients of the loss, or log-likelihoods.

Legend: B sequences of a batch, T tokens of a sequence, V vocabulary.

What is drawn for stochastic rounding depends on an example's number within the batch, and blocks lie within a sequence:
how a batch is split changes a result by the order of sums alone. So where GPU memory runs out, the step is taken anew
in micro-batches of half the size, which stay so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.config.train_config import TrainConfig
from mxsweep.forward.batches import batch_tokens_on
from mxsweep.forward.engine import vocabulary_size
from mxsweep.forward.losses import negative_log_likelihoods
from mxsweep.forward.sequence_loss import BATCH_LOGITS
from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.terminal.errors import ConfigError
from mxsweep.training.step import Step
from mxsweep.training.team import Team

log = logging.getLogger(__name__)


class Passes:
    """Take sequences through a model.

    Args:
        running: what is called: the model, compiled or wrapped.
        step: what the layers read; ``first_example`` is set before each micro-batch.

    Attributes:
        micro_batch: sequences at a time.
    """

    def __init__(self, running: nn.Module, model: PreTrainedModel, train: TrainConfig, team: Team, step: Step) -> None:
        self._running, self._team, self._step = running, team, step
        self._batch = train.batch // team.size
        self._dtype = None if train.dtype in ("float32", train.master_dtype) else getattr(torch, train.dtype)
        if train.micro_batch == "auto":
            tokens = min(batch_tokens_on(team.device), BATCH_LOGITS // vocabulary_size(model))
            self.micro_batch = _divisor(self._batch, tokens // train.length)
        else:
            self.micro_batch = min(self._batch, train.micro_batch)

    def gradients(self, sequences: np.ndarray) -> Tensor:
        """Add the gradients of the mean loss to those of the parameters; return that loss, nats a token, float32.

        Args:
            sequences: of the step, (B, T + 1), the same for every process, which takes its share of them.

        Raises:
            ConfigError: a single sequence does not fit in GPU memory, or processes train together and theirs do not.
        """
        while True:
            try:
                return self._gradients(sequences)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._refuse_to_shrink(error)
            # Outside of the handler, whose error holds on to tensors.
            self._running.zero_grad(set_to_none=True)
            if self._step.observer is not None:
                self._step.observer.forget()
            torch.cuda.empty_cache()
            self.micro_batch = _divisor(self._batch, self.micro_batch // 2)
            log.warning("train.micro_batch: GPU memory ran out; now %d sequences at a time", self.micro_batch)

    def _gradients(self, sequences: np.ndarray) -> Tensor:
        first = self._team.rank * self._batch
        predicted = sequences[:, 1:].size
        total = torch.zeros((), device=self._team.device)
        for start in range(0, self._batch, self.micro_batch):
            end = min(start + self.micro_batch, self._batch)
            self._step.first_example = first + start
            with self._team.accumulating(self._running, end == self._batch):
                logits, targets = self._read(sequences[first + start : first + end])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
                # Processes' gradients are averaged, and they are to be summed.
                (loss * (self._team.size / predicted)).backward()
            total += loss.detach()
        return self._team.summed(total) / predicted

    @torch.no_grad()
    def log_likelihoods(self, sequences: np.ndarray) -> np.ndarray:
        """Return each sequence's log-likelihood, given its first token, in nats: (B,) float64.

        The model computes as it does in training, but for inputs in tiles over tokens, which are in blocks along each
        token: a tile's scale would tell a token of those after it, which it is to predict. Where the model rounds
        stochastically in the forward product, a sequence is given the numbers that an example of its number draws in
        the step that was last taken.
        """
        share = -(-len(sequences) // self._team.size)
        padded = np.resize(np.arange(len(sequences)), share * self._team.size)
        mine = range(self._team.rank * share, (self._team.rank + 1) * share)
        with self._validating():
            sums = []
            for start in range(0, share, self.micro_batch):
                part = mine[start : start + self.micro_batch]
                self._step.first_example = part[0]
                logits, _ = self._read(sequences[padded[part]])
                for number, row in zip(padded[part], logits, strict=True):
                    sums.append(-negative_log_likelihoods(row, sequences[number][1:]).sum())
        values: np.ndarray = self._team.joined(torch.stack(sums)).cpu().numpy()
        return values[: len(sequences)]

    @contextmanager
    def _validating(self) -> Iterator[None]:
        was_training = self._running.training
        self._running.eval()
        self._step.validates = True
        try:
            yield
        finally:
            self._step.validates = False
            self._running.train(was_training)

    def _read(self, sequences: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the logits (B, T, V) of sequences and the tokens that follow (B, T)."""
        device = self._team.device
        tokens = torch.from_numpy(np.ascontiguousarray(sequences))
        tokens = tokens.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tokens.to(device)
        with self._autocast():
            outputs: Any = self._running(input_ids=tokens[:, :-1], use_cache=False)
        return outputs.logits, tokens[:, 1:]

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._dtype is None else torch.autocast(self._team.device.type, self._dtype)

    def _refuse_to_shrink(self, error: Exception) -> None:
        if self._team.size > 1 or self.micro_batch == 1:
            allowed = "allowed: fewer" if self.micro_batch > 1 else "allowed: a smaller train.length or model"
            raise ConfigError(
                f"train.micro_batch: {self.micro_batch} sequences at a time do not fit in GPU memory; {allowed}"
            ) from error


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most ``most``, at least 1."""
    return next(n for n in range(max(1, min(number, most)), 0, -1) if number % n == 0)
