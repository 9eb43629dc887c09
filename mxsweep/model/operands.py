"""Find the operands of a model's matrix products, which can be quantized, by looking at the model.

An :class:`Operand` is a view of a matrix W (N, C) that the model multiplies its inputs by, with what the rest of
mxsweep asks of it: its name (which ``modules`` patterns match), its role, its decoder block, and which operands read
the same input. Patterns, dry run, budget, GPTQ, rotations, sensitivity, inspection and diagnostics all start from
:func:`find_operands`, with a loaded model or with one on the meta device, whose weights have shapes and no values.

Today an operand is the weight of a module of its own, an ``nn.Linear`` or ``nn.Embedding`` (or of a subclass, which can
be named but has no MX layer). A weight that holds several matrices, as a fused q, k and v or a parameter of experts, is
either one operand without a role or none. Code elsewhere asks for ``operand.weight`` and ``operand.shape`` and never
for a module's ``weight``, so that a row range or one expert can become an operand here alone.

Roles. A projection of a decoder block has the role that its name says (``q_proj`` is q, and so on), unless its shape
contradicts. Every other linear layer is ``other``, which claims nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import LINEAR_MATMULS
from mxsweep.model.decoder import block_around, block_number, decoder_blocks

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
            block end alike. Outside the blocks the same of its name in the model.
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
        name: of the module that multiplies by it.
        module: that module; of a subclass of ``nn.Linear`` or ``nn.Embedding`` there is no MX layer.
        block: the name of the decoder block; None outside the blocks.
        input: the name of the first operand that reads the same tensor; its own where it is the first or alone.
    """

    name: str
    module: nn.Linear | nn.Embedding
    block: str | None
    place: Place
    input: str

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
        return isinstance(self.module, nn.Linear)

    @property
    def is_replaceable(self) -> bool:
        """Return whether there is an MX layer for the module: a subclass may compute something else as well."""
        return type(self.module) in (nn.Linear, nn.Embedding)

    @property
    def parameter(self) -> nn.Parameter:
        """Return the parameter that the matrix is stored in, as the module has it now."""
        return self.module.get_parameter("weight")

    @property
    def weight(self) -> Tensor:
        """Return the matrix (N, C), a view of :attr:`parameter`, detached."""
        return self.parameter.detach()

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, C)."""
        return tuple(self.weight.shape)

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return self.weight.numel()

    @property
    def bits(self) -> int:
        """Return the bits of an element as the model stores it now."""
        return self.weight.itemsize * 8


def find_operands(model: PreTrainedModel) -> dict[str, Operand]:
    """Return the operands of ``model`` by name, in the model's order.

    A module with two names is an operand under each.
    """
    blocks = decoder_blocks(model)
    modules = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    block_of = {name: block_around(name, blocks) for name in modules}
    parts = _parts(block_of)
    roles = {name: _role(model, name, module, block_of[name]) for name, module in modules.items()}
    first_readers = _first_readers(model, modules, roles)
    return {
        name: Operand(
            name,
            module,
            block_of[name],
            Place(block_number(block_of[name]), parts[name], roles[name]),
            first_readers[name],
        )
        for name, module in modules.items()
    }


def find_places(model: nn.Module, names: Iterable[str]) -> dict[str, Place]:
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


def _role(model: PreTrainedModel, name: str, module: nn.Module, block: str | None) -> str:
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if module is model.get_output_embeddings():
        return HEAD
    if block is None or block == name:
        return OTHER
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if last in _ROUTER_NAMES and hasattr(parent, "experts"):
        return ROUTER
    role = _PROJECTIONS.get(last)
    return role if role is not None and _fits(role, parent) else OTHER


def _fits(role: str, parent: nn.Module) -> bool:
    """Return whether the shapes of the projections beside it let a projection have this role."""
    if role not in ("gate", "up", "down"):
        return True
    # h = down(act(gate(x)) * up(x)): gate and up agree, and down reads as many channels as they write.
    gate, up, down = (projection(parent, of_mlp) for of_mlp in ("gate", "up", "down"))
    widths = {module.out_features for module in (gate, up) if isinstance(module, nn.Linear)}
    return len(widths | ({down.in_features} if isinstance(down, nn.Linear) else set())) == 1


def _first_readers(
    model: PreTrainedModel, modules: Mapping[str, nn.Module], roles: Mapping[str, str]
) -> dict[str, str]:
    """Return for each operand the name of the first that reads the same tensor."""
    together: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name in modules:
        parent = name.rpartition(".")[0]
        group = next((group for group in _READ_TOGETHER if roles[name] in group), None)
        # Attention over another sequence reads queries from one tensor, keys and values from another.
        if group is not None and "Cross" not in type(model.get_submodule(parent)).__name__:
            together[parent, group].append(name)
    first = {name: names[0] for names in together.values() for name in names}
    return {name: first.get(name, name) for name in modules}
