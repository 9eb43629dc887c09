"""The errors that mxsweep raises for what a user can mend."""


class ConfigError(ValueError):
    """A configuration that cannot be run. The message names the field, the value and what is allowed."""
