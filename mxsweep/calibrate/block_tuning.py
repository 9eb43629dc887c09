"""Tune the weights of a decoder block by the error of its output, after they were solved for one by one.

What the block answers is compared with what it answers with the solved weights, and the inputs that they multiply, as
they are without quantization, on the same hidden states: those that the quantized blocks before it give. Keys and
values are quantized in both. Each sequence weighs alike: its error is the squared error of a token in the mean over its
tokens. How steps are taken is in calibrate/tuning_steps.py, how a weight moves in solvers/autoround.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.block_states import BlockStates
from mxsweep.calibrate.stages import Matrices
from mxsweep.calibrate.tuned import Tuned
from mxsweep.calibrate.tuning_steps import Groups, tune
from mxsweep.model.quantize import left_out
from mxsweep.model.sites import Site
from mxsweep.numerics import Encoded
from mxsweep.solvers.autoround import REACH, rates

log = logging.getLogger(__name__)


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
        error = _BlockError(states, self._unquantized(states, sites))
        tuned = tune(matrices, sites, weights, error, error.mean, self.groups.steps(), rates(self.steps, REACH))
        block, first, best = sites[0].operand.layer, tuned.errors.first, tuned.errors.best
        if first is not None and best is not None:
            if best < first:
                left = best / first
                log.info("Decoder block %s: tuned, its output has %.3g of the squared error that it had", block, left)
            else:
                log.info("Decoder block %s: left as it was, no step made the squared error of its output less", block)
        if tuned.steps_not_finite:
            log.warning("Decoder block %s: gradients were not finite in %d steps", block, tuned.steps_not_finite)
        return tuned

    def _unquantized(self, states: BlockStates, sites: Sequence[Site]) -> list[Tensor]:
        """Return the block's answer to each call with its products as they are."""
        with left_out(self.model, [site.operand for site in sites]):
            return [states.run(number) for number in range(states.count)]


@dataclass(frozen=True)
class _BlockError:
    """Measure the squared error of a block's answers, against those wanted, (..., B, T, D) of each call."""

    states: BlockStates
    wanted: Sequence[Tensor]

    def calls_of(self, batches: Sequence[int]) -> list[int]:
        return [call for batch in batches for call in self.states.calls_of(batch)]

    def of_call(self, call: int) -> Tensor:
        answer = self.wanted[call]
        return (self.states.run(call).float() - answer.float()).square().sum() / answer.shape[-2]

    def mean(self) -> float:
        """Return the error of a sequence in the mean."""
        sums = [float(self.of_call(number)) for number in range(self.states.count)]
        return sum(sums) / sum(answer.shape[:-2].numel() for answer in self.wanted)
