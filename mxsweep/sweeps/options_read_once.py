"""Have Hydra read each file of options once for all runs that it composes, where it reads them all for each.

To read one takes several times as long as to copy what was read, which each run needs of its own: Hydra merges it into
the run's config.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult


class OptionsReadOnce(ConfigRepository):
    """Read options as Hydra does, and each once, for as long as it is looked for in the same folders."""

    def __init__(self, repository: ConfigRepository) -> None:
        self.sources = repository.sources
        self._read: dict[tuple[str, ...], ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a copy of what an option holds; None where there is none."""
        place = (config_path, *(source.full_path() for source in self.sources))
        if place not in self._read:
            self._read[place] = super().load_config(config_path)
        return copy.deepcopy(self._read[place])

    def __deepcopy__(self, _: Any) -> OptionsReadOnce:
        """Return one for a run, which may look in further folders, and has what was read in common with the others."""
        other = OptionsReadOnce(self)
        other.sources, other._read = list(self.sources), self._read
        return other
