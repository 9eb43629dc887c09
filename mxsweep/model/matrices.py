"""Say where in the parameters of a module the matrices are that the module multiplies its inputs by.

A parameter may be one matrix, stored (N, C) or, in ``Conv1D`` of transformers, (C, N); it may hold several one after
the other or head by head, as a fused q, k and v; it may hold those of many experts
(:mod:`mxsweep.model.expert_matrices`).

Legend: N outputs and C inputs of a matrix; S outputs of all matrices in a parameter, in G groups of S / G.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


class Matrix(ABC):
    """Locate one matrix in a parameter of a module.

    Attributes:
        parameter: the parameter's name in the module.
        role: what the matrix is there; None where only the module's name can say.
    """

    parameter: str
    role: str | None

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the name of the matrix within the module; empty where the matrix is all that the module has."""

    @abstractmethod
    def view(self, stored: Tensor) -> Tensor:
        """Return the matrix (..., C), a view of the parameter's values or of a copy of them."""

    def of(self, stored: Tensor) -> Tensor:
        """Return the matrix (N, C): a view where its rows lie alike, or a copy."""
        return self.view(stored).flatten(0, -2)

    def shape(self, stored: Tensor) -> tuple[int, int]:
        """Return (N, C)."""
        view = self.view(stored)
        return view.shape[:-1].numel(), view.shape[-1]


@dataclass(frozen=True)
class Rows:
    """Name outputs of a fused weight: in each of ``groups`` groups of ``size``, those from ``start`` to ``stop``."""

    groups: int
    size: int
    start: int
    stop: int

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return these rows of a weight (S, C) as a view (G, N / G, C)."""
        return weight.unflatten(0, (self.groups, self.size))[:, self.start : self.stop]

    def of_outputs(self, y: Tensor) -> Tensor:
        """Return these channels of an output (..., S), or of a bias (S,), as a view (..., G, N / G)."""
        return y.unflatten(-1, (self.groups, self.size))[..., self.start : self.stop]

    def joined(self, following: Rows) -> Rows:
        """Return these rows with those that follow in each group."""
        return Rows(self.groups, self.size, self.start, following.stop)


@dataclass(frozen=True)
class WeightMatrix(Matrix):
    """Locate a matrix in the ``weight`` of a linear layer or an embedding.

    Attributes:
        rows: those of the weight that are the matrix; None for all.
        transposed: whether the weight is stored (C, S).
    """

    role: str | None = None
    rows: Rows | None = None
    transposed: bool = False
    parameter: str = "weight"

    @property
    def name(self) -> str:
        """Return the name of the matrix within its layer, as ``q_proj``; empty for all of the weight."""
        return "" if self.rows is None else f"{self.role}_proj"

    def view(self, stored: Tensor) -> Tensor:
        """Return the matrix as a view (N, C), or (G, N / G, C)."""
        weight = stored.T if self.transposed else stored
        return weight if self.rows is None else self.rows.of_weight(weight)
