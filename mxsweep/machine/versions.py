"""Say what a run was made with: versions and commit. Nothing heavy is imported: a refused run has them, too."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("mxsweep", "torch", "transformers", "lm_eval", "datasets", "hydra-core", "numpy")


def record_environment() -> dict[str, Any]:
    """Return, for a record, Python, platform, versions and the source tree's commit."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "git_sha": git_sha(),
    }


@functools.cache  # of the code that this process loaded
def git_sha() -> str | None:
    """Return the commit of mxsweep's own source tree, "-dirty" behind it if files were changed; None for a package."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except OSError:  # no git here, which is no reason to lose a run
        return None
    return answer.stdout.strip() or None


def version_of(name: str) -> str | None:
    """Return the installed version of a package; None where none is installed, as in a source tree."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
