"""Know how many examples and tokens the pass has that a model is running, so that what is random can be by example.

Legend: B examples of a batch, T tokens of its longest, C channels, K experts of a token; N rows of an output layer.

Stochastic rounding draws by an element's place within its example: then a result does not depend on what else is in
the batch. Most layers read (B, T, C), where the places are plain. Some models flatten what their MLPs, shared experts
and experts read to (B T, C) or (B T, K, C), from which the examples can be told only by who knows B and T.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.model.decoder import decoder_blocks


class RunningPass:
    """Follow the passes of a model, of its decoder, and of decoder blocks that are called by themselves."""

    def __init__(self) -> None:
        self._shape: tuple[int, int] | None = None

    @contextmanager
    def followed(self, model: PreTrainedModel) -> Iterator[None]:
        """Follow ``model`` while the context lasts."""
        with ExitStack() as stack:
            for module in (model, model.get_decoder(), *decoder_blocks(model).values()):
                stack.callback(module.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            yield
            self._shape = None

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args[:1], *(kwargs.get(name) for name in ("input_ids", "inputs_embeds", "hidden_states"))]
        read = next((x for x in given if isinstance(x, Tensor)), None)
        if read is not None and read.dim() == (3 if read.is_floating_point() else 2):  # (B, T, C), or token ids (B, T)
            self._shape = (read.shape[0], read.shape[1])

    def by_example(self, x: Tensor) -> Tensor | None:
        """Return what a layer reads (..., C) as (B, ..., C); None where it cannot be told which example a row is of.

        The rows (N, 1, C) that an output layer reads are examples of their own.
        """
        batch, tokens = self._shape or (0, 0)
        if x.dim() > 2 and (x.shape[0] == batch or (x.dim() == 3 and x.shape[1] == 1)):
            return x
        if x.dim() > 2 and x.shape[0] == 1:
            x = x[0]  # (1, B T, C)
        if self._shape is not None and x.shape[0] == batch * tokens:
            return x.unflatten(0, (batch, tokens))
        return None
