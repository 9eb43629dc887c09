"""Find the places in a model that a recipe changes: each operand that gets a format, with the format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import LINEAR_MATMULS, QUERY_KEY, WUSH, LinearFormats, Recipe, Rotation
from mxsweep.model.decoder import block_around, decoder_blocks
from mxsweep.model.experts import MXExperts
from mxsweep.model.linear import MXLinear
from mxsweep.model.linear_layers import has_matrix
from mxsweep.model.operands import ROUTER, Operand, find_operands, is_router
from mxsweep.model.probe import probe
from mxsweep.numerics.bases import Basis, BlockTransform, HadamardBasis
from mxsweep.terminal.errors import ConfigError

NO_TRANSFORMS: Mapping[str, BlockTransform] = {}


@dataclass(frozen=True)
class Site:
    """Hold an operand, what its tensors become, and in which basis.

    Attributes:
        rotation: the recipe's, where it names the operand; None for the basis that the operand has.
        transform: what its input is multiplied by under a rotation with matrices of each input's own; None as long as
            nothing was worked out.
    """

    operand: Operand
    formats: LinearFormats
    rotation: Rotation | None = None
    transform: BlockTransform | None = None

    @property
    def name(self) -> str:
        """Return the operand's name."""
        return self.operand.name

    @property
    def input_name(self) -> str:
        """Return a name of what the operand reads, the same for operands that read one tensor in one basis.

        What the experts of a module read between their matrices has one name.
        """
        of_expert = self.operand.expert is not None and self.operand.role == "down"
        name = self.operand.group if of_expert else self.operand.input
        return name if self.rotation is None else f"{name} rotated"

    @property
    def rotation_block(self) -> int | None:
        """Return the order of the Hadamard matrices that its operands are rotated by; None for none."""
        return None if self.rotation is None or self.has_own_basis else self.rotation.block

    @property
    def has_own_basis(self) -> bool:
        """Return whether the blocks of its input have matrices of their own."""
        return self.rotation is not None and self.rotation.kind == WUSH

    @property
    def basis(self) -> Basis | None:
        """Return the basis in which its operands are quantized; None for that which they have.

        Raises:
            ValueError: matrices of its own, which were not worked out.
        """
        if self.rotation is None:
            return None
        if not self.has_own_basis:
            return HadamardBasis(self.rotation.block)
        if self.transform is None:
            raise ValueError(f"prepared.input_transforms: there is none of {self.input_name}, which {self.name} reads")
        return self.transform

    def weight(self) -> Tensor:
        """Return the matrix (N, C) in the basis in which it is quantized. Raises ValueError as :attr:`basis`."""
        weight = self.operand.weight.contiguous()  # an expert's may be a transposed or interleaved view
        basis = self.basis
        return weight if basis is None else basis.of_weight(weight)


def find_sites(
    model: PreTrainedModel, recipe: Recipe, transforms: Mapping[str, BlockTransform] = NO_TRANSFORMS
) -> list[Site]:
    """Return the operands that ``recipe`` changes, in the model's order.

    Args:
        model: unquantized, loaded or on the meta device.
        transforms: :attr:`Prepared.input_transforms`; without them weights in a basis of their own cannot be asked
            for.

    Raises:
        ConfigError: a pattern of ``recipe.modules`` that matches nothing, or only what no text reaches, or only routers
            of experts that are no linear layers; a rotation of products that the model does not have; a module that is
            to be quantized and has no MX layer, or whose weight the model reads without calling it; a model without
            linear layers in its decoder blocks.
        RuntimeError: the model is quantized.
    """
    if any(isinstance(module, MXLinear | MXExperts) for module in model.modules()):
        raise RuntimeError(f"this {type(model).__name__} holds MX layers already; leave the context that put them in")
    operands = find_operands(model)
    check_patterns(model, [(pattern, formats != LinearFormats()) for pattern, formats in recipe.modules], operands)
    sites = []
    for operand in operands.values():
        by_default = is_in_blocks(operand)
        formats = recipe.formats_of(operand.name, by_default, operand.module_name)
        if not operand.is_linear and formats.weight is not None:
            formats = LinearFormats(weight=formats.weight)  # an embedding's input is token ids
        if formats == LinearFormats():
            continue
        if problem := operand.why_not_replaceable:
            raise ConfigError(
                f"modules: {operand.name} {problem}; leave it as it is with modules={{{operand.name}: none}}"
            )
        rotated = recipe.rotation is not None and operand.role in recipe.rotation.matmuls
        sites.append(Site(operand, formats, recipe.rotation if rotated else None))
    sites = _with_transforms(sites, transforms)
    _check_rotation(model, recipe, operands)
    check_reads(model, [site.operand for site in sites])
    if recipe.linear != LinearFormats() and not any(map(is_in_blocks, operands.values())):
        raise ConfigError(
            f"format: {type(model).__name__} has no linear layers in its decoder blocks that could be quantized; "
            "allowed: none"
        )
    return sites


def _with_transforms(sites: Sequence[Site], transforms: Mapping[str, BlockTransform]) -> list[Site]:
    """Return sites with the transforms of their inputs, each on the device of the weights, where it is one for all."""
    placed: dict[tuple[str, torch.device], BlockTransform] = {}
    found = []
    for site in sites:
        if site.has_own_basis and (transform := transforms.get(site.input_name)) is not None:
            device = site.operand.parameter.device
            site = replace(site, transform=placed.setdefault((site.input_name, device), transform.to(device)))
        found.append(site)
    return found


def is_in_blocks(operand: Operand) -> bool:
    """Return whether an operand is of a linear layer of the blocks, and no router: what is quantized unasked."""
    return operand.is_linear and operand.block is not None and operand.role != ROUTER


def _names_in_blocks(model: PreTrainedModel) -> set[str]:
    """Return the names of modules and parameters of the decoder blocks: of all that can be left as it is."""
    blocks = decoder_blocks(model)
    names = (name for named in (model.named_modules(), model.named_parameters()) for name, _ in named)
    return {name for name in names if block_around(name, blocks) is not None}


def check_patterns(
    model: PreTrainedModel, patterns: Iterable[tuple[str, bool]], operands: Mapping[str, Operand]
) -> None:
    """Refuse patterns of ``modules`` that match nothing, or nothing that can be quantized.

    Args:
        patterns: each with whether it changes what it matches.
    """
    for pattern, changes in patterns:
        named = {*operands, *(operand.module_name for operand in operands.values())}
        names = named if changes else named | _names_in_blocks(model)
        if not any(fnmatchcase(name, pattern) for name in names):
            unreached = [name for name in _unreached(model) if fnmatchcase(name, pattern)]
            if unreached and not changes:
                continue  # so it is in any case
            if unreached:
                raise ConfigError(
                    f"modules: the pattern {pattern!r} matches only what no text reaches in a {type(model).__name__}, "
                    f"as {unreached[0]}, and which stays as it is; allowed: patterns of what a text reaches, as "
                    f"{', '.join(list(operands)[1:3])}"
                )
            matched = (name for name, _ in model.named_modules() if fnmatchcase(name, pattern))
            if first := next((name for name in matched if _is_own_router(model, name)), None):
                raise ConfigError(
                    f"modules: {first} is a router of experts of a class of its own, "
                    f"{type(model.get_submodule(first)).__name__}, which cannot be quantized; leave it as it is with "
                    f"modules={{{pattern}: none}}"
                )
            raise ConfigError(
                f"modules: the pattern {pattern!r} matches no linear layer or embedding of {type(model).__name__}; "
                f"names look like {', '.join(list(operands)[1:4])}"
            )


def _is_own_router(model: PreTrainedModel, name: str) -> bool:
    """Return whether a module is a router of experts that has a weight itself, and is no linear layer."""
    module = model.get_submodule(name)
    return (
        isinstance(getattr(module, "weight", None), nn.Parameter) and not has_matrix(module) and is_router(model, name)
    )


def _unreached(model: PreTrainedModel) -> list[str]:
    """Return the names of modules that hold parameters and that no text reaches."""
    reached = probe(model)
    modules = model.named_modules(remove_duplicate=False)
    return [name for name, module in modules if name not in reached and any(True for _ in module.parameters(False))]


def check_reads(model: PreTrainedModel, operands: Iterable[Operand]) -> None:
    """Refuse layers whose weights the model reads past them: a layer in their place would not be asked."""
    reached = probe(model)
    past = [operand for operand in operands if operand.module_name in reached.read_past]
    if past:
        parts = {o.name if o.block is None else f"*.{o.place.part}" for o in past}
        patterns = ", ".join(f"{part}: none" for part in sorted(parts))
        raise ConfigError(
            f"modules: a {type(model).__name__} multiplies by the weight of {past[0].name} without calling the layer, "
            f"so that it cannot be quantized; leave {'it' if len(past) == 1 else f'all {len(past)} such'} as "
            f"{'it is' if len(past) == 1 else 'they are'} with modules={{{patterns}}}"
        )


def _check_rotation(model: PreTrainedModel, recipe: Recipe, operands: dict[str, Operand]) -> None:
    roles = {operand.role for operand in operands.values()}
    missing = _missing_roles(recipe.rotation.matmuls if recipe.rotation else (), roles)
    if missing:
        allowed = [role for role in LINEAR_MATMULS if role in roles]
        if not allowed and recipe.rotation is not None and recipe.rotation.kind == WUSH:
            raise ConfigError(
                f"rotation: {WUSH!r} multiplies inputs of linear layers by matrices of their own, and "
                f"{type(model).__name__} has none of {', '.join(LINEAR_MATMULS)}; allowed: rotation=none"
            )
        raise ConfigError(
            f"rotation.matmuls: {missing[0]!r} is no linear layer of {type(model).__name__}; allowed: "
            f"{', '.join([*allowed, QUERY_KEY])}"
        )


def rotations_of(model: PreTrainedModel, candidates: Sequence[Rotation]) -> list[Rotation]:
    """Return the rotations, of one product each, that a search on ``model`` is to try.

    All linear layers together mean those that the model has; of a choice among them every one is returned, so that
    :func:`find_sites` refuses what is not there.
    """
    roles = {operand.role for operand in find_operands(model).values()}
    if _missing_roles([matmul for candidate in candidates for matmul in candidate.matmuls], roles):
        return list(candidates)
    return [candidate for candidate in candidates if {*candidate.matmuls} <= {*roles, QUERY_KEY}]


def _missing_roles(asked: Sequence[str], roles: Collection[str]) -> list[str]:
    """Return what was asked for by name and is none of the roles that a model's operands have.

    Few models have all roles. To ask for all of them, the default, is to ask for those that the model has, if it has
    any.
    """
    missing = [matmul for matmul in asked if matmul != QUERY_KEY and matmul not in roles]
    asked_for_all = set(LINEAR_MATMULS) <= set(asked)
    return [] if asked_for_all and len(missing) < len(LINEAR_MATMULS) else missing
