"""Tune quantized weights by gradient descent on an error, steps and checks alike whatever the error is of.

A step reads `TUNED_SEQUENCES` calibration sequences, or all where there are fewer. Which ones is drawn beforehand, and
does not depend on their lengths nor on memory: sequences of unequal lengths, and those that do not fit in memory
together, are several calls, whose gradients are added up before the step. Each sequence comes once before any comes
again. The mean error over the sequences that are checked on is taken before the first step and `CHECKS` times on the
way, and the weights of the least are kept. So weights are never left worse on these sequences than they were.

What the error is of: calibrate/block_tuning.py and calibrate/finetuning.py. How a weight moves: solvers/autoround.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mxsweep.calibrate.bundles import Bundle, bundles_of
from mxsweep.calibrate.stages import Matrices
from mxsweep.calibrate.tuned import Errors, Tuned
from mxsweep.forward.batches import unpadded_batches
from mxsweep.model.sites import Site
from mxsweep.numerics import Encoded
from mxsweep.solvers.autoround import Begin, Unrounded, half_way
from mxsweep.terminal.progress_callback import Progress, silent

TUNED_SEQUENCES = 8  # of a step, as in the paper of solvers/autoround.py
CHECKS = 4

Call = TypeVar("Call")


class Objective(Protocol[Call]):
    """Measure the error that is to become small, of the weights that are in place."""

    def calls_of(self, batches: Sequence[int]) -> Sequence[Call]:
        """Return the calls that the sequences of batches are read in."""

    def of_call(self, call: Call) -> Tensor:
        """Return the sum of the errors of a call, with what its gradient needs."""


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


def tune(
    matrices: Matrices,
    sites: Sequence[Site],
    weights: Mapping[str, Encoded],
    objective: Objective[Call],
    check: Callable[[], float],
    steps: Iterator[list[int]],
    rates: Sequence[float],
    progress: Progress = silent,
    begin: Begin = half_way,
) -> Tuned:
    """Return the weights of the least error that was seen, which are put in place, and the first and the least error.

    Args:
        matrices: of ``sites``, with ``weights`` in their places, by name.
        objective: what steps make small.
        check: returns the mean error of the weights that are in place, by which they are kept.
        steps: the batches of each step.
        rates: by how many ulps values move in each step.
        begin: how far from ``weights`` what is rounded to them begins.
    """
    bundles = bundles_of(matrices, sites, weights, begin)
    first = best = check()
    kept = dict(weights)
    finite: list[Tensor] = []
    if not math.isfinite(first):
        return Tuned(kept, Errors(None, None))  # a gradient would say nothing
    checked = {len(rates) * check // CHECKS for check in range(1, CHECKS + 1)}
    for done, rate in enumerate(rates, 1):
        calls = objective.calls_of(next(steps))
        finite.append(_step(matrices, bundles, objective.of_call, calls, rate))
        if done in checked and (error := check()) < best:
            best = error
            parts = {name: part for bundle in bundles for name, part in bundle.parts.items()}
            kept = {name: _encoded(parts[name], weights[name]) for name in weights}
        progress(done, len(rates))
    for name, weight in kept.items():
        matrices.put_encoded(name, weight)
    return Tuned(kept, Errors(first, best), sum(not bool(one) for one in finite))


def _in_random_order(count: int) -> Iterator[int]:
    """Yield the numbers below ``count`` without end, all in random order, and again; always the same."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _step(
    matrices: Matrices, bundles: Sequence[Bundle], of_call: Callable[[Call], Tensor], calls: Sequence[Call], rate: float
) -> Tensor:
    """Move all weights by the gradient of the error in these calls together, and put them in place.

    Returns:
        Whether all of the gradient is finite, for which nobody has waited yet.
    """
    names = [name for bundle in bundles for name in bundle.parts]
    gradients = _gradients(matrices, names, of_call, calls)
    finite = []
    for bundle in bundles:
        moved, is_finite = bundle.step(gradients, rate)
        finite.append(is_finite.to(bundles[0].whole.u.device))
        for name, weight in moved.items():
            matrices.put(name, weight)
    return torch.stack(finite).all()


def _gradients(
    matrices: Matrices, names: Sequence[str], of_call: Callable[[Call], Tensor], calls: Sequence[Call]
) -> dict[str, Tensor | None]:
    """Return the gradients (N, C) of the error in these calls together; None where no token came to any expert."""
    buffers = dict.fromkeys((matrices.module(name), matrices.module(name).buffer_of(name)) for name in names)
    tensors = [module.get_buffer(buffer).requires_grad_() for module, buffer in buffers]
    sums: list[Tensor | None] = [None] * len(tensors)
    try:
        for call in calls:
            with torch.enable_grad():
                gradients = torch.autograd.grad(of_call(call), tensors, allow_unused=True)
            sums = [_added(so_far, one) for so_far, one in zip(sums, gradients, strict=True)]
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)
        for module, _ in buffers:
            module.inputs.forget()  # which would hold the graph
    of_buffer = dict(zip(buffers, sums, strict=True))
    found: dict[str, Tensor | None] = {}
    for name in names:
        module = matrices.module(name)
        whole = of_buffer[module, module.buffer_of(name)]
        found[name] = None if whole is None else module.matrix_in(whole, name)
    return found


def _added(so_far: Tensor | None, one: Tensor | None) -> Tensor | None:
    """Return the sum of what calls give for one tensor, in float32 where it is of several; None where none reached it.

    Args:
        so_far: of the calls before.
        one: of the next.
    """
    if one is None or so_far is None:
        return so_far if one is None else one
    return so_far.float() + one


def _encoded(weight: Unrounded, like: Encoded) -> Encoded:
    """Return a weight in codes, in host memory, of the dtype of ``like``."""
    return replace(weight.encoded(), dtype=like.dtype).to("cpu")
