"""Weights quantized layer by layer, each on the inputs that it gets from the quantized layers before it.

Legend: a group is the linear layers of a decoder block that read the same tensor (q, k and v; gate and up); x (tokens,
C) what they multiply by their weights W (N, C), rotated and quantized as in the run; H = 2 x^T x / tokens (C, C) the
Hessian of the squared output error in a row of W (GPTQ, arXiv 2210.17323, equation 2).

The hidden states of all calibration sequences wait in front of a block. Within it, group by group in the order of the
forward pass: the block is run up to the group, H is summed up, the group's weights are solved for and take their place,
so that the next group sees their effect. Then the block is run once more for the states in front of the next one.

A block that is finished is kept on disk: an interrupted calibration goes on behind the finished ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.formats.recipe import Prepared, Recipe
from mxsweep.forward.batches import Batch
from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.linear import MXLinear
from mxsweep.model.quantize import quantize_model
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

Solver = Callable[[Tensor, Tensor | None, MXFormat], Tensor]
"""The quantized weight (N, C) float32 for a weight (N, C) float32, H (C, C) float32 if it is needed, and a format."""


@dataclass(frozen=True)
class Solved:
    """Quantized weights by module name, in the model's dtype, in host memory; how many blocks were kept from before."""

    weights: dict[str, Tensor]
    blocks: int
    blocks_kept: int


class _Enough(Exception):
    """Ends a forward pass whose rest is not needed."""


@torch.no_grad()
def solve_weights(
    model: PreTrainedModel,
    recipe: Recipe,
    prepared: Prepared,
    batches: Sequence[Batch],
    solve: Solver,
    artefact: Artefact | None = None,
    progress: Progress = silent,
) -> Solved:
    """Solve for the weights of all linear layers in the decoder blocks that ``recipe`` quantizes.

    Args:
        model: as it is; it is quantized inside, and afterwards as before.
        prepared: what else was worked out, as key factors; its weights are not looked at.
        batches: the calibration sequences.
        artefact: where finished blocks are kept; None for nowhere.

    Raises:
        ConfigError: as :func:`mxsweep.model.quantize.quantize_model`; a model without decoder blocks.
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
        streams: _Streams | None = None
        for index, name in enumerate(blocks):
            layers = {site.name: _mx_layer(model, site.name) for site in sites if site.operand.block == name}
            found = finished[index]
            if found is not None and found.keys() == layers.keys():
                kept += 1
                _take(layers, found)
            elif layers:
                if streams is None:
                    streams = _Streams(model, list(blocks.values()), index, batches)
                found = _solve_block(streams, layers, solve, formats)
                if artefact is not None:
                    artefact.save(_part(index), found)
            weights |= found or {}
            if streams is not None and index + 1 < len(blocks):
                streams.advance()
            progress(index + 1, len(blocks))
    return Solved(weights, len(blocks), kept)


def _part(index: int) -> str:
    return f"block_{index:04d}"


def _mx_layer(model: nn.Module, name: str) -> MXLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, MXLinear)
    return layer


def _take(layers: dict[str, MXLinear], weights: dict[str, Tensor]) -> None:
    for name, layer in layers.items():
        layer.weight_mx = weights[name].to(layer.weight_mx.device, layer.weight_mx.dtype)


def _solve_block(
    streams: _Streams, layers: dict[str, MXLinear], solve: Solver, formats: Mapping[str, MXFormat]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for group in _groups(streams, layers):
        hessian = _hessian(streams, layers[group[0]])
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
                rows = [layers[name].weight_mx.float() for name in together]
                answer = _solution(together[0], solve, torch.cat(rows), hessian, fmt)
                for name, part in zip(together, answer.split([len(own) for own in rows]), strict=True):
                    layers[name].weight_mx = part.to(layers[name].weight.dtype)
                    found[name] = layers[name].weight_mx.to("cpu")
    return found


def _solution(name: str, solve: Solver, weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Tensor:
    try:
        return solve(weight, hessian, fmt)
    except ValueError as error:
        raise ConfigError(
            f"ptq.method: the weights of {name} cannot be calibrated: {error}; allowed: rtn, a larger ptq.damping, or "
            "more calibration.samples"
        ) from error


def _groups(streams: _Streams, layers: dict[str, MXLinear]) -> list[list[str]]:
    """The layers that multiply one and the same tensor, in the order of the forward pass."""
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
        streams.run(0)
    reached = {name for _, names in seen for name in names}
    if missing := [name for name in layers if name not in reached]:
        raise ConfigError(
            f"ptq.method: {missing[0]} was not reached by calibration data, so it cannot be calibrated; "
            f"allowed: rtn, or modules={{{missing[0]}: none}}"
        )
    return [names for _, names in seen]


def _hessian(streams: _Streams, layer: MXLinear) -> Tensor:
    """H (C, C) float32 of what a layer multiplies, over all calibration tokens."""
    hessian = torch.zeros(layer.in_features, layer.in_features, dtype=torch.float32, device=layer.weight_mx.device)
    tokens = 0

    def add(x: Tensor) -> None:
        nonlocal tokens
        x = x.flatten(0, -2).float()
        hessian.addmm_(x.T, x, alpha=2.0)
        tokens += len(x)
        raise _Enough

    with _tapped({"": (layer, add)}):
        for number in range(streams.count):
            try:
                streams.run(number)
            except _Enough:
                layer.inputs.forget()
    return hessian.div_(max(tokens, 1))


class _tapped:
    """While the context lasts, tell of what layers multiply by their weights."""

    def __init__(self, taps: dict[str, tuple[MXLinear, Callable[[Tensor], None]]]) -> None:
        self._taps = taps

    def __enter__(self) -> None:
        for layer, tap in self._taps.values():
            layer.tap = tap

    def __exit__(self, *_: object) -> None:
        for layer, _tap in self._taps.values():
            layer.tap = None


class _Streams:
    """The hidden states of each batch in front of a block, and what else the block is called with.

    Args:
        index: of the block to begin with; those before it are as they will be.
    """

    def __init__(
        self, model: PreTrainedModel, blocks: Sequence[nn.Module], index: int, batches: Sequence[Batch]
    ) -> None:
        self.count = len(batches)
        self._model, self._blocks, self._index = model, blocks, index
        self._calls: list[list[Any]] = [[] for _ in blocks]
        self._states = self._read(batches)

    def run(self, number: int) -> Tensor:
        """The block's output for a batch."""
        args, kwargs = self._calls[self._index][number]
        answer = self._blocks[self._index](self._states[number], *args, **kwargs)
        return answer[0] if isinstance(answer, tuple) else answer

    def advance(self) -> None:
        """On to the next block."""
        self._states = [self.run(number) for number in range(self.count)]
        self._index += 1

    def _read(self, batches: Sequence[Batch]) -> list[Tensor]:
        states: list[Tensor] = []

        def note(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if number == self._index:
                    states.append(args[0] if args else kwargs["hidden_states"])
                rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
                self._calls[number].append((args[1:], rest))

            return hook

        blocks = enumerate(self._blocks)
        handles = [block.register_forward_pre_hook(note(number), with_kwargs=True) for number, block in blocks]
        try:
            for batch in batches:
                # The decoder alone: nobody asks for logits.
                self._model.get_decoder()(input_ids=batch.to(self._model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return states
