"""Solve for weights layer by layer, each on the inputs that it gets from the quantized layers before it.

Legend: a stage is what is solved for between two passes over a decoder block, as q, k and v, which read one tensor, or
gate and up of all experts (:mod:`mxsweep.calibrate.stages`); H = 2 x^T x / tokens (C, C) the Hessian of the squared
output error in a row of a weight W (N, C) with inputs x (GPTQ, arXiv 2210.17323, equation 2).

The hidden states of all calibration sequences wait in front of a block. Within it, stage by stage in the order of the
forward pass: the block is run up to the stage, H is summed up, the stage's weights are solved for and take their place,
so that the next stage sees their effect. Then the block is run once more for the states in front of the next one.

A block that is finished is kept on disk: an interrupted calibration goes on behind the finished ones. A block whose
batches do not fit in GPU memory is solved anew in batches of half the size: sums come in another order.

Experts. An expert's H is of the tokens that reach it, which may be few: H of fewer tokens than channels is singular,
and GPTQ fits the weights to directions that happened to be seen, at the cost of all others. How far that goes was
measured on 14 weights of the embedded model (gate, down and q, in fp4_e2m1 and int4, 128 or 256 channels), by the
output error on 15,866 other tokens, over that of rounding to nearest; in the mean, with the default damping:

    tokens / channels    1/32  1/16   1/8   1/4   1/2     1     4
    GPTQ                 2.95  2.11  0.93  0.60  0.46  0.39  0.33

and 1.00 for rounding on searched scales. From a quarter on each of the 14 was better than rounded; at an eighth 4 were
not. So with fewer tokens than ``LEAST_TOKENS`` of its channels, or none, an expert's matrix is solved for with H = I:
it is rounded to nearest on the scales of least weight error. With fewer than its channels it is solved for with the H
that it has. Both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.block_states import BlockStates
from mxsweep.calibrate.encoded_weights import as_tensors, from_tensors
from mxsweep.calibrate.stages import InputHessian, Matrices, find_stages, stage_hessians
from mxsweep.calibrate.tuned import Errors, Tuned, Tuning
from mxsweep.formats.recipe import Recipe
from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics import Encoded, MXFormat, decode
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

LEAST_TOKENS = 0.25  # of an expert's channels

Solver = Callable[..., Encoded]
"""Return codes and scales for a weight (N, C) float32, given H (C, C) float32 if needed, a format and, by the name
``tensor_amax``, what a per-tensor scale is made from that several weights share."""

Tuner = Callable[[BlockStates, Matrices, Sequence[Site], Mapping[str, Encoded]], Tuned]
"""Return other codes for the weights of a block, all of them in place, and put those in place; and what that gains."""


class NotSolvable(ConfigError):
    """Refuse to solve for weights, whose inputs are not finite on the calibration tokens, or whose Hessian is none."""


def given(tensor_amax: Tensor | None) -> dict[str, Tensor]:
    """Return the argument of a solver by its name; nothing where the weight's per-tensor scale is its own."""
    return {} if tensor_amax is None else {"tensor_amax": tensor_amax}


@dataclass(frozen=True)
class ExpertTokens:
    """Count experts by how many calibration tokens reach them; an expert is of one layer.

    Attributes:
        experts: with a matrix that is solved for.
        unreached: of these, those that no token reaches.
        rounded: those with a matrix that too few tokens reach to be solved for with its H, the unreached included.
        few: those with a matrix that fewer tokens reach than it has channels, the rounded included.
        fewest: tokens of an expert that is not rounded; None where all are.
    """

    experts: int
    unreached: int
    rounded: int
    few: int
    fewest: int | None


@dataclass(frozen=True)
class SolvedWeights:
    """Hold quantized weights by operand name, of the model's dtype, in host memory.

    Attributes:
        blocks: how many decoder blocks there are.
        blocks_kept: how many of these were finished before, and kept on disk.
        experts: what reached the experts; None where none was solved for.
        tuning: what tuning did to the blocks; None where none was tuned.
    """

    weights: dict[str, Encoded]
    blocks: int
    blocks_kept: int
    experts: ExpertTokens | None = None
    tuning: Tuning | None = None


@dataclass
class _Block:
    """Hold what is solved for in a decoder block: weights by name, the tokens that reached those of experts, errors."""

    weights: dict[str, Encoded] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    errors: Errors | None = None  # of a tuned one


@torch.no_grad()
def solve_weights(
    model: PreTrainedModel,
    recipe: Recipe,
    prepared: Prepared,
    batches: Sequence[Tensor],
    solve: Solver,
    artefact: Artefact | None = None,
    progress: Progress = silent,
    tune: Tuner | None = None,
) -> SolvedWeights:
    """Solve for the weights of all linear layers and experts in the decoder blocks that ``recipe`` quantizes.

    Args:
        model: as it is; it is quantized inside, and afterwards as before.
        prepared: what else was worked out, as key factors; its weights are not looked at.
        batches: the calibration sequences, ids (B, T) without padding.
        artefact: where finished blocks are kept; None for nowhere.
        tune: changes the weights of a block once all are solved for; None to leave them.

    Raises:
        NotSolvable: inputs that are not finite, or a Hessian that cannot be inverted.
        ConfigError: as :func:`mxsweep.model.quantize.quantize_model`; a model without decoder blocks; states of the
            sequences that do not fit in memory.
    """
    blocks = decoder_blocks(model)
    if not blocks:
        raise ConfigError(f"ptq.method: {type(model).__name__} has no decoder blocks to calibrate; allowed: rtn")
    found = find_sites(model, recipe, prepared.input_transforms)
    sites = [site for site in found if site.formats.weight is not None and site.operand.is_linear]
    maxima = shared_maxima(sites, recipe)
    weights: dict[str, Encoded] = {}
    tokens: dict[str, int] = {}
    errors: dict[int, Errors] = {}
    kept = 0
    with quantize_model(model, recipe, prepared=prepared, keep_weights=True):
        states: BlockStates | None = None
        for index, name in enumerate(blocks):
            of_block = [site for site in sites if site.operand.block == name]
            matrices = Matrices(model, of_block)
            block = _kept(artefact, index, of_block, tune is not None)
            if block is not None:
                kept += 1
                for matrix, weight in block.weights.items():
                    matrices.put_encoded(matrix, weight)
            elif of_block:
                if states is None:
                    states = BlockStates(model, list(blocks.values()), index, batches)
                block = states.within_memory(partial(_solve_block, states, matrices, of_block, solve, maxima, tune))
                _keep(artefact, index, block)
            if block is not None:
                weights, tokens = weights | block.weights, tokens | block.tokens
                if block.errors is not None:
                    errors[index] = block.errors
            if states is not None and index + 1 < len(blocks):
                states.within_memory(states.advance)
            progress(index + 1, len(blocks))
    return SolvedWeights(weights, len(blocks), kept, _count(sites, tokens), Tuning.of(errors) if errors else None)


def _kept(artefact: Artefact | None, index: int, sites: Sequence[Site], is_tuned: bool) -> _Block | None:
    """Return a block that was finished before; None where it was not, or nothing is solved for in it."""
    kept = artefact.load(_part(index)) if artefact is not None and sites else None
    weights = None if kept is None else from_tensors(kept, sites)
    if artefact is None or weights is None:
        return None
    block = _Block(weights)
    if is_tuned:
        errors = artefact.load_json(f"{_part(index)}_errors")
        if errors is None:
            return None
        block.errors = Errors(**errors)
    if any(site.operand.expert is not None for site in sites):
        tokens = artefact.load_json(f"{_part(index)}_tokens")
        if tokens is None:
            return None
        block.tokens = tokens
    return block


def _keep(artefact: Artefact | None, index: int, block: _Block) -> None:
    if artefact is None:
        return
    # The weights at last: they say that a block is finished.
    if block.errors is not None:
        artefact.save_json(f"{_part(index)}_errors", asdict(block.errors))
    if block.tokens:
        artefact.save_json(f"{_part(index)}_tokens", block.tokens)
    artefact.save(_part(index), as_tensors(block.weights))


def _part(index: int) -> str:
    return f"block_{index:04d}"


def _solve_block(
    states: BlockStates,
    matrices: Matrices,
    sites: Sequence[Site],
    solve: Solver,
    maxima: Mapping[str, Tensor],
    tune: Tuner | None,
) -> _Block:
    """Solve for a block's weights and put them in place; after an error, the weights are as they were."""
    block, by_name = _Block(), {site.name: site for site in sites}
    with matrices.restored_after_an_error():
        for stage in find_stages(states, matrices):
            for hessians in stage_hessians(states, matrices, stage):
                for names, of_input in hessians.items():
                    _solve_input(matrices, [by_name[name] for name in names], of_input, solve, maxima, block)
        if tune is not None:
            tuned = tune(states, matrices, sites, block.weights)
            block.weights, block.errors = tuned.weights, tuned.errors
    return block


def _solve_input(
    matrices: Matrices,
    sites: Sequence[Site],
    of_input: InputHessian,
    solve: Solver,
    maxima: Mapping[str, Tensor],
    block: _Block,
) -> None:
    """Solve for the weights that read one input, and put them in place; `maxima` are of shared per-tensor scales."""
    hessian = of_input.hessian
    if not bool(hessian.isfinite().all()):
        raise NotSolvable(
            f"ptq.method: on the calibration tokens the inputs of {sites[0].name} are not finite, so its weights "
            "cannot be calibrated; allowed: rtn, clip with ptq.clip_loss=weight, or scales with a wider range"
        )
    if sites[0].operand.expert is not None:
        block.tokens |= dict.fromkeys((site.name for site in sites), of_input.tokens)
        if of_input.tokens < LEAST_TOKENS * len(hessian):
            hessian = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    # One solution for all that share a format as well: their rows are independent of each other.
    for fmt in dict.fromkeys(site.formats.weight for site in sites):
        assert fmt is not None
        names = [site.name for site in sites if site.formats.weight == fmt]
        # A tile's rows, and a per-tensor scale, belong to one weight.
        apart = fmt.tensor_scale or not isinstance(fmt.block_size, int)
        for together in [[name] for name in names] if apart else [names]:
            rows = [matrices.weight(name).float() for name in together]
            solution = _solution(together[0], solve, torch.cat(rows), hessian, fmt, maxima.get(together[0]))
            parts = [solution] if apart else solution.split([len(weight) for weight in rows])
            for name, part in zip(together, parts, strict=True):
                quantized = replace(part, dtype=matrices.weight(name).dtype)
                matrices.put(name, decode(quantized))
                block.weights[name] = quantized.to("cpu")


def _solution(
    name: str, solve: Solver, weight: Tensor, hessian: Tensor, fmt: MXFormat, tensor_amax: Tensor | None
) -> Encoded:
    try:
        return solve(weight, hessian, fmt, **given(tensor_amax))
    except ValueError as error:
        raise NotSolvable(
            f"ptq.method: the weights of {name} cannot be calibrated: {error}; allowed: rtn, a larger ptq.damping, or "
            "more calibration.samples"
        ) from error


def _count(sites: Sequence[Site], tokens: Mapping[str, int]) -> ExpertTokens | None:
    """Count the experts by the tokens that reached their matrices; None without experts."""
    channels: dict[tuple[str, int], int] = {}
    reached: dict[tuple[str, int], int] = {}
    for site in sites:
        if site.name in tokens and site.operand.expert is not None:
            expert = site.operand.module_name, site.operand.expert.expert
            channels[expert] = max(channels.get(expert, 0), site.operand.shape[1])
            reached[expert] = min(reached.get(expert, tokens[site.name]), tokens[site.name])
    if not reached:
        return None
    enough = [count for expert, count in reached.items() if count >= LEAST_TOKENS * channels[expert]]
    return ExpertTokens(
        experts=len(reached),
        unreached=sum(not count for count in reached.values()),
        rounded=len(reached) - len(enough),
        few=sum(count < channels[expert] for expert, count in reached.items()),
        fewest=min(enough, default=None),
    )
