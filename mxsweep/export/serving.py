"""Say by which rules whoever loads a target's checkpoint quantizes its inputs."""

from __future__ import annotations

from mxsweep.config.runtimes import RUNTIMES
from mxsweep.formats.mxformat import MXFormat
from mxsweep.terminal.errors import ConfigError

# The runtime whose rules are those of the target's own library.
_RUNTIME_OF = {
    "compressed-tensors": "transformers",
    "quark": "quark",
    "modelopt": "modelopt",
    "auto-round": "auto_round",
}


def served_activation(target: str, activation: MXFormat) -> MXFormat | None:
    """Return an input's format by the rules of the target's library; None where these are not known."""
    try:
        return RUNTIMES[_RUNTIME_OF[target]].compute("activation", "activation", activation)
    except (KeyError, ConfigError):
        return None
