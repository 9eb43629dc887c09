"""Name the errors that mxsweep raises for what a user can mend."""


class CommandError(ValueError):
    """Stop a command for a reason that its user can mend, which the message says."""


class ConfigError(CommandError):
    """Refuse a configuration that cannot be run. The message names the field, the value and what is allowed."""
