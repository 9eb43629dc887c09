"""Count how many matrix products of the decoder blocks a rotation reaches, which goes by roles.

A projection of a linear attention or a state space has no role: where a model has such blocks beside others, or in all
of them, "rotated" says something about the others alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mxsweep.formats.recipe import LINEAR_MATMULS, QUERY_KEY, WUSH, Recipe, Rotation
from mxsweep.model.coverage import first_kinds
from mxsweep.model.sites import Site

MOST_KINDS = 6  # named in a warning


@dataclass(frozen=True)
class RotatedProducts:
    """Count the quantized products of the decoder blocks.

    Attributes:
        rotation: the recipe's.
        products: all, an expert's among them.
        rotated: those that are quantized in another basis than their own.
        out_of_reach: those that no rotation can name, since they have no role, by kind; empty where the rotation leaves
            roles out anyway.
    """

    rotation: Rotation
    products: int
    rotated: int
    out_of_reach: Mapping[str, int]

    @staticmethod
    def of(sites: Sequence[Site], recipe: Recipe) -> RotatedProducts | None:
        """Count at ``sites``; None without a rotation of any linear layer."""
        rotation = recipe.rotation
        if rotation is None or not set(rotation.matmuls) & set(LINEAR_MATMULS):
            return None
        inside = [site for site in sites if site.operand.block is not None and site.operand.is_linear]
        left = [site.operand for site in inside if site.rotation is None]
        chosen = any(operand.role in LINEAR_MATMULS for operand in left)
        kinds = {} if chosen else Counter(operand.kind for operand in left)
        return RotatedProducts(rotation, len(inside), len(inside) - len(left), kinds)

    @property
    def verb(self) -> str:
        """Return what is done to the products: matrices of an input's own are no rotations."""
        return "transformed" if self.rotation.kind == WUSH else "rotated"

    @property
    def line(self) -> str:
        """Return a line for a person."""
        return (
            f"{self.verb.capitalize()} {self.rotated:,} of {self.products:,} quantized products in the decoder blocks"
        )

    @property
    def warnings(self) -> list[str]:
        """Return the warning that the rotation does nothing to linear layers, or that it cannot name some of them."""
        if not self.out_of_reach:
            return [] if self.rotated else [self._without_effect]
        most = sorted(self.out_of_reach.items(), key=lambda one: -one[1])
        named = first_kinds([f"{kind} ({count:,})" for kind, count in most], MOST_KINDS)
        return [
            f"rotation: {self.rotated:,} of {self.products:,} quantized products in the decoder blocks are "
            f"{self.verb}. The others are quantized as they are, since a rotation cannot name them: {named}. They are "
            f"none of {', '.join(LINEAR_MATMULS)}"
        ]

    @property
    def _without_effect(self) -> str:
        named = ", ".join(matmul for matmul in self.rotation.matmuls if matmul != QUERY_KEY)
        has_keys = QUERY_KEY in self.rotation.matmuls
        return (
            f"rotation={self.rotation.kind}: has no effect {'on linear layers ' if has_keys else ''}in this run, where "
            f"none of {named} is quantized{'; keys are rotated' if has_keys else ''}"
        )
