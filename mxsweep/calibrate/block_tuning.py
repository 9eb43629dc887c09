"""Tune the weights of a decoder block by the error of its output, after they were solved for one by one.

What the block answers is compared with what it answers with the solved weights, and the inputs that they multiply, as
they are without quantization, on the same hidden states: those that the quantized blocks before it give. Keys and
values are quantized in both. How a weight moves is in solvers/autoround.py.

A step reads `TUNED_SEQUENCES` calibration sequences, or all where there are fewer. Which ones is drawn beforehand, and
does not depend on their lengths nor on memory: sequences of unequal lengths, and those that do not fit in memory
together, are several calls of the block, whose gradients are added up before the step. Each sequence comes once before
any comes again, and weighs alike: its error is the squared error of a token in the mean over its tokens. The mean error
over all sequences is taken before the first step and `CHECKS` times on the way, and the weights of the least are kept.
So a block is never left worse on the calibration sequences than it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.block_states import BlockStates
from mxsweep.calibrate.stages import Matrices
from mxsweep.calibrate.tuned import BlockErrors, Tuned
from mxsweep.forward.batches import unpadded_batches
from mxsweep.model.quantize import left_out
from mxsweep.model.sites import Site
from mxsweep.numerics import Encoded, decode
from mxsweep.solvers.autoround import Unrounded, rate_of

log = logging.getLogger(__name__)

TUNED_SEQUENCES = 8  # of a step, as in the paper
CHECKS = 4


@dataclass(frozen=True)
class Groups:
    """Hold calibration sequences in groups of one size, of which a step reads one or several.

    Attributes:
        batches: ids (B, T) int64 without padding, in host memory; each of sequences of one group.
        members: the numbers of each group's batches.
        of_step: how many groups a step reads.
    """

    batches: list[Tensor]
    members: list[list[int]]
    of_step: int

    @staticmethod
    def draw(sequences: Sequence[np.ndarray], device: torch.device) -> Groups:
        """Draw groups of sequences (T,), always the same, so large that groups and steps come out even."""
        size = min(TUNED_SEQUENCES, len(sequences))
        of_group = math.gcd(size, len(sequences))
        order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0)).tolist()
        batches: list[Tensor] = []
        members = []
        for start in range(0, len(order), of_group):
            of_one = unpadded_batches([sequences[number] for number in order[start : start + of_group]], device)
            members.append(list(range(len(batches), len(batches) + len(of_one))))
            batches += of_one
        return Groups(batches, members, size // of_group)

    def steps(self) -> Iterator[list[int]]:
        """Yield the batches of each step without end, all groups in random order, and again; the same each time."""
        order = _in_random_order(len(self.members))
        while True:
            yield [batch for group in islice(order, self.of_step) for batch in self.members[group]]


@dataclass(frozen=True)
class BlockTuning:
    """Tune the weights of a model's blocks, each by so many steps.

    Attributes:
        groups: their batches are those that the states are of.
    """

    model: PreTrainedModel
    steps: int
    groups: Groups

    def __call__(
        self, states: BlockStates, matrices: Matrices, sites: Sequence[Site], weights: Mapping[str, Encoded]
    ) -> Tuned:
        """Return a block's tuned weights, which are put in place, and its errors.

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
            return Tuned(kept, BlockErrors(None, None))  # a gradient would say nothing
        steps = self.groups.steps()
        checked = {self.steps * check // CHECKS for check in range(1, CHECKS + 1)}
        for step in range(self.steps):
            calls = [call for batch in next(steps) for call in states.calls_of(batch)]
            _step(states, matrices, unrounded, wanted, calls, rate_of(step, self.steps))
            if step + 1 in checked and (error := _error(states, wanted)) < best:
                best = error
                kept = {name: _encoded(unrounded[name], weights[name]) for name in weights}
        for name, weight in kept.items():
            matrices.put(name, decode(weight))
        log.info("Tuned a decoder block: its output has %.3g of the squared error that it had", best / (first or 1.0))
        return Tuned(kept, BlockErrors(first, best))

    def _unquantized(self, states: BlockStates, sites: Sequence[Site]) -> list[Tensor]:
        """Return the block's answer to each call with its products as they are."""
        with left_out(self.model, [site.operand for site in sites]):
            return [states.run(number) for number in range(states.count)]


def _in_random_order(count: int) -> Iterator[int]:
    """Yield the numbers below ``count`` without end, all in random order, and again; the same for each block."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _of_call(states: BlockStates, wanted: Sequence[Tensor], number: int) -> Tensor:
    """Return the sum of the errors of a call's sequences; states are (..., B, T, D)."""
    answer = wanted[number]
    return (states.run(number).float() - answer.float()).square().sum() / answer.shape[-2]


def _error(states: BlockStates, wanted: Sequence[Tensor]) -> float:
    """Return the error of a sequence in the mean over all calls."""
    sums = [float(_of_call(states, wanted, number)) for number in range(states.count)]
    return sum(sums) / sum(answer.shape[:-2].numel() for answer in wanted)


def _step(
    states: BlockStates,
    matrices: Matrices,
    unrounded: Mapping[str, Unrounded],
    wanted: Sequence[Tensor],
    calls: Sequence[int],
    rate: float,
) -> None:
    """Move all weights by the gradient of the error in these calls together, and put them in place."""
    buffers = {(matrices.module(name), matrices.module(name).buffer_of(name)): name for name in unrounded}
    tensors = [module.get_buffer(buffer).requires_grad_() for module, buffer in buffers]
    sums: list[Tensor | None] = [None] * len(tensors)
    try:
        for number in calls:
            with torch.enable_grad():
                gradients = torch.autograd.grad(_of_call(states, wanted, number), tensors, allow_unused=True)
            sums = [_added(so_far, one) for so_far, one in zip(sums, gradients, strict=True)]
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
        for module, _ in buffers:
            module.inputs.forget()  # which would hold the graph
    of_buffer = dict(zip(buffers, sums, strict=True))
    for name, weight in unrounded.items():
        module = matrices.module(name)
        gradient = of_buffer[module, module.buffer_of(name)]
        if gradient is not None:  # None: no token came to any expert
            weight.step(module.matrix_in(gradient, name), rate)
            matrices.put(name, weight.values())


def _added(so_far: Tensor | None, one: Tensor | None) -> Tensor | None:
    """Return the sum in float32 of what two calls give for one tensor; None where neither reached it."""
    if one is None or so_far is None:
        return so_far if one is None else one.float()
    return so_far + one


def _encoded(weight: Unrounded, like: Encoded) -> Encoded:
    """Return a weight in codes, in host memory, of the dtype of ``like``."""
    return replace(weight.encoded(), dtype=like.dtype).to("cpu")
