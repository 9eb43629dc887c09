"""Declare weight methods as a config knows them: their names, their options, what they need. No torch.

How a method chooses a weight's values is in a file of its own, ``solvers/NAME.py``; see :mod:`mxsweep.solvers.methods`.
What a config, a hash, a table and ``--help`` say of it follows from its declaration here. A new method is that file and
one call of :func:`register_weight_method`, with an option in ``conf/ptq/`` for the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mxsweep.formats.registry import Names


class Needs(Enum):
    """Say what a method looks at besides the weight and its format."""

    NOTHING = "nothing"
    SECOND_MOMENTS = "the second moment of each input: the diagonal of the Hessian"
    HESSIAN = "the Hessian of the layer's output error, on calibration data"


@dataclass(frozen=True)
class WeightMethod:
    """Declare how the quantized values of a weight are chosen.

    Attributes:
        name: as in ``ptq=NAME``.
        options: the knobs below ``ptq`` that sway its answers, in the order in which records hold them.
        needs: returns what it looks at, given its options.
        module: where its ``solve`` is; by default ``mxsweep.solvers.NAME``.
        tunes: whether what ``solve`` answers is tuned block by block, by the error of a block's output.
        starts_from: the method whose weights, of the whole model, are finetuned by what the model answers; empty for a
            method that does not finetune.
    """

    name: str
    options: tuple[str, ...] = ()
    needs: Callable[[Mapping[str, Any]], Needs] = lambda options: Needs.NOTHING
    module: str = ""
    tunes: bool = False
    starts_from: str = ""

    @property
    def solver_module(self) -> str:
        """Return the full name of the module that has the method's ``solve``."""
        return self.module or f"mxsweep.solvers.{self.name}"


ROUND_TO_NEAREST = "rtn"  # the method with which nothing is solved for: a layer rounds its weight as every tensor

# From the least that is done about the error of quantizing to the most.
WEIGHT_METHODS: dict[str, WeightMethod] = {}
WEIGHT_METHOD_NAMES = Names(lambda: WEIGHT_METHODS)


def register_weight_method(method: WeightMethod) -> None:
    """Make a weight method known, after those that are.

    Raises:
        ValueError: another one has its name.
    """
    if WEIGHT_METHODS.setdefault(method.name, method) != method:
        raise ValueError(f"ptq.method: {method.name!r} stands for another method already; allowed: a new name")


def _needs_of_clip(options: Mapping[str, Any]) -> Needs:
    return Needs.SECOND_MOMENTS if options["clip_loss"] == "output" else Needs.NOTHING


register_weight_method(WeightMethod(ROUND_TO_NEAREST))
register_weight_method(WeightMethod("clip", ("clip_loss",), _needs_of_clip))
_GPTQ = ("clip_loss", "damping", "act_order")
register_weight_method(WeightMethod("gptq", _GPTQ, lambda options: Needs.HESSIAN))
register_weight_method(
    WeightMethod(
        "autoround", (*_GPTQ, "steps"), lambda options: Needs.HESSIAN, module="mxsweep.solvers.gptq", tunes=True
    )
)
register_weight_method(
    WeightMethod(
        "qat", (*_GPTQ, "steps"), lambda options: Needs.HESSIAN, module="mxsweep.solvers.gptq", starts_from="gptq"
    )
)
