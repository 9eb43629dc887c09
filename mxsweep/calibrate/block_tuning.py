"""Tune the weights of a decoder block by the error of its output, after they were solved for one by one.

What the block answers is compared with what it answers with the solved weights, and the inputs that they multiply, as
they are without quantization, on the same hidden states: those that the quantized blocks before it give. Keys and
values are quantized in both. How a weight
moves is in solvers/autoround.py.

A step is on one call of the block, mostly a batch of `TUNED_SEQUENCES` calibration sequences; calls come in random
order, each once before any comes again. The mean squared error over all calls is taken before the first step and
`CHECKS` times on the way, and the weights of the least are kept. So a block is never left worse on the calibration
sequences than it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.block_states import BlockStates
from mxsweep.calibrate.stages import Matrices
from mxsweep.model.quantize import left_out
from mxsweep.model.sites import Site
from mxsweep.numerics import Encoded, decode
from mxsweep.solvers.autoround import Unrounded, rate_of

log = logging.getLogger(__name__)

TUNED_SEQUENCES = 8  # of a step, as in the paper
CHECKS = 4


@dataclass(frozen=True)
class BlockTuning:
    """Tune the weights of a model's blocks, each by so many steps."""

    model: PreTrainedModel
    steps: int

    def __call__(
        self, states: BlockStates, matrices: Matrices, sites: Sequence[Site], weights: Mapping[str, Encoded]
    ) -> dict[str, Encoded]:
        """Return a block's tuned weights, which are put in place.

        Args:
            states: in front of the block.
            matrices: of ``sites``.
            sites: whose weights were solved for; those of the block.
            weights: what stands in their places, by name.
        """
        wanted = self._unquantized(states, sites)
        unrounded = {
            site.name: Unrounded.of(site.weight().to(device).float(), weights[site.name].to(device))
            for site, device in ((site, matrices.weight(site.name).device) for site in sites)
        }
        first = best = _error(states, wanted)
        kept = dict(weights)
        if not math.isfinite(first):
            return kept  # a gradient would say nothing
        numbers = _in_random_order(states.count)
        checked = {self.steps * check // CHECKS for check in range(1, CHECKS + 1)}
        for step in range(self.steps):
            _step(states, matrices, unrounded, wanted, next(numbers), rate_of(step, self.steps))
            if step + 1 in checked and (error := _error(states, wanted)) < best:
                best = error
                kept = {name: _encoded(unrounded[name], weights[name]) for name in weights}
        for name, weight in kept.items():
            matrices.put(name, decode(weight))
        log.info("Tuned a decoder block: its output has %.3g of the squared error that it had", best / (first or 1.0))
        return kept

    def _unquantized(self, states: BlockStates, sites: Sequence[Site]) -> list[Tensor]:
        """Return the block's answer to each call with its products as they are."""
        with left_out(self.model, [site.operand for site in sites]):
            return [states.run(number) for number in range(states.count)]


def _in_random_order(count: int) -> Iterator[int]:
    """Yield the numbers of calls without end, all in random order, and again; the same for each block."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _error(states: BlockStates, wanted: Sequence[Tensor]) -> float:
    """Return the squared error of a token's hidden state in the mean over all calls."""
    sums = [float((states.run(number).float() - answer.float()).square().sum()) for number, answer in enumerate(wanted)]
    return sum(sums) / sum(answer.shape[:-1].numel() for answer in wanted)


def _step(
    states: BlockStates,
    matrices: Matrices,
    unrounded: Mapping[str, Unrounded],
    wanted: Sequence[Tensor],
    number: int,
    rate: float,
) -> None:
    """Move all weights by the gradient of the squared error of one call, and put them in place."""
    buffers = {(matrices.module(name), matrices.module(name).buffer_of(name)): name for name in unrounded}
    tensors = [module.get_buffer(buffer).requires_grad_() for module, buffer in buffers]
    try:
        with torch.enable_grad():
            error = (states.run(number).float() - wanted[number].float()).square().sum()
            gradients = torch.autograd.grad(error / wanted[number].shape[:-1].numel(), tensors, allow_unused=True)
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
        for module, _ in buffers:
            module.inputs.forget()  # which would hold the graph
    of_buffer = dict(zip(buffers, gradients, strict=True))
    for name, weight in unrounded.items():
        module = matrices.module(name)
        gradient = of_buffer[module, module.buffer_of(name)]
        if gradient is not None:  # None: no token came to any expert
            weight.step(module.matrix_in(gradient, name), rate)
            matrices.put(name, weight.values())


def _encoded(weight: Unrounded, like: Encoded) -> Encoded:
    """Return a weight in codes, in host memory, of the dtype of ``like``."""
    return replace(weight.encoded(), dtype=like.dtype).to("cpu")
