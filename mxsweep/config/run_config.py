"""Configure one run: typed values, checked together, with their identity, the run's name and record."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mxsweep.config.combinations import check_combination
from mxsweep.config.recorded_config import recorded
from mxsweep.config.run_identity import identity_of, run_id
from mxsweep.config.run_parts import RunParts
from mxsweep.files.digests import json_digest


@dataclass(frozen=True)
class RunConfig(RunParts):
    """Hold everything that one run does, as ``composed_config.from_hydra`` makes it: checked, and final."""

    def __post_init__(self) -> None:
        check_combination(self)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return what determines the result, as plain data; see :mod:`mxsweep.config.run_identity`.

        Raises:
            ConfigError: a file of the model or of the data vanished or cannot be read.
        """
        return identity_of(self)

    @cached_property
    def config_hash(self) -> str:
        """Return the SHA-256 (hex) of the identity. Raises ConfigError as that does."""
        return json_digest(self.identity)

    def run_id(self, stamp: str) -> str:
        """Return the run's name: when, formats, habitual knobs, and the beginning of its hash."""
        return run_id(self, stamp, self.config_hash)

    def as_dict(self) -> dict[str, Any]:
        """Return the config for the record: nested, JSON-able, with the labels that tables use as ``name``."""
        return recorded(self)
