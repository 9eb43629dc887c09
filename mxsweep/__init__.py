"""mxsweep: what does a microscaling (MX) format cost a language model?

import mxsweep
folder, runs = mxsweep.sweep(["format=mxfp4", "block_size=16,32"])  # a folder, a DataFrame
mxsweep.compare(runs.iloc[1], runs.iloc[2])  # the paired test of two of them
"""

from __future__ import annotations

import os
import sys


def _leave_out_the_working_folder() -> None:
    """Look for no modules in the working folder, where ``python -m mxsweep`` looks first.

    It may be a sweep that somebody else sent, with a pyarrow.py or hydra_plugins in it. The command ``mxsweep`` does
    not look there, and neither does Python with -P. A working folder that holds this package stays.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if _is_command() and not sys.flags.safe_path and sys.path[:1] not in ([package], []):
        del sys.path[0]


def _is_command() -> bool:
    """Return whether Python was started with -m and a module of this package."""
    module = next((word for before, word in zip(sys.orig_argv, sys.orig_argv[1:], strict=False) if before == "-m"), "")
    return module.partition(".")[0] == "mxsweep"


_leave_out_the_working_folder()  # before any other import
if _is_command():
    from mxsweep.files.bytecode import keep_bytecode

    keep_bytecode()  # of what is imported from here on

from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from mxsweep.formats.recipe import LinearFormats, Recipe
    from mxsweep.model.load import load_model
    from mxsweep.model.quantize import quantize_model
    from mxsweep.report.data_files import load
    from mxsweep.runs.run import run
    from mxsweep.study.two_runs import compare
    from mxsweep.sweeps.from_python import sweep
    from mxsweep.sweeps.plan import compose

__all__ = [
    "LinearFormats",
    "Recipe",
    "compare",
    "compose",
    "load",
    "load_model",
    "quantize_model",
    "run",
    "sweep",
]

_HOMES = {
    "LinearFormats": "mxsweep.formats.recipe",
    "Recipe": "mxsweep.formats.recipe",
    "compare": "mxsweep.study.two_runs",
    "compose": "mxsweep.sweeps.plan",
    "load": "mxsweep.report.data_files",
    "load_model": "mxsweep.model.load",
    "quantize_model": "mxsweep.model.quantize",
    "run": "mxsweep.runs.run",
    "sweep": "mxsweep.sweeps.from_python",
}


def __getattr__(name: str) -> Any:
    # On first use: the command line answers a wrong word without importing torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'mxsweep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
