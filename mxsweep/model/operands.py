"""Find the operands of a model's matrix products, which can be quantized, by looking at the model.

An :class:`Operand` is a view of a matrix W (N, C) that the model multiplies its inputs by, with what the rest of
mxsweep asks of it: its name (which ``modules`` patterns match), its role, its decoder block, and which operands read
the same input. Patterns, dry run, budget, GPTQ, rotations, sensitivity, inspection and diagnostics all start from
:func:`find_operands`, with a loaded model or with one on the meta device, whose weights have shapes and no values.

An operand is the weight of a module of its own, an ``nn.Linear``, ``Conv1D`` or ``nn.Embedding`` (or of a subclass,
which can be named and may have no MX layer, :mod:`mxsweep.model.linear_layers`), or one of the matrices in a parameter
that holds several, which is named as if it had a module: an expert's as ``model.layers.0.mlp.experts.3.down_proj``
(:mod:`mxsweep.model.expert_matrices`), rows of a fused weight as ``model.layers.0.self_attn.qkv_proj.q_proj``
(:mod:`mxsweep.model.fused_weights`). Where in its parameter a matrix is says :mod:`mxsweep.model.matrices`. Code
elsewhere asks for ``operand.weight`` and ``operand.shape`` and never for a module's ``weight``.

Roles. A projection of a decoder block has the role that is declared for it, or that its name says (``q_proj`` is q, and
so on), unless its shape contradicts; an expert's matrices are gate, up and down. Every other linear layer, and a fused
weight whose layout is not declared, is ``other``, which claims nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import LINEAR_MATMULS
from mxsweep.model.decoder import block_around, block_number, decoder_blocks
from mxsweep.model.expert_matrices import ExpertMatrix, expert_matrices
from mxsweep.model.fused_weights import Layout, declared
from mxsweep.model.linear_layers import has_matrix, is_transposed, why_not_readable, why_not_replaceable
from mxsweep.model.matrices import Matrix, WeightMatrix
from mxsweep.model.probe import probe

ROUTER, HEAD, EMBEDDING, OTHER = "router", "head", "embedding", "other"
ROLES = (*LINEAR_MATMULS, ROUTER, HEAD, EMBEDDING, OTHER)

_PROJECTIONS = {f"{role}_proj": role for role in LINEAR_MATMULS}
_ROUTER_NAMES = ("gate", "router")
_READ_TOGETHER = (("q", "k", "v"), ("gate", "up"))  # roles that read one tensor, where one module holds them


@dataclass(frozen=True)
class Place:
    """Say where in a model a module is, and what it is there.

    Attributes:
        layer: the number of the decoder block; None outside the blocks.
        part: the module's name within its block, as ``q_proj``; with its parent, ``attn.c_proj``, where two parts of a
            block end alike. Outside the blocks the same of its name in the model. Without the number of an expert:
            ``experts.down_proj``.
        role: one of ROLES; None for a module that is no operand, as attention.
    """

    layer: int | None
    part: str
    role: str | None = None

    @property
    def kind(self) -> str:
        """Return the role of a projection of a decoder block, where no other part of a block has it; else the part."""
        return self.role if self.role in LINEAR_MATMULS and "." not in self.part else self.part


@dataclass(frozen=True, eq=False)
class Operand:
    """Hold one matrix that can be quantized.

    Attributes:
        name: of the module that multiplies by it; where the module has several, with the name of the matrix there.
        module: that module.
        block: the name of the decoder block; None outside the blocks.
        input: the name of the first operand that reads the same tensor; its own where it is the first or alone.
        matrix: where in the module's parameters it is.
        of_module: all matrices of the module, this among them.
    """

    name: str
    module: nn.Module
    block: str | None
    place: Place
    input: str
    matrix: Matrix
    of_module: Sequence[Matrix]

    @property
    def module_name(self) -> str:
        """Return the name of :attr:`module`."""
        return self.name.removesuffix(f".{self.matrix.name}") if self.matrix.name else self.name

    @property
    def is_alone(self) -> bool:
        """Return whether the matrix is all that its module multiplies by."""
        return not self.matrix.name

    @property
    def expert(self) -> ExpertMatrix | None:
        """Return the matrix where it is an expert's; None where it is not."""
        return self.matrix if isinstance(self.matrix, ExpertMatrix) else None

    @property
    def group(self) -> str:
        """Return the pattern of ``modules`` that names the operand; for an expert's, the role in all experts beside it.

        What is measured, or chosen, operand by operand is that of thousands of experts group by group.
        """
        return self.name if self.expert is None else f"{self.module_name}.*.{self.role}_proj"

    @property
    def role(self) -> str:
        """Return one of ROLES."""
        assert self.place.role is not None
        return self.place.role

    @property
    def layer(self) -> int | None:
        """Return the number of the decoder block; None outside the blocks."""
        return self.place.layer

    @property
    def kind(self) -> str:
        """Return :attr:`Place.kind`."""
        return self.place.kind

    @property
    def is_linear(self) -> bool:
        """Return whether the matrix is multiplied by an input; an embedding's input is token ids, which choose rows."""
        return not isinstance(self.module, nn.Embedding)

    @property
    def why_not_replaceable(self) -> str | None:
        """Return why there is no MX layer for the module; None where there is one."""
        return why_not_replaceable(self.module) if self.expert is None else why_not_readable(self.parameter)

    @property
    def parameter(self) -> nn.Parameter:
        """Return the parameter that the matrix is stored in, as the module has it now."""
        return self.module.get_parameter(self.matrix.parameter)

    @property
    def weight(self) -> Tensor:
        """Return the matrix (N, C), detached: a view of :attr:`parameter` where its rows lie alike, or a copy."""
        return self.matrix.of(self.parameter.detach())

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, C)."""
        return self.matrix.shape(self.parameter.detach())

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Return the bits of an element as the model stores it now."""
        return self.parameter.itemsize * 8


def find_operands(model: PreTrainedModel) -> dict[str, Operand]:
    """Return the operands of ``model`` that a text reaches by name, in the model's order.

    A module with two names is an operand under each.

    Raises:
        PassFailed: as :func:`mxsweep.model.probe.probe`.
    """
    blocks, reached = decoder_blocks(model), probe(model)
    modules = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if has_matrix(module) and name in reached
    }
    matrices = {name: _matrices(model, name, module, block_around(name, blocks)) for name, module in modules.items()}
    roles = {_full(name, matrix): matrix.role for name, of_module in matrices.items() for matrix in of_module}
    block_of = {name: block_around(name, blocks) for name in roles}
    parts = _parts(block_of)
    first_readers = _first_readers(model, roles)
    operands: dict[str, Operand] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name in modules:
            for matrix in matrices[name]:
                full = _full(name, matrix)
                place = Place(block_number(block_of[full]), parts[full], matrix.role)
                operands[full] = Operand(
                    full, module, block_of[full], place, first_readers[full], matrix, tuple(matrices[name])
                )
        elif name in reached:
            operands |= _expert_operands(name, module, block_around(name, blocks))
    return operands


def _full(module: str, matrix: Matrix) -> str:
    return f"{module}.{matrix.name}" if matrix.name else module


def _matrices(model: PreTrainedModel, name: str, module: nn.Module, block: str | None) -> list[WeightMatrix]:
    """Return the matrices in the weight of a linear layer or an embedding."""
    role, transposed = _role(model, name, module, block), is_transposed(module)
    if isinstance(role, str):
        return [WeightMatrix(role, None, transposed)]
    outputs = module.get_parameter("weight").shape[1 if transposed else 0]
    return role.matrices(outputs, transposed) or [WeightMatrix(OTHER, None, transposed)]


def _expert_operands(name: str, module: nn.Module, block: str | None) -> dict[str, Operand]:
    """Return the operands of a module of experts by name; none for any other module."""
    operands: dict[str, Operand] = {}
    first = ""
    matrices = tuple(expert_matrices(module))
    for matrix in matrices:
        full_name = f"{name}.{matrix.name}"
        first = first or full_name
        place = Place(block_number(block), f"{name.rpartition('.')[2]}.{matrix.role}_proj", matrix.role)
        # Every expert reads the tokens; what down reads is the expert's own.
        reads = full_name if matrix.role == "down" else first
        operands[full_name] = Operand(full_name, module, block, place, reads, matrix, matrices)
    return operands


def find_places(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Place]:
    """Return where in ``model`` the modules of these names are, which are no operands, as attention modules."""
    blocks = decoder_blocks(model)
    block_of = {name: block_around(name, blocks) for name in names}
    parts = _parts(block_of)
    return {name: Place(block_number(block), parts[name]) for name, block in block_of.items()}


def projection(module: nn.Module, role: str) -> nn.Module | None:
    """Return what stands for the projection of this role in an attention or MLP module; None where nothing does.

    In a quantized model that is the MX layer.
    """
    return next((getattr(module, name, None) for name, of_name in _PROJECTIONS.items() if of_name == role), None)


def _parts(block_of: Mapping[str, str | None]) -> dict[str, str]:
    """Return the shortest unambiguous name of each module within its block, given the blocks of all modules."""
    inside = {name: _inside(name, block) for name, block in block_of.items()}
    ending_alike: dict[str, set[str]] = defaultdict(set)
    for part in inside.values():
        ending_alike[part.rpartition(".")[2]].add(part)
    last = {name: part.rpartition(".")[2] for name, part in inside.items()}
    return {name: last[name] if len(ending_alike[last[name]]) == 1 else part for name, part in inside.items()}


def _inside(name: str, block: str | None) -> str:
    if block == name:  # a layer that is itself an item of a list; so are its neighbours
        return block.rpartition(".")[0].rpartition(".")[2]
    return name if block is None else name[len(block) + 1 :]


def _role(model: PreTrainedModel, name: str, module: nn.Module, block: str | None) -> str | Layout:
    """Return the role of a layer, or how its weight is laid out where it is of several."""
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if module is model.get_output_embeddings():
        return HEAD
    if block is None or block == name:
        return OTHER
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if is_router(model, name) or is_router(model, parent_name):
        return ROUTER
    known = declared(parent, last)
    if known is not None:
        return known
    role = _PROJECTIONS.get(last)
    return role if role is not None and _fits(role, parent) else OTHER


def is_router(model: PreTrainedModel, name: str) -> bool:
    """Return whether a module, which may be a layer or hold one, chooses among the experts beside it."""
    above, _, last = name.rpartition(".")
    return last == "router" or (last in _ROUTER_NAMES and hasattr(model.get_submodule(above), "experts"))


def _fits(role: str, parent: nn.Module) -> bool:
    """Return whether the shapes of the projections beside it let a projection have this role."""
    if role not in ("gate", "up", "down"):
        return True
    # h = down(act(gate(x)) * up(x)): gate and up agree, and down reads as many channels as they write.
    gate, up, down = (projection(parent, of_mlp) for of_mlp in ("gate", "up", "down"))
    widths = {module.out_features for module in (gate, up) if isinstance(module, nn.Linear)}
    return len(widths | ({down.in_features} if isinstance(down, nn.Linear) else set())) == 1


def _first_readers(model: PreTrainedModel, roles: Mapping[str, str | None]) -> dict[str, str]:
    """Return for each operand the name of the first that reads the same tensor, given the roles of all."""
    together: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name, role in roles.items():
        parent = name.rpartition(".")[0]
        group = next((group for group in _READ_TOGETHER if role in group), None)
        # Attention over another sequence reads queries from one tensor, keys and values from another.
        if group is not None and "Cross" not in type(model.get_submodule(parent)).__name__:
            together[parent, group].append(name)
    first = {name: names[0] for names in together.values() for name in names}
    return {name: first.get(name, name) for name in roles}
