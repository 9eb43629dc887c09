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
scales: u is where the weight itself is, but no further than MARGIN ulps from GPTQ's value, which it is rounded to. So
before the first step the block is GPTQ's; and where GPTQ rounded away from the nearest value, as it does often, the
first small steps do not undo it. That is what MARGIN and REACH are for. Of the first block of a Llama of 31 million
parameters, weights and inputs in fp4_e2m1 and rotated, 40 steps of 4 sequences of 512 tokens out of 48: the squared
error of the output on 8,192 other tokens, over that of GPTQ, half way and at the end:

    MARGIN  REACH  half way   end
    0.25    0.25       0.91  0.89
    0.25    0.1        0.91  0.90
    0       0.5        4.67  0.94
    0.49    0.05       1.20

The start is GPTQ's own answer (config/weight_methods.py names its module); how a block is gone through is in
calibrate/block_tuning.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.encoding import Encoded
from mxsweep.numerics.reference.codes import element_values
from mxsweep.numerics.reference.definition import restore, without_inf
from mxsweep.numerics.reference.rounding import round_exact, spacing
from mxsweep.solvers.block_scales import BlockScales

MARGIN = REACH = 0.25


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
    def of(weight: Tensor, start: Encoded) -> Unrounded:
        """Return values that are rounded to those of ``start``, each toward the weight's, by MARGIN ulps at most.

        Args:
            weight: (N, C) float32, on the device of ``start``.
        """
        fmt, scales = start.format, BlockScales.of_encoded(start)
        scale, midpoint = scales.per_element(fmt, weight.shape[1])
        weight = without_inf(weight, fmt)
        wanted = scale.quotient(weight if midpoint is None else weight - midpoint)
        q = element_values(start.codes, fmt.element_format)
        most = MARGIN * spacing(q, fmt.element_format)
        u = q + (wanted - q).clamp(-most, most)
        # Where the ulp below is half as large, u is a tie; of a format that rounds toward zero, it may be below q.
        u = torch.where(round_exact(u, fmt.element_format, fmt.rounding) == q, u, q)
        return Unrounded(u, scales, fmt)

    def values(self) -> Tensor:
        """Return the quantized weight (N, C) float32."""
        scale, midpoint = self.scales.per_element(self.format, self.u.shape[1])
        return restore(round_exact(self.u, self.format.element_format, self.format.rounding), scale.read, midpoint)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move each value by ``rate`` ulps against the sign of the gradient (N, C) of the quantized weight.

        Where that is 0 or NaN, the value stays.
        """
        sign = gradient.float().sign().nan_to_num_(0.0)
        self.u.sub_(spacing(self.u, self.format.element_format).mul_(sign), alpha=rate)

    def encoded(self) -> Encoded:
        """Return the codes of the quantized weight, in float32."""
        return self.scales.encode_chosen(self.values(), self.format)
