"""Divide the matrices of a decoder block into stages, and sum up the Hessians of what each multiplies.

A stage is what is solved for between two passes over the block: the linear layers that read one tensor, or what a
module of experts multiplies in one step, which is ``gate`` and ``up`` of all its experts, and then ``down`` of all.
Experts that read the same tokens multiply different ones of them: each expert has a Hessian of its own, which its gate
and up share where they read these tokens in one format.

Hessians of many experts are large (256 of 7,168 channels take 49 GiB). They are summed up for as many experts at a time
as ``HESSIAN_BYTES`` holds, at least one, and each such part of a stage is one more pass over the block up to the stage.
That changes nothing: no expert reads what another one answers in the same stage.

Legend: x (tokens, C) what a matrix W (N, C) is multiplied by, rotated and quantized as in the run, tokens being those
that reach it; H = 2 x^T x / tokens (C, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mxsweep.calibrate.block_states import BlockStates
from mxsweep.model.experts import ExpertsTap, MXExperts
from mxsweep.model.linear import MXLinear
from mxsweep.model.sites import Site
from mxsweep.numerics import Encoded, decode
from mxsweep.terminal.errors import ConfigError

HESSIAN_BYTES = 2**32

Names = tuple[str, ...]  # of matrices that read one input


class Matrices:
    """Read and replace the matrices that stand in for those of a block's sites.

    Args:
        model: quantized.
        sites: those that are solved for.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites}
        self._modules = {site.name: model.get_submodule(site.operand.module_name) for site in sites}
        self._before: dict[str, Tensor] | None = None  # what was replaced, where it may have to come back

    @property
    def names(self) -> list[str]:
        """Return the names of the sites, in the model's order."""
        return list(self._sites)

    def module(self, name: str) -> MXLinear | MXExperts:
        """Return the MX layer that multiplies by a matrix."""
        module = self._modules[name]
        assert isinstance(module, MXLinear | MXExperts)
        return module

    def weight(self, name: str) -> Tensor:
        """Return the matrix (N, C) as it is now."""
        return self.module(name).matrix(name)

    def put(self, name: str, weight: Tensor) -> None:
        """Put a matrix (N, C) in the place of what is there."""
        module, old = self.module(name), self.weight(name)
        if self._before is not None and name not in self._before:
            # That of a linear layer stays as it is, another takes its place; one of an expert is written over.
            self._before[name] = old if isinstance(module, MXLinear) else old.to("cpu", copy=True)
        module.replace(name, weight.to(old.device, old.dtype))

    def put_encoded(self, name: str, weight: Encoded) -> None:
        """Put what codes stand for in the place of a matrix; it is decoded on the device of that."""
        self.put(name, decode(weight.to(self.weight(name).device)))

    @contextmanager
    def restored_after_an_error(self) -> Iterator[None]:
        """Put back what was there at the beginning if the context ends in an error."""
        self._before = {}
        try:
            yield
        except BaseException:
            before, self._before = self._before, None
            for name, weight in before.items():
                self.put(name, weight)
            for name in self._sites:
                self.module(name).inputs.forget()
            raise
        finally:
            self._before = None


@dataclass
class Stage:
    """Hold what is solved for between two passes.

    Attributes:
        module: one that reads its input.
        parameter: that of the matrices, where ``module`` is of experts.
        inputs: the names of the matrices, together those that read one input.
    """

    module: MXLinear | MXExperts
    parameter: str | None = None
    inputs: list[Names] = field(default_factory=list)


@dataclass(frozen=True)
class InputHessian:
    """Hold the Hessian (C, C) float32 of an input, and of how many tokens it is; zero where none came."""

    hessian: Tensor
    tokens: int


class _Enough(Exception):
    """End a forward pass whose rest is not needed."""


def find_stages(states: BlockStates, matrices: Matrices) -> list[Stage]:
    """Return the stages of a block in the order of its forward pass.

    Raises:
        ConfigError: a matrix that no pass reaches.
    """
    stages: list[Stage] = []
    seen: list[tuple[Tensor, Stage]] = []  # inputs of linear layers in this pass
    missing = dict.fromkeys(matrices.names)

    def note_linear(name: str) -> Callable[[Tensor], None]:
        def note(x: Tensor) -> None:
            if name not in missing:
                return
            stage = next((stage for other, stage in seen if other is x), None)
            if stage is None:
                stage = Stage(matrices.module(name), None, [()])
                seen.append((x, stage))
                stages.append(stage)
            stage.inputs[0] += (name,)
            del missing[name]

        return note

    def note_experts(module: MXExperts) -> Callable[[str, object], None]:
        def note(parameter: str, _: object) -> None:
            if inputs := of_experts.pop((module, parameter), None):
                stages.append(Stage(module, parameter, inputs))
                for name in (name for names in inputs for name in names):
                    del missing[name]

        return note

    of_experts = _inputs_of_experts(matrices)
    with ExitStack() as stack:
        for name in matrices.names:
            if isinstance(layer := matrices.module(name), MXLinear):
                stack.enter_context(_tapped_linear(layer, name, note_linear(name)))
        for module in dict.fromkeys(module for module, _ in of_experts):
            stack.enter_context(_tapped_experts(module, note_experts(module)))
        for number in range(states.count):  # mostly one pass, since it reaches everything
            if missing:
                seen.clear()
                states.run(number)
    if missing:
        first = next(iter(missing))
        raise ConfigError(
            f"ptq.method: {first} was not reached by calibration data, so it cannot be calibrated; "
            f"allowed: rtn, or modules={{{first}: none}}"
        )
    return stages


def _inputs_of_experts(matrices: Matrices) -> dict[tuple[MXExperts, str], list[Names]]:
    """Return what reads one input together among matrices of experts, by their modules and parameters."""
    inputs: dict[tuple[MXExperts, str], list[Names]] = {}
    solved = set(matrices.names)
    for name in matrices.names:
        module = matrices.module(name)
        if not isinstance(module, MXExperts):
            continue
        parameter = module.parameter_of(name)
        if (module, parameter) not in inputs:
            together = (tuple(n for n in names if n in solved) for names in module.read_together(parameter))
            inputs[module, parameter] = [names for names in together if names]
    return inputs


def stage_hessians(states: BlockStates, matrices: Matrices, stage: Stage) -> Iterator[Mapping[Names, InputHessian]]:
    """Yield the Hessians of a stage's inputs over all calibration tokens, as many at a time as memory is meant to hold.

    What is put in the place of matrices between two of them must be of the stage.
    """
    part: list[Names] = []
    taken = 0
    for names in stage.inputs:
        needed = matrices.weight(names[0]).shape[1] ** 2 * torch.float32.itemsize
        if part and taken + needed > HESSIAN_BYTES:
            yield _hessians(states, matrices, stage, part)
            part, taken = [], 0
        part.append(names)
        taken += needed
    yield _hessians(states, matrices, stage, part)


def _hessians(
    states: BlockStates, matrices: Matrices, stage: Stage, inputs: Sequence[Names]
) -> dict[Names, InputHessian]:
    of_first = {names[0]: names for names in inputs}
    sums: dict[Names, Tensor] = {}
    tokens = dict.fromkeys(inputs, 0)
    for names in inputs:
        weight = matrices.weight(names[0])
        width = weight.shape[1]
        sums[names] = torch.zeros(width, width, dtype=torch.float32, device=weight.device)

    def add(names: Names, x: Tensor) -> None:
        x = x.flatten(0, -2).float()
        sums[names].addmm_(x.T, x, alpha=2.0)
        tokens[names] += len(x)

    def add_linear(x: Tensor) -> None:
        add(inputs[0], x)
        raise _Enough

    def add_experts(parameter: str, products: Sequence[tuple[Names, Tensor]]) -> None:
        if parameter != stage.parameter:
            return
        for names, x in products:
            of_input = next((of_first[name] for name in names if name in of_first), None)
            if of_input is not None:
                add(of_input, x)
        raise _Enough

    if isinstance(stage.module, MXLinear):
        tapped = _tapped_linear(stage.module, inputs[0][0], add_linear)
    else:
        tapped = _tapped_experts(stage.module, add_experts)
    with tapped:
        for number in range(states.count):
            try:
                states.run(number)
            except _Enough:
                stage.module.inputs.forget()
    return {names: InputHessian(sums[names].div_(max(tokens[names], 1)), tokens[names]) for names in inputs}


@contextmanager
def _tapped_linear(layer: MXLinear, name: str, tap: Callable[[Tensor], None]) -> Iterator[None]:
    """Have ``tap`` called, while the context lasts, with what a layer multiplies by the matrix of this name."""
    layer.taps[name] = tap
    try:
        yield
    finally:
        del layer.taps[name]


@contextmanager
def _tapped_experts(experts: MXExperts, tap: ExpertsTap) -> Iterator[None]:
    """Have ``tap`` called, while the context lasts, with what a module of experts multiplies."""
    experts.tap = tap
    try:
        yield
    finally:
        experts.tap = None
