"""mxsweep: what does a microscaling (MX) format cost a language model?

from mxsweep import compose, run
record = run(compose(["format=mxfp4", "block_size=16"]))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxsweep.formats.recipe import LinearFormats, Recipe
    from mxsweep.model.load import load_model
    from mxsweep.model.quantize import quantize_model
    from mxsweep.runs.run import run
    from mxsweep.sweeps.plan import compose

__all__ = ["LinearFormats", "Recipe", "compose", "load_model", "quantize_model", "run"]

_HOMES = {
    "LinearFormats": "mxsweep.formats.recipe",
    "Recipe": "mxsweep.formats.recipe",
    "compose": "mxsweep.sweeps.plan",
    "load_model": "mxsweep.model.load",
    "quantize_model": "mxsweep.model.quantize",
    "run": "mxsweep.runs.run",
}


def __getattr__(name: str) -> Any:
    # On first use: the command line answers a wrong word without importing torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'mxsweep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
