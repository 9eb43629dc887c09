"""Count how many matrix products of the decoder blocks a rotation reaches, which goes by roles.

A projection of a linear attention or a state space has no role: where a model has such blocks beside others, or in all
of them, "rotated" says something about the others alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mxsweep.formats.recipe import LINEAR_MATMULS, Recipe
from mxsweep.model.coverage import first_kinds
from mxsweep.model.sites import Site

MOST_KINDS = 6  # named in a warning


@dataclass(frozen=True)
class RotatedProducts:
    """Count the quantized products of the decoder blocks.

    Attributes:
        products: all, an expert's among them.
        rotated: those that are quantized in a rotated basis.
        out_of_reach: those that no rotation can name, since they have no role, by kind; empty where the rotation leaves
            roles out anyway.
    """

    products: int
    rotated: int
    out_of_reach: Mapping[str, int]

    @staticmethod
    def of(sites: Sequence[Site], recipe: Recipe) -> RotatedProducts | None:
        """Count at ``sites``; None without a rotation of any linear layer."""
        matmuls = set(recipe.rotation.matmuls) & set(LINEAR_MATMULS) if recipe.rotation else set()
        if not matmuls:
            return None
        inside = [site for site in sites if site.operand.block is not None and site.operand.is_linear]
        left = [site.operand for site in inside if site.rotation is None]
        chosen = any(operand.role in LINEAR_MATMULS for operand in left)
        kinds = {} if chosen else Counter(operand.kind for operand in left)
        return RotatedProducts(len(inside), len(inside) - len(left), kinds)

    @property
    def line(self) -> str:
        """Return a line for a person."""
        return f"Rotated {self.rotated:,} of {self.products:,} quantized products in the decoder blocks"

    @property
    def warnings(self) -> list[str]:
        """Return the warning that products have no role by which they could be rotated; none where all have."""
        if not self.out_of_reach:
            return []
        most = sorted(self.out_of_reach.items(), key=lambda one: -one[1])
        named = first_kinds([f"{kind} ({count:,})" for kind, count in most], MOST_KINDS)
        return [
            f"rotation: {self.rotated:,} of {self.products:,} quantized products in the decoder blocks are rotated. "
            f"The others are quantized as they are, since a rotation cannot name them: {named}. They are "
            f"none of {', '.join(LINEAR_MATMULS)}"
        ]
