"""Log-likelihoods of many requests, at the speed of the model.

Legend: B sequences of a batch, T tokens of its longest, C channels, V vocabulary; N rows, the positions whose next
token somebody asks for; M targets, the tokens asked for (several requests may ask for different tokens of one row).

Five things make it fast, none of which changes what is computed:

- Requests that read the same input, such as the one-token answers to a question, share one pass.
- A batch is a number of tokens, not of sequences, filled longest first, so that little of it is padding.
- Padding stands on the right and there is no attention mask: under causal attention no real token sees what comes
  after it, positions count from 0 as they should, and PyTorch can take its fastest (flash) kernel, which knows no mask.
- Logits are computed at the N rows only: in front of the output layer, a hook takes the hidden states of these out
  of all B T. The model's own forward pass does everything around it, such as scaling and capping logits.
- The device never waits: a batch is launched before the answers of the one before are fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

BATCH_LOGITS = 2**30  # N V of a batch: 2 GiB in bfloat16
SOFTMAX_LOGITS = 2**27  # of which this many at a time are float32: 0.5 GiB, and the same again for their exponentials


@dataclass(frozen=True)
class ScoringRequest:
    """A request: ``tokens`` (context, then continuation), the last ``targets`` of which are scored given the rest."""

    tokens: np.ndarray  # int32
    targets: int


@dataclass
class Input:
    """What the model reads for the requests in ``asked``, and at how many of its last tokens logits are needed."""

    tokens: np.ndarray
    rows: int = 0
    asked: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Layout:
    """A batch as numbers: ``ids`` (B, T); ``positions`` (N,) into the flattened B T; for each target its row, (M,)."""

    ids: np.ndarray
    positions: np.ndarray
    rows: np.ndarray
    targets: np.ndarray

    def to(self, device: torch.device) -> list[Tensor]:
        """The four as int64 tensors on ``device``, in one transfer that the host does not wait for."""
        parts = (self.ids, self.positions, self.rows, self.targets)
        packed = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        if device.type == "cuda":
            packed = packed.pin_memory()
        unpacked = packed.to(device, non_blocking=True).split([part.size for part in parts])
        return [tensor.view(part.shape) for tensor, part in zip(unpacked, parts, strict=True)]


class Scorer:
    """Scores requests with a causal language model.

    Args:
        model: any Hugging Face decoder; its output layer, which may be replaced, is looked up at every pass.
        batch_tokens: tokens of a batch, padding included; halved when one does not fit in GPU memory.
        max_length: tokens the model reads at most; of longer requests the beginning is cut off.
        warn: told, in a sentence each, what a reader of the results should know.
    """

    def __init__(
        self, model: PreTrainedModel, batch_tokens: int, max_length: int, warn: Callable[[str], None] = log.warning
    ) -> None:
        self.batch_tokens = batch_tokens
        self._model, self._max_length, self._warn = model, max_length, warn
        self._vocabulary = model.config.get_text_config().vocab_size

    def score(
        self, requests: Sequence[ScoringRequest], progress: Callable[[int], Any] = lambda _: None
    ) -> list[tuple[float, bool]]:
        """For each request its log-likelihood in nats, and whether each of its targets is the most likely token.

        Args:
            progress: called with the number of requests that each batch answered.

        Raises:
            ConfigError: a request that cannot be scored, or a single one that does not fit in memory.
        """
        self._check(requests)
        answers: dict[int, tuple[float, bool]] = {}
        for batch, fetch in _one_behind(self._launched(requests)):
            asked = [index for item in batch for index in item.asked]
            answers.update(zip(asked, _totals(fetch(), [requests[index].targets for index in asked]), strict=True))
            progress(len(asked))
        return [answers[index] for index in range(len(requests))]

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

    def _launched(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[list[Input], Callable[[], np.ndarray]]]:
        """Every batch after it was launched, with what fetches its answers."""
        inputs = unique_inputs(requests, self._max_length)
        start = 0
        while start < len(inputs):
            batch = self._next_batch(inputs, start)
            fetch = self._launch(_lay_out(batch, requests))
            if fetch is None:
                self._shrink(batch)
            else:
                start += len(batch)
                yield batch, fetch

    def _next_batch(self, inputs: list[Input], start: int) -> list[Input]:
        """As many inputs from ``start`` on, longest first, as both limits allow, but at least one."""
        most = max(1, self.batch_tokens // len(inputs[start].tokens))
        batch, rows = inputs[start : start + 1], inputs[start].rows
        for item in inputs[start + 1 : start + most]:
            rows += item.rows
            if rows * self._vocabulary > BATCH_LOGITS:
                break
            batch.append(item)
        return batch

    def _launch(self, layout: _Layout) -> Callable[[], np.ndarray] | None:
        """Ask the model; None if the batch did not fit in memory.

        The error is dropped here, and with it the frames that hold the tensors of the failed pass.
        """
        try:
            return _fetch_later(_score_batch(self._model, layout))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _shrink(self, batch: Sequence[Input]) -> None:
        tokens = len(batch) * len(batch[0].tokens)
        if len(batch) == 1:
            raise ConfigError(
                f"model.max_length: a single sequence of {tokens:,} tokens does not fit in GPU memory, whatever "
                f"batch_tokens is; give a model.max_length below {tokens:,}, or a GPU with more memory"
            )
        self.batch_tokens = tokens // 2
        torch.cuda.empty_cache()
        self._warn(
            f"a batch of {tokens:,} tokens did not fit in GPU memory; batches of at most {self.batch_tokens:,} "
            "from there on"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Also where a library that torch calls, or a kernel's launch, found no memory."""
    named = any(name in str(error) for name in ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY"))
    return isinstance(error, torch.OutOfMemoryError) or named


def unique_inputs(requests: Sequence[ScoringRequest], max_length: int) -> list[Input]:
    """What the model has to read, longest first. The last token of a request is only asked for, never read."""
    inputs: dict[bytes, Input] = {}
    for index, request in enumerate(requests):
        tokens = request.tokens[-(max_length + 1) : -1]
        found = inputs.setdefault(tokens.tobytes(), Input(tokens))
        found.rows = max(found.rows, request.targets)
        found.asked.append(index)
    return sorted(inputs.values(), key=lambda item: -len(item.tokens))


def _lay_out(batch: Sequence[Input], requests: Sequence[ScoringRequest]) -> _Layout:
    longest = len(batch[0].tokens)
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    positions: list[int] = []
    rows: list[int] = []
    for number, item in enumerate(batch):
        ids[number, : len(item.tokens)] = item.tokens
        end = number * longest + len(item.tokens)
        positions += range(end - item.rows, end)
        for index in item.asked:
            rows += range(len(positions) - requests[index].targets, len(positions))
    targets = [requests[index].tokens[-requests[index].targets :] for item in batch for index in item.asked]
    return _Layout(ids, np.array(positions), np.array(rows), np.concatenate(targets).astype(np.int64))


@torch.no_grad()  # and not inference mode, whose tensors have no version by which MX layers recognize a shared input
def _score_batch(model: PreTrainedModel, layout: _Layout) -> Tensor:
    """(2, M) float32: the targets' log-probabilities, and 1 where a target is the most likely token, else 0."""
    ids, positions, rows, targets = layout.to(model.device)
    with logits_only_at(model, ids.shape, positions):
        logits = model(input_ids=ids, use_cache=False).logits[:, 0]  # (N, V)
    rows, targets = rows.to(logits.device), targets.to(logits.device)
    best, most_likely, normalizer = _normalize(logits)
    log_probabilities = logits[rows, targets].float() - best[rows] - normalizer[rows]
    # The maximum of a row with a NaN is that NaN, wherever it stands: no token is the most likely one there.
    greedy = (most_likely[rows] == targets) & ~log_probabilities.isnan()
    return torch.stack([log_probabilities, greedy.float()])


def _normalize(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's largest logit, its token, and log(sum(exp(logits - largest))), (N,) each, in float32."""
    parts = []
    for part in logits.split(max(1, SOFTMAX_LOGITS // logits.shape[1])):
        values = part.float()
        best, most_likely = values.max(dim=-1)
        parts.append((best, most_likely, (values - best[:, None]).exp_().sum(dim=-1).log_()))
    best, most_likely, normalizer = (torch.cat(column) for column in zip(*parts, strict=True))
    return best, most_likely, normalizer


@contextmanager
def logits_only_at(model: PreTrainedModel, shape: torch.Size, positions: Tensor) -> Iterator[None]:
    """Give the output layer, of all hidden states (B, T, C), those at ``positions`` (N,): logits become (N, 1, V).

    Every row is an example of its own, so that stochastic rounding in an MX output layer, which counts elements
    within an example, does not depend on what else is in the batch.

    Raises:
        ConfigError: the model has no output layer that reads the hidden states of all its inputs.
    """
    reached = False

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal reached
        if not args or args[0].shape[:2] != shape:
            return None
        reached = True
        return args[0].flatten(0, 1)[positions.to(args[0].device)].unsqueeze(1), *args[1:]

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(gather) if head is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
    if not reached:
        raise ConfigError(
            f"model.path: {type(model).__name__} cannot be scored: its forward pass did not give the hidden states of "
            "its inputs to an output layer (get_output_embeddings), as a decoder's does"
        )


def _fetch_later(values: Tensor) -> Callable[[], np.ndarray]:
    """Start copying ``values`` to the host; what is returned waits for the copy, and for nothing launched later."""
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


def _one_behind(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each after its successor was made."""
    last = next(items, None)
    for item in items:
        yield last
        last = item
    if last is not None:
        yield last


def _totals(values: np.ndarray, counts: Sequence[int]) -> Iterator[tuple[float, bool]]:
    """Of (2, M) values, of which ``counts`` in turn belong to one request, the requests' sums and conjunctions."""
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(values[0].astype(np.float64), starts)
    greedy = np.logical_and.reduceat(values[1] > 0, starts)
    return zip(sums.tolist(), greedy.tolist(), strict=True)
