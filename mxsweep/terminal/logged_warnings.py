"""Keep what a user is warned of: who watches reads it in the log, who reads the results finds it in the record."""

from __future__ import annotations

import logging


class LoggedWarnings(list[str]):
    """List warnings, a sentence each, of which each that comes by ``warn`` is logged as well.

    Args:
        log: of the module that warns.
    """

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def warn(self, message: str) -> None:
        """Log a warning, and keep it."""
        self._log.warning(message)
        self.append(message)
