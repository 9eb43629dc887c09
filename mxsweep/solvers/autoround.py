"""Learn which way a weight's elements are rounded, by the error of the whole decoder block that they stand in.

GPTQ makes the error of each layer's output small. What counts is what becomes of it: behind activation functions,
attention and the rounding of later inputs. So here every element has a value that is rounded, and this value is moved
by gradient descent on the squared error of the block's output against the block as it is without quantization, on the
same hidden states (Cheng et al., "Optimize weight rounding via signed gradient descent for the quantization of LLMs",
AutoRound, arXiv 2309.05516):

    u <- u - rate_t * ulp(u) * sign(dL / dw)        rate_t = 2 REACH (1 - t / steps) / steps,  t = 0 ... steps - 1

u is in units of its block's scale, ulp(u) the spacing of the element format's grid there, and w = q(u) s the weight
that multiplies, through whose rounding the gradient goes straight. Since s and ulp are positive, the sign is that of
the gradient of the multiplied matrix itself, and nothing else of the gradient matters. The rates add up to about
REACH, so that an element moves to the next value of its grid at most. Scales stay as the start has them.

The paper begins with rounding to nearest, and reaches half an ulp. Here it begins with what GPTQ chose on searched
scales: u is half way from GPTQ's value, which it is rounded to, to the weight itself (NEAREST keeps it from the tie).
So before the first step the block is GPTQ's; values that GPTQ rounded away from the nearest are the first to turn, and
few turn in a step. That is what matters: with u where the weight is, but no further than MARGIN ulps from GPTQ's value,
about half of all elements are equally far from their ties, and those at powers of two may be on them (the ulp below is
half as large). Of the first block of Gemma 3 270M, rotated, where one channel has 79 % of the squared error, 0.7 % of
the elements then turned in steps of less than 1e-5 ulps, and two of 16 steps of 8 sequences of 128 tokens multiplied
the error by 73.

Of block 5 of a Llama of 31 million parameters, rotated (rotation=hadamard), bfloat16, calibrated on 32 sequences of 256
tokens, 60 steps, the squared error of the output, over that of GPTQ's, on the calibration tokens and on 4,096 others
("mirrored": where the weight is beyond the tie, u is as far on this side of it):

    weights and inputs in mxfp4          weights alone
    begin       REACH  calibrated others calibrated others
    by a margin 0.25         0.87   0.94       0.98   1.02
    half way    0.25         0.83   0.91       0.84   0.95
    half way    0.1                            0.92   0.96
    mirrored    0.25         0.82   0.97       1.00   1.00
    mirrored    0.1          0.85   0.95       1.00   1.00

Whole models are finetuned from values within a margin (calibrate/finetuning.py): on the embedded model neither start
was better in both of two lengths that were tried.

The start is GPTQ's own answer (config/weight_methods.py names its module); how a block is gone through is in
calibrate/block_tuning.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mxsweep.formats.element import ElementFormat
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.encoding import Encoded
from mxsweep.numerics.reference.codes import element_values
from mxsweep.numerics.reference.definition import restore, without_inf
from mxsweep.numerics.reference.rounding import round_exact, spacing
from mxsweep.solvers.block_scales import BlockScales

REACH = 0.25
MARGIN = 0.25  # ulps
NEAREST = 0.45  # of the way to the next value: a tie is at 0.5

Begin = Callable[[Tensor, Tensor, ElementFormat], Tensor]
"""Return where elements begin, between the start's values and the weights: (N, C) float32 each, over the scale."""


def half_way(values: Tensor, wanted: Tensor, element: ElementFormat) -> Tensor:
    """Return values half way to those wanted, but no further than NEAREST of the way to the next on the grid."""
    way = wanted - values
    # From a power of two the next value toward zero is nearer than that away from it.
    inward = (way < 0) == (values > 0)
    gap = spacing(torch.where(inward, torch.nextafter(values, torch.zeros_like(values)), values), element)
    return values + gap * (way / gap / 2).clamp(-NEAREST, NEAREST)


def by_a_margin(values: Tensor, wanted: Tensor, element: ElementFormat) -> Tensor:
    """Return values as near to those wanted as MARGIN ulps let them be; from a power of two that may be a tie."""
    most = MARGIN * spacing(values, element)
    return values + (wanted - values).clamp(-most, most)


def rates(steps: int, reach: float) -> list[float]:
    """Return by how many ulps values move in each step: less and less, and by about ``reach`` in all."""
    return [2 * reach * (1 - step / steps) / steps for step in range(steps)]


@dataclass(frozen=True)
class Unrounded:
    """Hold what each element of a weight (N, C) is rounded from.

    Attributes:
        u: (N, C) float32, in units of the block's scale, less the midpoint where the format has one. Changed in place.
        scales: of the blocks, which stay.
        format: of the weight.
    """

    u: Tensor
    scales: BlockScales
    format: MXFormat

    @staticmethod
    def of(weight: Tensor, start: Encoded, begin: Begin = half_way) -> Unrounded:
        """Return values that are rounded to those of ``start``, each on the way from there to the weight's.

        Args:
            weight: (N, C) float32, on the device of ``start``.
            begin: how far on that way.
        """
        fmt, scales = start.format, BlockScales.of_encoded(start)
        scale, midpoint = scales.per_element(fmt, weight.shape[1])
        weight = without_inf(weight, fmt)
        wanted = scale.quotient(weight if midpoint is None else weight - midpoint)
        q = element_values(start.codes, fmt.element_format)
        u = begin(q, wanted, fmt.element_format)
        # Of a format that rounds toward zero, u may be below q; of others it may be a tie that goes elsewhere.
        u = torch.where(round_exact(u, fmt.element_format, fmt.rounding) == q, u, q)
        return Unrounded(u, scales, fmt)

    @property
    def is_whole(self) -> bool:
        """Return whether all blocks are of one length."""
        return self.u.shape[1] % self.scales.length == 0

    @staticmethod
    def joined(weights: Sequence[Unrounded]) -> tuple[Unrounded, list[Unrounded]]:
        """Return weights of one format and whole blocks of one length as one, a block a row, and each in its memory.

        What happens to elements one by one happens to all at once so.
        """
        fmt, length = weights[0].format, weights[0].scales.length

        def per_block(of_weights: Sequence[Tensor | None]) -> Tensor | None:
            pairs = [(one, weight.scales.stored) for one, weight in zip(of_weights, weights, strict=True)]
            laid = [one.expand(stored.shape).reshape(-1, 1) for one, stored in pairs if one is not None]
            return torch.cat(laid) if laid else None

        stored = per_block([weight.scales.stored for weight in weights])
        assert stored is not None
        midpoint = per_block([weight.scales.midpoint for weight in weights])
        tensor_scale = per_block([weight.scales.tensor_scale for weight in weights])
        u = torch.cat([weight.u.reshape(-1, length) for weight in weights])
        rows = u.split([weight.u.numel() // length for weight in weights])
        parts = [replace(weight, u=of_one.view(weight.u.shape)) for weight, of_one in zip(weights, rows, strict=True)]
        return Unrounded(u, BlockScales(stored, midpoint, length, tensor_scale), fmt), parts

    def values(self) -> Tensor:
        """Return the quantized weight (N, C) float32."""
        q = round_exact(self.u, self.format.element_format, self.format.rounding)
        if not self.is_whole:
            scale, midpoint = self.scales.per_element(self.format, self.u.shape[1])
            return restore(q, scale.read, midpoint)
        read, midpoint = self.scales.applied(self.format).read, self.scales.midpoint
        in_blocks = q.unflatten(1, (-1, self.scales.length))
        return restore(in_blocks, read.unsqueeze(-1), None if midpoint is None else midpoint.unsqueeze(-1)).flatten(1)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move each value by ``rate`` ulps against the sign of the gradient (N, C) of the quantized weight.

        Where that is 0 or NaN, the value stays.
        """
        sign = gradient.sign().nan_to_num_(0.0)
        self.u.sub_(spacing(self.u, self.format.element_format).mul_(sign), alpha=rate)

    def encoded(self) -> Encoded:
        """Return the codes of the quantized weight, in float32."""
        return self.scales.encode_chosen(self.values(), self.format)
