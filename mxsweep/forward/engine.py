"""Push passages of tokens through a causal language model: the one way in which logits are computed.

Legend: B passages of a batch, T tokens of its longest, C channels, V vocabulary; N rows, the positions whose logits are
asked for.

Evaluation, calibration losses, searches and diagnostics all read logits here, so that what makes a pass fast and keeps
it within memory stands once:

- Batches are filled by tokens, longest passages first (:mod:`mxsweep.forward.batches`).
- Logits are computed at the N rows only: in front of the output layer, a hook takes the hidden states of these out of
  all B T. The model's own forward pass does everything around it, such as scaling and capping logits.
- Whoever asks reduces the logits of a batch at once to what is wanted of them, within the same bounds of memory.
- Sequences share a batch only where the rotary embedding treats them as it does each alone.
- On a GPU one kernel each computes what norms, activations and rotary embeddings take several operations for, with the
  same bits (:mod:`mxsweep.model.elementwise`).
- A batch that does not fit in GPU memory is read again in smaller ones, and so is all that comes after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.forward.batches import Batch, BatchLimits, Passage, longest_first, next_batch, to_device
from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.elementwise import KnownParts, known_parts
from mxsweep.model.rope_lengths import RopeLengths
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")
Around = Callable[[Batch], AbstractContextManager[object]]


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return how many logits the model computes at a position."""
    return int(model.config.get_text_config().vocab_size)


class Engine:
    """Read passages in batches that fit in memory.

    Args:
        model: any Hugging Face decoder; its output layer, which may be replaced, is looked up at every pass.
        limits: of a batch.
        too_long: what to tell a user about a single passage that does not fit, with a place for its ``{tokens}``.
        warn: told, in a sentence each, that batches became smaller.
    """

    def __init__(
        self, model: PreTrainedModel, limits: BatchLimits, too_long: str, warn: Callable[[str], object] = log.info
    ) -> None:
        self._model, self._limits = model, replace(limits)
        self._too_long, self._warn = too_long, warn
        self._vocabulary = vocabulary_size(model)
        self._rope_lengths = RopeLengths(model)
        if self._rope_lengths:
            self._limits.alike = self._rope_lengths.frequencies

    @property
    def batch_tokens(self) -> int:
        """Return the tokens of a batch: as many as were asked for, or fewer since these did not fit in memory."""
        return self._limits.tokens

    def read(
        self,
        passages: Sequence[Passage],
        reduce: Callable[[Batch, Tensor], T],
        *,
        order: Sequence[int] | None = None,
        around: Around | None = None,
    ) -> Iterator[tuple[Batch, T]]:
        """Yield each batch with what ``reduce`` makes of its logits, as soon as it is launched.

        Args:
            reduce: given a batch and its logits: (N, V) at its positions, or (B, T, V) where it asks for all. Logits
                may be on another device than the model. Called again for smaller batches if memory runs out in it.
            order: the passages' numbers in the order in which they are read; None for longest first.
            around: a context for each attempt to read a batch, left by an exception where it does not fit.

        Raises:
            ConfigError: a single passage does not fit in memory, or the model's output layer cannot be reached.
        """

        def read_batch(batch: Batch) -> T:
            with around(batch) if around is not None else nullcontext():
                return reduce(batch, self._logits(batch))

        yield from self._each(passages, read_batch, order)

    def decode(self, passages: Sequence[Passage]) -> None:
        """Run the decoder alone over passages, for whoever listens to its modules.

        Raises:
            ConfigError: a single passage does not fit in memory.
        """

        def decode_batch(batch: Batch) -> None:
            (ids,) = to_device([batch.ids()], self._model.device)
            self._model.get_decoder()(input_ids=ids, use_cache=False)

        for _ in self._each(passages, decode_batch, None):
            pass

    def _each(
        self, passages: Sequence[Passage], run: Callable[[Batch], T], order: Sequence[int] | None
    ) -> Iterator[tuple[Batch, T]]:
        order = longest_first(passages) if order is None else order
        parts, start = known_parts(self._model), 0
        while start < len(order):
            batch = next_batch(passages, order, start, self._limits, self._vocabulary)
            result = self._attempt(run, batch, parts)
            if result is None:
                self._shrink(batch)
            else:
                start += len(batch.numbers)
                yield batch, result[0]

    def _attempt(self, run: Callable[[Batch], T], batch: Batch, parts: KnownParts) -> tuple[T] | None:
        """Return what ``run`` returns; None where it did not fit in memory.

        The error is dropped here, and with it the frames that hold the tensors of the failed pass.
        """
        try:
            self._rope_lengths.forget()
            # Not inference mode, whose tensors have no version by which MX layers recognize a shared input.
            with torch.no_grad(), parts.by_kernels():
                return (run(batch),)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _shrink(self, batch: Batch) -> None:
        count, longest = batch.shape
        if count == 1:
            raise ConfigError(self._too_long.format(tokens=longest))
        tokens = count * (longest + self._limits.unread)
        self._limits.tokens = tokens // 2
        torch.cuda.empty_cache()
        self._warn(
            f"a batch of {tokens:,} tokens did not fit in GPU memory; batches of at most {self.batch_tokens:,} "
            "from there on"
        )

    def _logits(self, batch: Batch) -> Tensor:
        ids, positions = batch.ids(), batch.positions()
        if positions is None:
            (tokens,) = to_device([ids], self._model.device)
            everywhere: Tensor = self._model(input_ids=tokens, use_cache=False).logits
            return everywhere
        tokens, rows = to_device([ids, positions], self._model.device)
        with logits_only_at(self._model, tokens.shape, rows):
            logits: Tensor = self._model(input_ids=tokens, use_cache=False).logits
        return logits[:, 0]


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
