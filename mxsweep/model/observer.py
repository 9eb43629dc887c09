"""Gather statistics of the inputs, keys and values that a quantized model quantizes, while it runs.

Legend: B sequences of a batch, T tokens of its longest, C channels, H heads, D head_dim; N tokens of the batch that
are measured. A batch is padded on the right, and what stands there must not enter any statistics.

Everything is gathered on the device and fetched once, at the end: the pass does not wait for a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

from mxsweep.model.operands import Place
from mxsweep.model.tensor_statistics import TensorStatistics
from mxsweep.numerics import BlockStatistics, MXFormat, PendingStatistics, fetch_statistics, measure_blocks


class Observer(Protocol):
    """Receive a tensor that was quantized.

    Args:
        kind: "activation", "key" or "value".
        module: the name of the module that reads it; of several, the first.
        x, y: the tensor before and after, (B, T, C), (B T, C), (B T, K, C) with a row for each of K experts, or
            (B, T, H, D); other shapes have no padding.
        fmt: what it became.
        tensor_amax: what its per-tensor scale was made from, float32; None for a token's own maximum.
    """

    def __call__(
        self, kind: str, module: str, x: Tensor, fmt: MXFormat, y: Tensor, tensor_amax: Tensor | None = None
    ) -> None: ...


class TensorObserver:
    """Measure what quantizing did to each tensor, as an :class:`Observer`.

    Args:
        arithmetic: the run's.
    """

    def __init__(self, arithmetic: str) -> None:
        self._arithmetic = arithmetic
        self._shape: tuple[int, int] = (0, 0)
        self._real: Tensor | None = None
        self._measured: list[tuple[str, str, MXFormat, int, PendingStatistics]] = []

    @contextmanager
    def batch(self, shape: tuple[int, int], real: Tensor) -> Iterator[None]:
        """Measure a batch of ``shape`` (B, T) that is read in the context, at the places ``real`` (N,) of its B T.

        What was measured is dropped if the context ends in an error: a batch that did not fit in memory is read again.
        """
        self._shape, self._real = shape, real
        before = len(self._measured)
        try:
            yield
        except BaseException:
            del self._measured[before:]
            raise

    def __call__(
        self, kind: str, module: str, x: Tensor, fmt: MXFormat, y: Tensor, tensor_amax: Tensor | None = None
    ) -> None:
        if tuple(x.shape[:2]) == self._shape:
            x, y = x.flatten(0, 1), y.flatten(0, 1)
        elif x.dim() > 2 and len(x) != math.prod(self._shape):
            # what an output layer reads: a row for each position whose logits are asked for
            x, y = x.flatten(0, -2), y.flatten(0, -2)
        if self._real is not None and len(x) == math.prod(self._shape):
            real = self._real.to(x.device)
            x, y = x.index_select(0, real), y.index_select(0, real)
        if kind == "activation":
            x, y = x.flatten(0, -2), y.flatten(0, -2)  # a token's row, or a row for each of its experts
        if not len(x):
            return
        measured = measure_blocks(
            x,
            fmt,
            axis=-1,
            arithmetic=self._arithmetic,
            tensor_dims=tuple(range(1, x.ndim)),  # a token's scale, as when it was quantized
            quantized=y,
            compare_exact=True,
            tensor_amax=tensor_amax,
        )
        self._measured.append((kind, module, fmt, len(x), measured))

    def statistics(self, examples: int, places: Mapping[str, Place]) -> list[TensorStatistics]:
        """Return the statistics of each tensor over all batches, in the order in which tensors were seen.

        Args:
            examples: how many the batches were of.
            places: where in the model each module is.
        """
        seen: dict[tuple[str, str, MXFormat], list[tuple[int, BlockStatistics]]] = {}
        fetched = fetch_statistics([measured for *_, measured in self._measured])
        for (kind, module, fmt, tokens, _), statistics in zip(self._measured, fetched, strict=True):
            seen.setdefault((kind, module, fmt), []).append((tokens, statistics))
        return [
            TensorStatistics(
                kind,
                module,
                places[module],
                fmt,
                BlockStatistics.pooled(item for _, item in items),
                tokens=sum(tokens for tokens, _ in items),
                examples=examples,
            )
            for (kind, module, fmt), items in seen.items()
        ]
