"""Choose a format for each module under a budget of bits a weight (``ptq.budget``).

Which modules deserve more bits is measured: the KL divergence from the unquantized model when one module alone has a
candidate's formats, for each module and candidate (:func:`measure_costs`). The loss of a choice is predicted to be the
sum of its modules' losses, which holds while errors are small and independent. Minimizing the sum under a budget is a
multiple-choice knapsack, solved to proven optimality (:mod:`mxsweep.calibrate.knapsack`).

On a Llama of 31 million weights (novels, 8 layers, mxfp4 or mxfp6 or mxfp8 in each of 56 modules, costs on 2,040
positions) the sum comes to 0.140 nats a token where all modules in mxfp4 measure 0.142. At 4.5 bits a weight the choice
left a KL of 0.073 on 5,100 held-out positions, against 0.132 at 4.25 bits in mxfp4 alone. Choices at the same 4.5 bits
by other costs left more: the change of the negative log-likelihood 0.084, KL saved by one module's bits while
all others are in mxfp4 0.084 (it differs between modules by less than rounding's chaos moves it), random costs 0.085
and 0.093. At 5.25 bits: 0.035, against 0.045, 0.046, and 0.058 and 0.062 at random. Where errors are large the sum
is far too low, though the choice still helps: of the embedded model at 4.73 bits, with inputs in four bits too, it
predicts 0.47 and 1.43 is measured, against 5.08 in mxfp4 alone.

The budget is of what tables show as bits/weight: stored bits, scales included, over all weights of the decoder blocks
and what else is quantized. What ``modules`` gives a format of its own counts at its bits, and what stays as it is, as a
router, at those of its dtype.

The matrices of one role in a layer's experts are one choice: there may be thousands of them, of which each has a
share of the tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from mxsweep.calibrate.knapsack import choose_within
from mxsweep.formats.recipe import DYNAMIC, STATIC, LinearFormats, Recipe
from mxsweep.forward.sequence_loss import Divergence
from mxsweep.model.coverage import Stored
from mxsweep.model.operands import find_operands
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import NOTHING_PREPARED, quantize_model
from mxsweep.model.shared_scales import fused_with
from mxsweep.model.sites import Site, find_sites
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

Costs = dict[str, dict[str, float]]  # module -> candidate -> loss, nats a token


@dataclass(frozen=True)
class Choice:
    """Name a format for each module.

    Attributes:
        formats: module to candidate, in the order of the modules.
        predicted_loss: the sum of the modules' costs, nats a token.
        bits_per_weight: over all weights of the decoder blocks and what else is quantized, at most ``budget``.
    """

    formats: dict[str, str]
    predicted_loss: float
    bits_per_weight: float
    budget: float


def choose_formats(
    sizes: Mapping[str, Sequence[int]],
    candidates: Mapping[str, LinearFormats],
    cost: Mapping[str, Mapping[str, float]],
    budget: float,
    *,
    fixed: tuple[int, int] = (0, 0),
    fused: Sequence[Sequence[str]] = (),
) -> Choice:
    """Return the choice of least total cost within the budget; of equally good ones, one of fewest bits.

    Args:
        sizes: module to the shape of its weight (N, C); of E experts (E, N, C).
        candidates: name to formats, each with a format of weights.
        cost: module to candidate to cost. A cost that is not finite rules the candidate out for that module.
        budget: bits a weight.
        fixed: (bits, weights) of weights that are not chosen for, and count all the same.
        fused: modules that get one format together; one that stands in no group gets its own.

    Raises:
        ConfigError: no choice is within the budget, or a module is left without a candidate.
    """
    modules, names = list(sizes), list(candidates)
    bits = np.array([[candidates[name].stored_bits(sizes[module]) for name in names] for module in modules])
    costs = np.array([[float(cost[module][name]) for name in names] for module in modules])
    usable = np.isfinite(costs)
    together = [*fused, *([module] for module in modules if not any(module in group for group in fused))]
    members = [[modules.index(module) for module in group] for group in together]
    bits, costs = (np.array([values[rows].sum(axis=0) for rows in members]) for values in (bits, costs))
    usable = np.array([usable[rows].all(axis=0) for rows in members])
    if not usable.any(axis=1).all():
        module = " with ".join(together[int(usable.any(axis=1).argmin())])
        raise ConfigError(
            f"ptq.formats: in none of {', '.join(names)} does {module} leave the model with finite predictions; "
            "add a format with a wider range"
        )
    weights = fixed[1] + sum(math.prod(shape) for shape in sizes.values())
    least = fixed[0] + int(np.where(usable, bits, bits.max()).min(axis=1).sum())
    allowed = math.floor(Fraction(str(budget)) * weights)
    if least > allowed:
        most = fixed[0] + int(np.where(usable, bits, 0).max(axis=1).sum())
        others = f" and {fixed[0] / fixed[1]:.4g} for the {fixed[1] / weights:.1%} not chosen for" if fixed[1] else ""
        raise ConfigError(
            f"ptq.budget: {budget:g} bits a weight cannot be kept with ptq.formats {', '.join(names)}{others}; "
            f"allowed: from {_up(least / weights)}, which is the least they take, to {_up(most / weights)}, the most"
        )
    chosen = choose_within(bits, costs, usable, allowed - fixed[0])
    rows = range(len(together))
    name_of = {module: names[chosen[row]] for row in rows for module in together[row]}
    return Choice(
        formats={module: name_of[module] for module in modules},
        predicted_loss=math.fsum(costs[row, chosen[row]] for row in rows),
        bits_per_weight=(fixed[0] + sum(int(bits[row, chosen[row]]) for row in rows)) / weights,
        budget=budget,
    )


def _up(bits: float) -> str:
    """Return bits with four decimals, rounded up, so that what is said to be allowed is."""
    return f"{math.ceil(bits * 1e4 - 1e-9) / 1e4:g}"


def measure_costs(
    model: PreTrainedModel,
    recipe: Recipe,
    candidates: Mapping[str, LinearFormats],
    divergence: Divergence,
    progress: Progress = silent,
    *,
    known: Mapping[str, Mapping[str, float]] | None = None,
    keep: Callable[[Costs], object] | None = None,
    prepared: Prepared = NOTHING_PREPARED,
) -> Costs:
    """Return the KL divergence when one module alone has a candidate's formats, for each that can be chosen.

    Args:
        model: unquantized, as ``divergence`` knows it.
        recipe: of the run; its linear layers in decoder blocks that no pattern of ``modules`` matches are measured.
        known: what was measured before, and is not again.
        keep: called with all costs after each module.
        prepared: with what inputs are multiplied by, where the recipe has matrices of each input's own.

    Returns:
        Nats a token by module and candidate; for experts by the pattern of their group.
    """
    costs: Costs = {module: dict(of_module) for module, of_module in (known or {}).items()}
    modules = list(counted_modules(model, recipe, candidates)[0])
    # What is calibrated is so for the choice, which is not known yet.
    scale = DYNAMIC if recipe.activation_scale == STATIC else recipe.activation_scale
    alone = dataclasses.replace(recipe, linear=LinearFormats(), key=None, value=None, activation_scale=scale)
    rest = tuple((pattern, LinearFormats()) for pattern, _ in recipe.modules)  # also of experts within a group
    for number, module in enumerate(modules):
        of_module = costs.setdefault(module, {})
        for name in candidates:
            if name not in of_module:
                one = dataclasses.replace(alone, modules=((module, candidates[name]), *rest))
                with quantize_model(model, one, prepared=prepared):
                    of_module[name] = divergence()
        if keep is not None:
            keep(costs)
        progress(number + 1, len(modules))
    return costs


def counted_modules(
    model: PreTrainedModel, recipe: Recipe, candidates: Mapping[str, LinearFormats]
) -> tuple[dict[str, tuple[int, ...]], tuple[int, int]]:
    """Return what counts in a budget.

    Returns:
        The shapes of the weights by module that a format is chosen for, experts by the pattern of their group, and
        (bits, weights) of all else: what ``recipe.modules`` gives formats, and what stays as it is in decoder blocks.

    Raises:
        ConfigError: as :func:`mxsweep.model.sites.find_sites`.
    """
    under_one = dataclasses.replace(recipe, linear=next(iter(candidates.values())))
    others = tuple((pattern, LinearFormats()) for pattern, _ in recipe.modules)
    grouped: dict[str, list[Site]] = defaultdict(list)
    for site in find_sites(model, dataclasses.replace(under_one, modules=others)):
        grouped[site.operand.group].append(site)
    free = {site.name for group in grouped.values() for site in group}
    sites = find_sites(model, under_one)
    stored = Stored.of(model, sites, under_one)
    bits, weights = stored.block_bits_kept, stored.block_weights_kept
    for site in sites:
        operand, fmt = site.operand, site.formats.weight
        if site.name not in free and (fmt is not None or operand.block is None):
            bits += fmt.stored_bits(operand.shape) if fmt else operand.size * operand.bits
            weights += operand.size
    if not grouped:
        raise ConfigError("ptq.budget: modules leaves no linear layer to choose a format for; allowed: null")
    shapes = {
        name: group[0].operand.shape if group[0].operand.expert is None else (len(group), *group[0].operand.shape)
        for name, group in grouped.items()
    }
    return shapes, (bits, weights)


def fused_modules(model: PreTrainedModel, recipe: Recipe, candidates: Mapping[str, LinearFormats]) -> list[list[str]]:
    """Return the modules, as a budget names them, that a runtime has as one matrix, group by group."""
    free, _ = counted_modules(model, recipe, candidates)
    groups: dict[Hashable, dict[str, None]] = defaultdict(dict)
    for operand in find_operands(model).values():
        if operand.group in free:
            # The same role of all experts of a module is one choice.
            key = fused_with(operand) if operand.expert is None else (operand.module_name, operand.role == "down")
            groups[key][operand.group] = None
    return [list(group) for group in groups.values() if len(group) > 1]


def refuse_budget(
    model: PreTrainedModel, recipe: Recipe, candidates: Mapping[str, LinearFormats], budget: float, fuse: bool = False
) -> None:
    """Refuse a budget that no choice keeps, before anything is measured.

    Args:
        model: unquantized, loaded or on the meta device.
        fuse: as for :func:`spend`.

    Raises:
        ConfigError: as said, or as :func:`mxsweep.model.sites.find_sites`.
    """
    fused = fused_modules(model, recipe, candidates) if fuse else []
    _refuse_budget(*counted_modules(model, recipe, candidates), candidates, budget, fused)


def _refuse_budget(
    sizes: Mapping[str, tuple[int, ...]],
    fixed: tuple[int, int],
    candidates: Mapping[str, LinearFormats],
    budget: float,
    fused: Sequence[Sequence[str]],
) -> None:
    nothing = {module: dict.fromkeys(candidates, 0.0) for module in sizes}
    choose_formats(sizes, candidates, nothing, budget, fixed=fixed, fused=fused)


def spend(
    model: PreTrainedModel,
    recipe: Recipe,
    candidates: Mapping[str, LinearFormats],
    budget: float,
    sequences: Sequence[np.ndarray],
    progress: Progress = silent,
    *,
    known: Mapping[str, Mapping[str, float]] | None = None,
    keep: Callable[[Costs], object] | None = None,
    fuse: bool = False,
    prepared: Prepared = NOTHING_PREPARED,
) -> tuple[Recipe, Choice, dict[str, Any]]:
    """Choose each module's formats.

    Args:
        model: unquantized.
        recipe: the run's; modules that its patterns match keep their formats.
        candidates: ``ptq.formats`` by name, see :mod:`mxsweep.config.candidates`.
        budget: bits a weight, over all weights of the decoder blocks and what else is quantized.
        sequences: token ids that costs are measured on.
        known, keep, prepared: as for :func:`measure_costs`, for a cache; costs do not depend on the budget.
        fuse: whether what a runtime has as one matrix (q, k, v; gate, up) gets one format.

    Returns:
        The recipe with a pattern for each module, in front of its own, which win; the choice, and an account of it for
        the record.

    Raises:
        ConfigError: the budget cannot be kept, or nothing can be chosen or measured.
    """
    sizes, fixed = counted_modules(model, recipe, candidates)
    fused = fused_modules(model, recipe, candidates) if fuse else []
    _refuse_budget(sizes, fixed, candidates, budget, fused)
    costs: Costs = {module: dict(of_module) for module, of_module in (known or {}).items()}
    if not all(name in costs.get(module, {}) for module in sizes for name in candidates):
        divergence = Divergence(model, sequences)
        costs = measure_costs(
            model, recipe, candidates, divergence, progress, known=costs, keep=keep, prepared=prepared
        )
    choice = choose_formats(sizes, candidates, costs, budget, fixed=fixed, fused=fused)
    account = {
        "budget": budget,
        "bits_per_weight": choice.bits_per_weight,
        "predicted_kl_nats": choice.predicted_loss,
        "counts": dict(Counter(choice.formats.values())),
        "modules": choice.formats,
        "costs": costs,
    }
    chosen = tuple((module, candidates[name]) for module, name in choice.formats.items())
    return dataclasses.replace(recipe, modules=(*chosen, *recipe.modules)), choice, account
