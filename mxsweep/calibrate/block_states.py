"""Hold hidden states in front of a decoder block: what a model is walked through with, block by block, within memory.

Each batch of calibration sequences waits in front of a block with whatever else the model calls the block with, as
rotary embeddings and masks. A batch that does not fit in GPU memory becomes two, and the states in front of the block
are read anew. Where a model does more between two blocks than hand on what the first answered, or goes through its
blocks several times, they are read anew in front of each block. What a pass leaves in rotary embeddings that depend on
length is forgotten before the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.rope_lengths import RopeLengths
from mxsweep.terminal.errors import ConfigError

T = TypeVar("T")


class BlockStates:
    """Hold the hidden states of each batch in front of a block, and what else the block is called with.

    The whole model computes the states when work on them begins, and again after batches were halved, or for each block
    where the blocks are no chain.

    Args:
        index: the number of the block to begin with; blocks before it are as they will be.
        batches: ids (B, T) without padding.
    """

    def __init__(
        self, model: PreTrainedModel, blocks: Sequence[nn.Module], index: int, batches: Sequence[Tensor]
    ) -> None:
        self._model, self._blocks, self._index, self._batches = model, blocks, index, list(batches)
        self._parts = list(range(len(batches)))  # of which batch, as given, each is the whole or a part
        self._calls: list[list[Any]] = []
        self._called_by: list[int] = []  # the batch, as given, of each call of the block
        self._states: list[Tensor] | None = None
        self._is_chain = True
        self._rope_lengths = RopeLengths(model)

    @property
    def count(self) -> int:
        """Return how many calls of the block there are; a batch calls it once, or more often."""
        assert self._states is not None
        return len(self._states)

    def calls_of(self, batch: int) -> list[int]:
        """Return the numbers of the calls with the sequences of a batch, by its number among those given."""
        return [number for number, of in enumerate(self._called_by) if of == batch]

    def run(self, number: int) -> Tensor:
        """Return the block's output in a call; called within :meth:`within_memory`."""
        assert self._states is not None
        args, kwargs = self._calls[self._index][number]
        self._rope_lengths.forget()  # of embeddings within blocks; what others gave is among the arguments
        output = self._blocks[self._index](self._states[number], *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def advance(self) -> None:
        """Go on to the next block."""
        self._states = [self.run(number) for number in range(self.count)] if self._is_chain else None
        self._index += 1

    def within_memory(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; where GPU memory runs out, do it again with batches of half the size.

        Raises:
            ConfigError: memory runs out with one sequence in each batch.
        """
        while True:
            try:
                if self._states is None:  # read here, before ``work`` listens to any layer
                    self._states = self._read()
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Here, where the error is gone, and with it the frames that hold the tensors of the failed pass.
            self._halve()

    def _halve(self) -> None:
        if max(len(batch) for batch in self._batches) == 1:
            sequences, longest = len(self._batches), max(batch.shape[1] for batch in self._batches)
            raise ConfigError(
                f"calibration.samples: the states of {sequences:,} sequences of up to {longest:,} tokens, and a "
                "decoder block's work on one of them, do not fit in GPU memory; allowed: fewer of them, a smaller "
                "calibration.length, or another ptq.method"
            )
        halves = [batch.chunk(2) for batch in self._batches]
        self._parts = [part for part, of in zip(self._parts, halves, strict=True) for _ in of]
        self._batches = [half for of in halves for half in of]
        self._states, self._calls = None, []
        torch.cuda.empty_cache()

    def _read(self) -> list[Tensor]:
        """Return the states of each batch in front of the block, and note how each block from there on is called."""
        states: list[Tensor] = []
        self._calls = [[] for _ in self._blocks]
        self._called_by = []
        self._is_chain = True
        answered: list[Any] = [self._index - 1, None]  # the number of a block, and its answer

        def note(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                state = args[0] if args else kwargs["hidden_states"]
                if number == self._index:
                    states.append(state)
                if number >= self._index:
                    self._is_chain &= answered[0] == number - 1 and _is_same(state, answered[1])
                rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
                self._calls[number].append((args[1:], rest))

            return hook

        def note_answer(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], answer: Any) -> None:
                answered[:] = number, answer[0] if isinstance(answer, tuple) else answer

            return hook

        handles = []
        for number, block in enumerate(self._blocks):
            handles.append(block.register_forward_pre_hook(note(number), with_kwargs=True))
            handles.append(block.register_forward_hook(note_answer(number)))
        try:
            for part, batch in zip(self._parts, self._batches, strict=True):
                answered[:] = self._index - 1, None
                self._rope_lengths.forget()
                # The decoder alone: nobody asks for logits.
                self._model.get_decoder()(input_ids=batch.to(self._model.device), use_cache=False)
                self._called_by += [part] * (len(states) - len(self._called_by))
        finally:
            for handle in handles:
                handle.remove()
            self._rope_lengths.forget()
        return states


def _is_same(state: Tensor, answer: Tensor | None) -> bool:
    """Return whether a block is called with what the one before it answered; nothing is asked of the first block."""
    if answer is None or state is answer:
        return True
    return state.device == answer.device and torch.equal(state, answer)
