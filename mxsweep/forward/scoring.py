"""Score many requests for log-likelihoods, at the speed of the model.

Legend: N rows, the positions whose next token somebody asks for; M targets, the tokens asked for (several requests may
ask for different tokens of one row).

Two things make it fast besides the engine's (:mod:`mxsweep.forward.engine`), and neither changes what is computed:

- Requests that read the same input, such as the one-token answers to a question, share one pass.
- The device never waits: a batch is launched before the scores of the one before are fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.forward.batches import Batch, BatchLimits, Passage, to_device
from mxsweep.forward.engine import Engine
from mxsweep.forward.losses import score_targets
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH_LOGITS = 2**30  # N V of a batch: 2 GiB in bfloat16

TOO_LONG = (
    "model.max_length: a single sequence of {tokens:,} tokens does not fit in GPU memory, whatever batch_tokens is; "
    "give a model.max_length below {tokens:,}, or a GPU with more memory"
)


@dataclass(frozen=True)
class ScoringRequest:
    """Hold ``tokens`` (context, then continuation), the last ``targets`` of which are scored given the rest."""

    tokens: np.ndarray  # int32
    targets: int


@dataclass
class Input:
    """Hold what the model reads for the requests of these numbers; its last ``rows`` tokens need logits."""

    tokens: np.ndarray
    rows: int = 0
    requests: list[int] = field(default_factory=list)

    @property
    def passage(self) -> Passage:
        """Return what the engine reads."""
        return Passage(self.tokens, np.arange(len(self.tokens) - self.rows, len(self.tokens)))


class Scorer:
    """Score requests with a causal language model.

    Args:
        model: any Hugging Face decoder; its output layer, which may be replaced, is looked up at every pass.
        batch_tokens: tokens of a batch, padding included; halved when one does not fit in GPU memory.
        max_length: tokens the model reads at most; of longer requests the beginning is cut off.
        warn: told, in a sentence each, what a reader of the results should know.
    """

    def __init__(
        self, model: PreTrainedModel, batch_tokens: int, max_length: int, warn: Callable[[str], None] = log.warning
    ) -> None:
        self._model, self._max_length, self._warn = model, max_length, warn
        self._engine = Engine(model, BatchLimits(batch_tokens, BATCH_LOGITS), TOO_LONG, warn)

    @property
    def batch_tokens(self) -> int:
        """Return the tokens of a batch: as many as were asked for, or fewer since these did not fit in memory."""
        return self._engine.batch_tokens

    def score(
        self, requests: Sequence[ScoringRequest], on_scored: Callable[[int], object] = lambda _: None
    ) -> list[tuple[float, bool]]:
        """Return each request's log-likelihood in nats, and whether each of its targets is the most likely token.

        Args:
            on_scored: called with the number of requests that each batch scored.

        Raises:
            ConfigError: a request that cannot be scored, or a single one that does not fit in memory.
        """
        self._check(requests)
        inputs = unique_inputs(requests, self._max_length)

        def score_batch(batch: Batch, logits: Tensor) -> Callable[[], np.ndarray]:
            rows, targets = to_device(_targets([inputs[number] for number in batch.numbers], requests), logits.device)
            return _fetch_later(score_targets(logits, rows, targets))

        scores: dict[int, tuple[float, bool]] = {}
        for batch, fetch in _one_behind(self._engine.read([item.passage for item in inputs], score_batch)):
            numbers = [index for number in batch.numbers for index in inputs[number].requests]
            scores.update(zip(numbers, _totals(fetch(), [requests[index].targets for index in numbers]), strict=True))
            on_scored(len(numbers))
        return [scores[index] for index in range(len(requests))]

    def _check(self, requests: Sequence[ScoringRequest]) -> None:
        for request in requests:
            if not 0 < request.targets < len(request.tokens):
                raise ConfigError("task: for this tokenizer a request has no token to score, or none before it")
            if request.targets > self._max_length:
                raise ConfigError(
                    f"model.max_length: {self._max_length} is less than the {request.targets:,} tokens of an answer "
                    "that the task wants scored at once"
                )
        cut = sum(len(request.tokens) > self._max_length + 1 for request in requests)
        if cut:
            self._warn(
                f"{cut:,} of {len(requests):,} requests are longer than model.max_length ({self._max_length:,} tokens) "
                "and were scored without their beginning"
            )


def unique_inputs(requests: Sequence[ScoringRequest], max_length: int) -> list[Input]:
    """Return what the model has to read, longest first. A request's last token is only asked for, never read."""
    inputs: dict[bytes, Input] = {}
    for index, request in enumerate(requests):
        tokens = request.tokens[-(max_length + 1) : -1]
        shared = inputs.setdefault(tokens.tobytes(), Input(tokens))
        shared.rows = max(shared.rows, request.targets)
        shared.requests.append(index)
    return sorted(inputs.values(), key=lambda item: -len(item.tokens))


def _targets(inputs: Sequence[Input], requests: Sequence[ScoringRequest]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each target of a batch its row among the batch's N, and the target itself: int64 (M,) each."""
    rows: list[int] = []
    end = 0
    for item in inputs:
        end += item.rows
        for index in item.requests:
            rows += range(end - requests[index].targets, end)
    targets = [requests[index].tokens[-requests[index].targets :] for item in inputs for index in item.requests]
    return np.array(rows, dtype=np.int64), np.concatenate(targets).astype(np.int64)


def _fetch_later(values: Tensor) -> Callable[[], np.ndarray]:
    """Start copying ``values`` to the host; return what waits for the copy, and for nothing launched later."""
    if values.device.type != "cuda":
        return values.cpu().numpy
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(values.device))

    def fetch() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return fetch


def _one_behind(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, each after its successor was made."""
    for last in items:
        for item in items:
            yield last
            last = item
        yield last


def _totals(values: np.ndarray, counts: Sequence[int]) -> Iterator[tuple[float, bool]]:
    """Return each request's sum and conjunction, of values (2, M) of which ``counts`` in turn belong to one request."""
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(values[0].astype(np.float64), starts)
    greedy = np.logical_and.reduceat(values[1] > 0, starts)
    return zip(sums.tolist(), greedy.tolist(), strict=True)
