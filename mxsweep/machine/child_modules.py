"""Have a Python process that this one starts find modules as this one does, and none in the working folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def child_environment() -> dict[str, str]:
    """Return the environment for such a process, and for those that it starts: ``python -m`` looks in the working
    folder first, which may be one that somebody else sent.
    """
    package = str(Path(__file__).resolve().parents[2])
    found = [folder for folder in sys.path if folder]  # "" is the working folder
    if package not in found:
        found.insert(0, package)
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(found)}
