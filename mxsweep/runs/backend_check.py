"""Refuse a config whose backend cannot work on this machine, before a model is loaded."""

from __future__ import annotations

from mxsweep.config.run_config import RunConfig
from mxsweep.numerics import backend_problem
from mxsweep.terminal.errors import ConfigError


def refuse_unavailable_backend(config: RunConfig) -> None:
    """Raise ConfigError if the backend of ``config`` cannot work here. Asking for "cuda" imports torch."""
    if config.is_baseline or config.backend == "torch":
        return
    problem = backend_problem(config.backend)
    if problem is not None:
        raise ConfigError(
            f"{config.backend_setting} cannot be had here: {problem}; custom_cuda=false backend=torch works anywhere"
        )
