"""Solve for weights layer by layer, each on the inputs that it gets from the quantized layers before it.

Legend: a group is the linear layers of a decoder block that read the same tensor (q, k and v; gate and up); x (tokens,
C) what they multiply by their weights W (N, C), rotated and quantized as in the run; H = 2 x^T x / tokens (C, C) the
Hessian of the squared output error in a row of W (GPTQ, arXiv 2210.17323, equation 2).

The hidden states of all calibration sequences wait in front of a block. Within it, group by group in the order of the
forward pass: the block is run up to the group, H is summed up, the group's weights are solved for and take their place,
so that the next group sees their effect. Then the block is run once more for the states in front of the next one.

A block that is finished is kept on disk: an interrupted calibration goes on behind the finished ones. A block whose
batches do not fit in GPU memory is solved anew in batches of half the size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.block_states import BlockStates
from mxsweep.formats.recipe import Prepared, Recipe
from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.linear import MXLinear
from mxsweep.model.quantize import quantize_model
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics import MXFormat
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

Solver = Callable[[Tensor, Tensor | None, MXFormat], Tensor]
"""Return the quantized weight (N, C) float32 for a weight (N, C) float32, H (C, C) float32 if needed, and a format."""


@dataclass(frozen=True)
class SolvedWeights:
    """Hold quantized weights by module name, in the model's dtype, in host memory.

    Attributes:
        blocks: how many decoder blocks there are.
        blocks_kept: how many of these were finished before, and kept on disk.
    """

    weights: dict[str, Tensor]
    blocks: int
    blocks_kept: int


class _Enough(Exception):
    """End a forward pass whose rest is not needed."""


@torch.no_grad()
def solve_weights(
    model: PreTrainedModel,
    recipe: Recipe,
    prepared: Prepared,
    batches: Sequence[Tensor],
    solve: Solver,
    artefact: Artefact | None = None,
    progress: Progress = silent,
) -> SolvedWeights:
    """Solve for the weights of all linear layers in the decoder blocks that ``recipe`` quantizes.

    Args:
        model: as it is; it is quantized inside, and afterwards as before.
        prepared: what else was worked out, as key factors; its weights are not looked at.
        batches: the calibration sequences, ids (B, T) without padding.
        artefact: where finished blocks are kept; None for nowhere.

    Raises:
        ConfigError: as :func:`mxsweep.model.quantize.quantize_model`; a model without decoder blocks; states of the
            sequences that do not fit in memory.
    """
    blocks = decoder_blocks(model)
    if not blocks:
        raise ConfigError(f"ptq.method: {type(model).__name__} has no decoder blocks to calibrate; allowed: rtn")
    sites = [site for site in find_sites(model, recipe) if site.formats.weight is not None and site.operand.is_linear]
    formats = {site.name: site.formats.weight for site in sites if site.formats.weight is not None}
    weights: dict[str, Tensor] = {}
    kept = 0
    with quantize_model(model, recipe, prepared=prepared, keep_weights=True):
        finished = [artefact.load(_part(index)) if artefact else None for index in range(len(blocks))]
        states: BlockStates | None = None
        for index, name in enumerate(blocks):
            layers = {site.name: _mx_layer(model, site) for site in sites if site.operand.block == name}
            of_block = finished[index]
            if of_block is not None and of_block.keys() == layers.keys():
                kept += 1
                _put_in_place(layers, of_block)
            elif layers:
                if states is None:
                    states = BlockStates(model, list(blocks.values()), index, batches)
                of_block = states.within_memory(partial(_solve_block, states, layers, solve, formats))
                if artefact is not None:
                    artefact.save(_part(index), of_block)
            weights |= of_block or {}
            if states is not None and index + 1 < len(blocks):
                states.within_memory(states.advance)
            progress(index + 1, len(blocks))
    return SolvedWeights(weights, len(blocks), kept)


def _part(index: int) -> str:
    return f"block_{index:04d}"


def _mx_layer(model: nn.Module, site: Site) -> MXLinear:
    layer = model.get_submodule(site.operand.module_name)
    assert isinstance(layer, MXLinear)
    return layer


def _put_in_place(layers: dict[str, MXLinear], weights: dict[str, Tensor]) -> None:
    for name, layer in layers.items():
        layer.replace(name, weights[name].to(layer.weight_mx.device, layer.weight_mx.dtype))


def _solve_block(
    states: BlockStates, layers: dict[str, MXLinear], solve: Solver, formats: Mapping[str, MXFormat]
) -> dict[str, Tensor]:
    """Solve for a block's weights and put them in place; after an error, the weights are as they were."""
    before = {name: layer.matrix(name) for name, layer in layers.items()}
    try:
        return _solve_groups(states, layers, solve, formats)
    except BaseException:
        for name, layer in layers.items():
            layer.replace(name, before[name])
            layer.inputs.forget()
        raise


def _solve_groups(
    states: BlockStates, layers: dict[str, MXLinear], solve: Solver, formats: Mapping[str, MXFormat]
) -> dict[str, Tensor]:
    solved: dict[str, Tensor] = {}
    for group in _groups(states, layers):
        hessian = _hessian(states, group[0], layers[group[0]])
        if not bool(hessian.isfinite().all()):
            raise ConfigError(
                f"ptq.method: on the calibration tokens the inputs of {group[0]} are not finite, so its weights cannot "
                "be calibrated; allowed: rtn, clip with ptq.clip_loss=weight, or scales with a wider range"
            )
        # One solution for all that share a format as well: their rows are independent of each other.
        for fmt in dict.fromkeys(formats[name] for name in group):
            names = [name for name in group if formats[name] == fmt]
            # A tile's rows, and a per-tensor scale, belong to one weight.
            apart = fmt.tensor_scale or not isinstance(fmt.block_size, int)
            for together in [[name] for name in names] if apart else [names]:
                rows = [layers[name].matrix(name).float() for name in together]
                solution = _solution(together[0], solve, torch.cat(rows), hessian, fmt)
                for name, part in zip(together, solution.split([len(weight) for weight in rows]), strict=True):
                    chosen = part.to(layers[name].weight.dtype)
                    layers[name].replace(name, chosen)
                    solved[name] = chosen.to("cpu")
    return solved


def _solution(name: str, solve: Solver, weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Tensor:
    try:
        return solve(weight, hessian, fmt)
    except ValueError as error:
        raise ConfigError(
            f"ptq.method: the weights of {name} cannot be calibrated: {error}; allowed: rtn, a larger ptq.damping, or "
            "more calibration.samples"
        ) from error


def _groups(states: BlockStates, layers: dict[str, MXLinear]) -> list[list[str]]:
    """Return the layers that multiply one and the same tensor, in the order of the forward pass."""
    seen: list[tuple[Tensor, list[str]]] = []

    def tap(name: str) -> Callable[[Tensor], None]:
        def note(x: Tensor) -> None:
            for other, names in seen:
                if other is x:
                    names.append(name)
                    return
            seen.append((x, [name]))

        return note

    with _tapped({name: (layer, tap(name)) for name, layer in layers.items()}):
        states.run(0)
    reached = {name for _, names in seen for name in names}
    if missing := [name for name in layers if name not in reached]:
        raise ConfigError(
            f"ptq.method: {missing[0]} was not reached by calibration data, so it cannot be calibrated; "
            f"allowed: rtn, or modules={{{missing[0]}: none}}"
        )
    return [names for _, names in seen]


def _hessian(states: BlockStates, name: str, layer: MXLinear) -> Tensor:
    """Return H (C, C) float32 of what a layer multiplies by the matrix of this name, over all calibration tokens."""
    hessian = torch.zeros(layer.in_features, layer.in_features, dtype=torch.float32, device=layer.weight_mx.device)
    tokens = 0

    def add(x: Tensor) -> None:
        nonlocal tokens
        x = x.flatten(0, -2).float()
        hessian.addmm_(x.T, x, alpha=2.0)
        tokens += len(x)
        raise _Enough

    with _tapped({name: (layer, add)}):
        for number in range(states.count):
            try:
                states.run(number)
            except _Enough:
                layer.inputs.forget()
    return hessian.div_(max(tokens, 1))


class _tapped:
    """Have functions called, while the context lasts, with what layers multiply by their weights."""

    def __init__(self, taps: dict[str, tuple[MXLinear, Callable[[Tensor], None]]]) -> None:
        self._taps = taps

    def __enter__(self) -> None:
        for name, (layer, tap) in self._taps.items():
            layer.taps[name] = tap

    def __exit__(self, *_: object) -> None:
        for name, (layer, _tap) in self._taps.items():
            del layer.taps[name]
