"""Work out the matrices that the blocks of inputs are multiplied by under ``rotation=wush``, on calibration data.

The model reads the calibration sequences as it is, unquantized. Of each input the second moments of its blocks are
summed up over the tokens, and those of the weights that read it over their rows; numerics/wush.py makes the matrices of
both. Layers that read one tensor share its matrices. So do all experts of a module: what they read is transformed
before it is known which of them a token goes to, and what they read between their matrices at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.inputs import read_calibration, weights_alone
from mxsweep.calibrate.kept_transforms import as_tensors, from_tensors
from mxsweep.calibrate.workbench import Workbench
from mxsweep.config.run_identity import WUSH_RULE
from mxsweep.files.digests import json_digest
from mxsweep.formats.recipe import Recipe
from mxsweep.model.experts import MXExperts
from mxsweep.model.linear import MXLinear
from mxsweep.model.quantize import quantize_model
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics.bases import BlockTransform
from mxsweep.numerics.wush import wush
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

MOST_CONDITION = 1e6  # of a matrix: float32 holds its inverse to a few digits at least
ROWS = 4096  # that are summed up at a time: in float64 they take memory


def calibrate_transforms(bench: Workbench) -> None:
    """Work out the matrices of every input that the recipe puts into a basis of its own."""
    recipe = bench.result.recipe
    assert recipe.rotation is not None
    read_by = {name: [site.name for site in sites] for name, sites in _readers(bench.model, recipe).items()}
    if not read_by:  # all that the rotation names stays as it is, by modules
        return
    artefact = bench.artefact(
        "transforms", None, block=recipe.rotation.block, rule=WUSH_RULE, read_by=json_digest(read_by)
    )
    with artefact.lock(), bench.accounted("wush", [artefact]) as account:
        kept = artefact.load("matrices")
        account["cached"] = kept is not None
        transforms = None if kept is None else from_tensors(kept)
        if transforms is None:
            transforms = measure_transforms(bench.model, recipe, lambda: read_calibration(bench))
            artefact.save("matrices", as_tensors(transforms))
        account["inputs"] = len(transforms)
        account["matrix_elements"] = sum(one.numel() for one in as_tensors(transforms).values())
        account["largest_condition"] = max(one.condition for one in transforms.values())
    log.info(
        "WUSH: the blocks of %d inputs have matrices of their own, of condition numbers up to %.3g",
        account["inputs"],
        account["largest_condition"],
    )
    bench.result.prepared = replace(bench.result.prepared, input_transforms=transforms)


@torch.no_grad()
def measure_transforms(model: PreTrainedModel, recipe: Recipe, read: Callable[[], object]) -> dict[str, BlockTransform]:
    """Return the matrices of every input that ``recipe`` puts into a basis of its own.

    Args:
        model: unquantized, as it is while it reads.
        read: has the model read the calibration sequences, without padding.

    Returns:
        In host memory, by :attr:`Site.input_name`.

    Raises:
        ConfigError: an input that no token reaches; inputs or weights that are not finite, or of sizes so far apart
            that float32 does not hold the matrices.
    """
    assert recipe.rotation is not None
    readers, order = _readers(model, recipe), recipe.rotation.block
    seen = {name: Moments(sites[0].operand.shape[1], order) for name, sites in readers.items()}
    input_of = {site.name: name for name, sites in readers.items() for site in sites}

    def note_experts(_: str, reads: Sequence[tuple[tuple[str, ...], Tensor]]) -> None:
        for names, rows in reads:
            for name in {input_of[name] for name in names if name in input_of}:
                seen[name].add(rows)

    with quantize_model(model, weights_alone(replace(recipe, rotation=None)), keep_weights=True):
        for name, sites in readers.items():
            module = model.get_submodule(sites[0].operand.module_name)
            if isinstance(module, MXLinear):
                module.taps[sites[0].name] = seen[name].add
            elif isinstance(module, MXExperts):
                module.tap = note_experts
        read()
    return {name: _transform_of(sites, seen[name]) for name, sites in readers.items()}


class Moments:
    """Sum up the second moments of rows, block by block.

    Args:
        width: of a row.
        order: channels of a block; the last is shorter where ``order`` does not divide ``width``.

    Attributes:
        order: channels of a whole block, those of a row at most.
        count: rows so far.
    """

    def __init__(self, width: int, order: int) -> None:
        self.order = min(order, width)
        self.count = 0
        self._whole: Tensor | None = None
        self._rest: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows (..., C)."""
        for part in rows.detach().flatten(0, -2).split(ROWS):
            # float64 holds the square of every float32; an MPS device has none.
            wide = (part.cpu() if part.device.type == "mps" else part).double()
            blocks = wide.shape[1] // self.order
            inside, rest = wide[:, : blocks * self.order], wide[:, blocks * self.order :]
            by_block = inside.unflatten(1, (blocks, self.order)).permute(1, 2, 0)
            self._whole = _added(self._whole, by_block @ by_block.mT)
            self._rest = _added(self._rest, (rest.T @ rest)[None])
            self.count += len(part)

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the mean over the rows: (n, b, b) of the whole blocks, (1, r, r) of the last, r maybe 0; float64."""
        assert self._whole is not None and self._rest is not None
        return self._whole.cpu() / self.count, self._rest.cpu() / self.count


def _added(so_far: Tensor | None, more: Tensor) -> Tensor:
    return more if so_far is None else so_far + more.to(so_far.device)


def _readers(model: PreTrainedModel, recipe: Recipe) -> dict[str, list[Site]]:
    """Return the sites of a recipe whose inputs get matrices of their own, by the names of what they read."""
    readers: dict[str, list[Site]] = {}
    for site in find_sites(model, recipe):
        if site.has_own_basis:
            readers.setdefault(site.input_name, []).append(site)
    return readers


def _transform_of(sites: Sequence[Site], read: Moments) -> BlockTransform:
    """Return the matrices of what sites read."""
    refusal = partial(_refusal, sites[0].name)
    if not read.count:
        raise refusal("is read by no calibration token", ", or more calibration.samples")
    rows = Moments(sites[0].operand.shape[1], read.order)
    for site in sites:
        rows.add(site.operand.weight)
    of_inputs, of_weights = read.mean(), rows.mean()
    if not all(bool(moment.isfinite().all()) for moment in of_inputs):
        raise refusal("is not finite on the calibration tokens")
    if not all(bool(moment.isfinite().all()) for moment in of_weights):
        raise refusal("is multiplied by weights that are not finite")
    whole, *rest = (wush(x, w).float() for x, w in zip(of_inputs, of_weights, strict=True) if x.numel())
    transform = BlockTransform(whole, rest[0][0] if rest else None)
    if not all(bool(one.isfinite().all()) for one in (whole, *rest)) or not transform.condition < MOST_CONDITION:
        raise refusal("and its weights are of sizes so far apart that float32 does not hold the matrices")
    return transform


def _refusal(site: str, problem: str, more: str = "") -> ConfigError:
    return ConfigError(
        f"rotation: 'wush' cannot be worked out: the input of {site} {problem}; allowed: none, hadamard, "
        f"modules={{{site}: none}}{more}"
    )
