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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.formats.recipe import Prepared, Recipe
from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.linear import MXLinear
from mxsweep.model.quantize import quantize_model
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

T = TypeVar("T")

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
        streams: _Streams | None = None
        for index, name in enumerate(blocks):
            layers = {site.name: _mx_layer(model, site.name) for site in sites if site.operand.block == name}
            of_block = finished[index]
            if of_block is not None and of_block.keys() == layers.keys():
                kept += 1
                _put_in_place(layers, of_block)
            elif layers:
                if streams is None:
                    streams = _Streams(model, list(blocks.values()), index, batches)
                of_block = streams.within_memory(partial(_solve_block, streams, layers, solve, formats))
                if artefact is not None:
                    artefact.save(_part(index), of_block)
            weights |= of_block or {}
            if streams is not None and index + 1 < len(blocks):
                streams.within_memory(streams.advance)
            progress(index + 1, len(blocks))
    return SolvedWeights(weights, len(blocks), kept)


def _part(index: int) -> str:
    return f"block_{index:04d}"


def _mx_layer(model: nn.Module, name: str) -> MXLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, MXLinear)
    return layer


def _put_in_place(layers: dict[str, MXLinear], weights: dict[str, Tensor]) -> None:
    for name, layer in layers.items():
        layer.weight_mx = weights[name].to(layer.weight_mx.device, layer.weight_mx.dtype)


def _solve_block(
    streams: _Streams, layers: dict[str, MXLinear], solve: Solver, formats: Mapping[str, MXFormat]
) -> dict[str, Tensor]:
    """Solve for a block's weights and put them in place; after an error, the weights are as they were."""
    before = {name: layer.weight_mx for name, layer in layers.items()}
    try:
        return _solve_groups(streams, layers, solve, formats)
    except BaseException:
        for name, layer in layers.items():
            layer.weight_mx = before[name]
            layer.inputs.forget()
        raise


def _solve_groups(
    streams: _Streams, layers: dict[str, MXLinear], solve: Solver, formats: Mapping[str, MXFormat]
) -> dict[str, Tensor]:
    solved: dict[str, Tensor] = {}
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
                solution = _solution(together[0], solve, torch.cat(rows), hessian, fmt)
                for name, part in zip(together, solution.split([len(weight) for weight in rows]), strict=True):
                    layers[name].weight_mx = part.to(layers[name].weight.dtype)
                    solved[name] = layers[name].weight_mx.to("cpu")
    return solved


def _solution(name: str, solve: Solver, weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Tensor:
    try:
        return solve(weight, hessian, fmt)
    except ValueError as error:
        raise ConfigError(
            f"ptq.method: the weights of {name} cannot be calibrated: {error}; allowed: rtn, a larger ptq.damping, or "
            "more calibration.samples"
        ) from error


def _groups(streams: _Streams, layers: dict[str, MXLinear]) -> list[list[str]]:
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
        streams.run(0)
    reached = {name for _, names in seen for name in names}
    if missing := [name for name in layers if name not in reached]:
        raise ConfigError(
            f"ptq.method: {missing[0]} was not reached by calibration data, so it cannot be calibrated; "
            f"allowed: rtn, or modules={{{missing[0]}: none}}"
        )
    return [names for _, names in seen]


def _hessian(streams: _Streams, layer: MXLinear) -> Tensor:
    """Return H (C, C) float32 of what a layer multiplies, over all calibration tokens."""
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
    """Have functions called, while the context lasts, with what layers multiply by their weights."""

    def __init__(self, taps: dict[str, tuple[MXLinear, Callable[[Tensor], None]]]) -> None:
        self._taps = taps

    def __enter__(self) -> None:
        for layer, tap in self._taps.values():
            layer.tap = tap

    def __exit__(self, *_: object) -> None:
        for layer, _tap in self._taps.values():
            layer.tap = None


class _Streams:
    """Hold the hidden states of each batch in front of a block, and what else the block is called with.

    The whole model computes the states when work on them begins, and again after batches were halved.

    Args:
        index: of the block to begin with; those before it are as they will be.
        batches: ids (B, T) without padding.
    """

    def __init__(
        self, model: PreTrainedModel, blocks: Sequence[nn.Module], index: int, batches: Sequence[Tensor]
    ) -> None:
        self._model, self._blocks, self._index, self._batches = model, blocks, index, list(batches)
        self._calls: list[list[Any]] = []
        self._states: list[Tensor] | None = None

    @property
    def count(self) -> int:
        """Return how many batches there are."""
        return len(self._batches)

    def run(self, number: int) -> Tensor:
        """Return the block's output for a batch; called within :meth:`within_memory`."""
        assert self._states is not None
        args, kwargs = self._calls[self._index][number]
        output = self._blocks[self._index](self._states[number], *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def advance(self) -> None:
        """Go on to the next block."""
        self._states = [self.run(number) for number in range(self.count)]
        self._index += 1

    def within_memory(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns; where GPU memory runs out, do it again with batches of half the size.

        Raises:
            ConfigError: memory runs out with one sequence in each batch.
        """
        while True:
            try:
                if self._states is None:  # read here, before ``work`` listens to any layer
                    self._states = self._read()
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Here, where the error is gone, and with it the frames that hold the tensors of the failed pass.
            self._halve()

    def _halve(self) -> None:
        if max(len(batch) for batch in self._batches) == 1:
            sequences, longest = self.count, max(batch.shape[1] for batch in self._batches)
            raise ConfigError(
                f"calibration.samples: the states of {sequences:,} sequences of up to {longest:,} tokens do not fit in "
                "GPU memory; allowed: fewer of them, or a smaller calibration.length"
            )
        self._batches = [half for batch in self._batches for half in batch.chunk(2)]
        self._states, self._calls = None, []
        torch.cuda.empty_cache()

    def _read(self) -> list[Tensor]:
        """Return the states of each batch in front of the block, and note how each block from there on is called."""
        states: list[Tensor] = []
        self._calls = [[] for _ in self._blocks]

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
            for batch in self._batches:
                # The decoder alone: nobody asks for logits.
                self._model.get_decoder()(input_ids=batch.to(self._model.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return states
