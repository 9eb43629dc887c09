"""Name the folder that holds what can be made again: digests, compiled kernels, calibration artefacts, scripts.

One rule for all of them: ``$XDG_CACHE_HOME/mxsweep``, or ``~/.cache/mxsweep`` without that variable. Anything in it may
be removed at any time. Where it cannot be had - no home, no permission, no room - an OSError says so, and who wanted to
keep something warns and makes it again next time: a cache costs time, never a run.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str = "") -> Path:
    """Return the cache folder, or the folder ``name`` in it; neither is made.

    Raises:
        OSError: there is no home to have it in.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"no folder to keep it in: {error} Set HOME or XDG_CACHE_HOME") from None
    return folder / "mxsweep" / name
