"""Keep the bytecode of modules in the cache folder where Python is told to write none, as in many container images.

Without it Python compiles each module in every process that imports it, which of torch, transformers and what they
import takes several times as long as to import them.
"""

from __future__ import annotations

import os
import sys
from importlib.util import cache_from_source, find_spec

from mxsweep.files.cache import cache_folder

FOLDER = "bytecode"


def keep_bytecode() -> None:
    """Have this process and those that it starts keep bytecode in the cache folder, where none is written or found.

    Python looks there alone then, so that an installation that came with its bytecode, as torch tells, stays as it is.
    For processes that are mxsweep's: how modules are imported is nothing for a library to change.
    """
    if not sys.dont_write_bytecode or sys.pycache_prefix is not None or _torch_has_bytecode():
        return
    try:
        folder = str(cache_folder(FOLDER))
    except OSError:  # no home
        return
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = folder
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def _torch_has_bytecode() -> bool:
    found = find_spec("torch")
    return found is None or found.origin is None or os.path.exists(cache_from_source(found.origin))
