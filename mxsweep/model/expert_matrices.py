"""Find the matrices of a mixture's experts, which lie in parameters of three dimensions.

transformers keeps all experts of a layer in one module, whose parameters ``gate_up_proj`` (or ``up_proj``) and
``down_proj`` are (E, N, C), or (E, C, N) where the module says ``is_transposed``. Classes that use
``use_experts_implementation`` declare this layout, and share a contract of what is computed with it
(:mod:`mxsweep.model.experts`). For Llama 4's class, which declares nothing, the layout stands here. Any other class
might multiply its parameters in any way: none of them is an operand.

Legend: E experts, N outputs and C inputs of a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mxsweep.model.matrices import Matrix

# What every class declares; has_post_expert_norm and _is_expert_parallel came with later versions of transformers.
_DECLARED = ("has_gate", "has_bias", "is_transposed", "is_concatenated")


@dataclass(frozen=True)
class ExpertLayout:
    """Say how the matrices of experts lie in their parameters, and how the experts are called.

    Attributes:
        has_gate: whether ``gate_up_proj`` holds gate and up; else there is ``up_proj`` alone.
        has_bias: whether each parameter has a bias beside it.
        is_transposed: whether an expert's part of a parameter is (C, N).
        is_concatenated: whether gate is in front of up; else their outputs alternate.
        is_sorted: whether experts are called with all rows of the first, then those of the second and so on, zeros
            where a token is not for an expert, and with nothing else; else with tokens and each one's experts.
    """

    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool
    is_sorted: bool = False


_UNDECLARED = {
    ("transformers.models.llama4.modeling_llama4", "Llama4TextExperts"): ExpertLayout(
        has_gate=True, has_bias=False, is_transposed=True, is_concatenated=True, is_sorted=True
    )
}


def layout_of(module: nn.Module) -> ExpertLayout | None:
    """Return how a module of experts is laid out; None for any other module, and where that is not declared."""
    if getattr(module, "_is_expert_parallel", False):
        return None
    if all(hasattr(module, name) for name in _DECLARED):
        return ExpertLayout(*(bool(getattr(module, name)) for name in _DECLARED))
    return _UNDECLARED.get((type(module).__module__, type(module).__name__))


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
    layout = layout_of(module)
    if layout is None:
        return []
    first = "gate_up_proj" if layout.has_gate else "up_proj"
    parameters = dict(module.named_parameters(recurse=False))
    if not {first, "down_proj"} <= parameters.keys():
        return []
    read, down = parameters[first], parameters["down_proj"]
    if not all(p.ndim == 3 and p.is_floating_point() and len(p) == len(down) for p in (read, down)):
        return []
    transposed = layout.is_transposed
    outputs, width = (read.shape[2], down.shape[1]) if transposed else (read.shape[1], down.shape[2])
    if outputs != width * (2 if layout.has_gate else 1):
        return []
    roles = {"up": slice(0, width)}
    if layout.has_gate:
        concatenated = {"gate": slice(0, width), "up": slice(width, outputs)}
        roles = concatenated if layout.is_concatenated else {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
    everything = slice(None)
    return [
        ExpertMatrix(expert, role, name, rows, transposed)
        for expert in range(len(down))
        for role, name, rows in (
            *((role, first, rows) for role, rows in roles.items()),
            ("down", "down_proj", everything),
        )
    ]
