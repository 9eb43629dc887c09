"""Measure what quantizing does to each operand of the products of a training step, and to the gradients that come out.

The layers call a `RoleObserver` with what they quantized and with the gradients they computed. It adds up sums on the
tensors' device, over the micro-batches of a step, and fetches them when the rows are asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mxsweep.files.training_columns import ROLE_COLUMNS
from mxsweep.formats.training import GRADIENTS, OperandFormat
from mxsweep.model.operands import Place
from mxsweep.numerics import measure_blocks
from mxsweep.numerics.block_measures import PendingStatistics, fetch_statistics, sqnr_db

_PIECE = 1 << 24  # elements that are made float64 at a time


@dataclass
class _Sums:
    """Gather sums over one operand or gradient: [signal, noise, <q, x>, <q, q>, elements that are not zero]."""

    format: str
    numbers: list[Tensor] = field(default_factory=list)
    blocks: list[PendingStatistics] = field(default_factory=list)


class RoleObserver:
    """Measure the operands and gradients of one step.

    Args:
        places: where in the model each module is, by its name; of a module that is not among them, the first number
            in its name is taken for the decoder block's, and the last part of it for the role.
        arithmetic: which the operands were quantized with.
    """

    def __init__(self, places: Mapping[str, Place] | None = None, arithmetic: str = "native") -> None:
        self._places = dict(places or {})
        self._arithmetic = arithmetic
        self._sums: dict[tuple[str, str], _Sums] = {}

    def forget(self) -> None:
        """Forget what was measured, as of a pass that is taken anew."""
        self._sums.clear()

    @torch.no_grad()
    def operand(
        self,
        module: str,
        operand: str,
        original: Tensor,
        quantized: Tensor,
        fmt: OperandFormat,
        axis: int = -1,
        tensor_dims: Sequence[int] | None = None,
    ) -> None:
        """Add an operand of a product (``dgrad.grad``), before and after it was quantized along ``axis``.

        ``original`` is what was quantized: of a rotated operand the rotated one, and not yet multiplied by the
        format's prescale. ``tensor_dims`` are those that a scale of the tensor was taken over, as for `quantize`.
        """
        sums = self._sums.setdefault((module, operand), _Sums(str(fmt)))
        sums.numbers.append(_sums_of(original, quantized))
        measured = measure_blocks(
            original.detach(),
            fmt.fmt,
            axis,
            arithmetic=self._arithmetic_of(fmt),
            tensor_dims=tensor_dims if fmt.fmt.tensor_scale else None,
            quantized=quantized.detach(),
            prescale=fmt.prescale,
        )
        sums.blocks.append(measured)

    @torch.no_grad()
    def gradient(self, module: str, gradient: str, exact: Tensor, computed: Tensor) -> None:
        """Add a gradient, one of GRADIENTS: as unquantized operands give it, and as it was computed."""
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient: {gradient!r} is no gradient; allowed: {', '.join(GRADIENTS)}")
        self._sums.setdefault((module, gradient), _Sums("")).numbers.append(_sums_of(exact, computed))

    def rows(self, step: int) -> list[dict[str, Any]]:
        """Return a row for each operand and gradient, with the columns ROLE_COLUMNS."""
        keys = list(self._sums)
        totals = _fetched([torch.stack(self._sums[key].numbers).sum(0) for key in keys])
        pending = [each for key in keys for each in self._sums[key].blocks]
        statistics = iter(fetch_statistics(pending))
        rows = []
        for (module, operand), numbers in zip(keys, totals, strict=True):
            sums = self._sums[module, operand]
            place = self._place(module)
            row = {"step": step, "module": module, "layer": place.layer, "role": place.role or place.part}
            row |= {"operand": operand, "format": sums.format, **_ratios(*numbers)}
            parts = [next(statistics) for _ in sums.blocks]
            flushed, saturated, clamped, elements, blocks = (
                sum(getattr(part, name) for part in parts)
                for name in ("elements_flushed", "elements_saturated", "blocks_scale_clamped", "elements", "blocks")
            )
            row |= {
                "underflow": _share(flushed, numbers[-1]) if parts else math.nan,
                "saturation": _share(saturated, elements) if parts else math.nan,
                "clamped": _share(clamped, blocks) if parts else math.nan,
            }
            rows.append({name: row[name] for name in ROLE_COLUMNS})
        return rows

    def _arithmetic_of(self, fmt: OperandFormat) -> str:
        return self._arithmetic if fmt.fmt.has_native_arithmetic else "native"

    def _place(self, module: str) -> Place:
        if module not in self._places:
            number = re.search(r"(?<=\.)\d+(?=\.)", module)
            part = module.rpartition(".")[2]
            self._places[module] = Place(int(number.group()) if number else None, part)
        return self._places[module]


def _sums_of(x: Tensor, q: Tensor) -> Tensor:
    """Return float64 sums over a tensor and what became of it, in the order that `_Sums` names; wait for no device."""
    x, q = x.detach().reshape(-1), q.detach().reshape(-1)
    total = torch.zeros(5, dtype=torch.float64, device=x.device)
    for x_piece, q_piece in zip(x.split(_PIECE), q.split(_PIECE), strict=True):
        a, b = x_piece.to(torch.float64), q_piece.to(torch.float64)
        noise = (a - b).square().sum()
        total += torch.stack([a.dot(a), noise, a.dot(b), b.dot(b), (a != 0).sum(dtype=torch.float64)])
    return total


def _fetched(totals: list[Tensor]) -> list[list[float]]:
    """Return the numbers of tensors, fetched in one transfer from each device."""
    numbers: dict[int, list[float]] = {}
    for device in dict.fromkeys(total.device for total in totals):
        here = [index for index, total in enumerate(totals) if total.device == device]
        numbers |= zip(here, torch.stack([totals[index] for index in here]).tolist(), strict=True)
    return [numbers[index] for index in range(len(totals))]


def _ratios(signal: float, noise: float, dot: float, square: float, nonzero: float) -> dict[str, float]:
    """Return signal over noise in decibels, cosine <q, x> / (|q| |x|) and slope <q, x> / |x|^2."""
    lengths = math.sqrt(signal * square) if signal >= 0 and square >= 0 else math.nan
    return {
        "snr_db": sqnr_db(signal, noise),
        "cosine": _share(dot, lengths),
        "slope": _share(dot, signal),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
