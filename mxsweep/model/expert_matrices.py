"""Find the matrices of a mixture's experts, which lie in parameters of three dimensions.

transformers keeps all experts of a layer in one module, whose parameters ``gate_up_proj`` (or ``up_proj``) and
``down_proj`` are (E, N, C), or (E, C, N) where the module says ``is_transposed``. Classes that use
``use_experts_implementation`` declare this layout, and share a contract of what is computed with it
(:mod:`mxsweep.model.experts`). A class without the declaration might multiply its parameters in any way: none of them
is an operand.

Legend: E experts, N outputs and C inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mxsweep.model.matrices import Matrix

# What every class declares; has_post_expert_norm and _is_expert_parallel came with later versions of transformers.
_DECLARED = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


@dataclass(frozen=True)
class ExpertMatrix(Matrix):
    """Locate one matrix of one expert.

    Attributes:
        role: gate, up or down.
        parameter: the parameter of the experts' module that holds the matrix.
        rows: the matrix's among the outputs of the expert's part of the parameter.
        transposed: whether that part is (C, N).
    """

    expert: int
    role: str
    parameter: str
    rows: slice
    transposed: bool

    @property
    def name(self) -> str:
        """Return the name of the matrix within the module of experts, as ``3.down_proj``."""
        return f"{self.expert}.{self.role}_proj"

    def view(self, stored: Tensor) -> Tensor:
        """Return the matrix (N, C), a view of a parameter's values or of a copy of them."""
        return oriented(stored, self.expert, self.transposed)[self.rows]


def oriented(stored: Tensor, expert: int, transposed: bool) -> Tensor:
    """Return an expert's part of a parameter as (N, C)."""
    return stored[expert].T if transposed else stored[expert]


def expert_matrices(module: nn.Module) -> list[ExpertMatrix]:
    """Return the matrices of a module of experts, expert by expert; none for any other module."""
    if not all(hasattr(module, name) for name in _DECLARED) or getattr(module, "_is_expert_parallel", False):
        return []
    first = "gate_up_proj" if module.has_gate else "up_proj"
    parameters = dict(module.named_parameters(recurse=False))
    if not {first, "down_proj"} <= parameters.keys():
        return []
    read, down = parameters[first], parameters["down_proj"]
    if not all(p.ndim == 3 and p.is_floating_point() and len(p) == len(down) for p in (read, down)):
        return []
    transposed = bool(module.is_transposed)
    outputs, width = (read.shape[2], down.shape[1]) if transposed else (read.shape[1], down.shape[2])
    if outputs != width * (2 if module.has_gate else 1):
        return []
    roles = {"up": slice(0, width)}
    if module.has_gate:
        concatenated = {"gate": slice(0, width), "up": slice(width, outputs)}
        roles = concatenated if module.is_concatenated else {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
    everything = slice(None)
    return [
        ExpertMatrix(expert, role, name, rows, transposed)
        for expert in range(len(down))
        for role, name, rows in (
            *((role, first, rows) for role, rows in roles.items()),
            ("down", "down_proj", everything),
        )
    ]
