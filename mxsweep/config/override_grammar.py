"""Read and write single words in Hydra's override grammar: ``KNOB=VALUE``, quoting, and the values of a sweep."""

from __future__ import annotations

import math
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep
from hydra.errors import HydraException, OverrideParseException

from mxsweep.terminal.errors import ConfigError

MOST_VALUES = 10_000  # of one knob, and runs of a sweep: more are a slip, and composing them would take hours


def excerpt(text: str, most: int = 200) -> str:
    """Return a word of the command line for a message: cut where it is long, and so that any terminal can print it."""
    text = text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[-most // 4 :]}"
    return text if text.isprintable() else repr(text)[1:-1]


def quote(text: str) -> str:
    """Put ``text`` in quotes, as Hydra reads them: a backslash means itself but before a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


def verbatim(text: str) -> str:
    """Return a value that Hydra and OmegaConf read as ``text``, whatever is in it."""
    return quote(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def read_override(word: str) -> Override:
    """Parse an override as Hydra does. Raises ConfigError."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, OverrideParseException, ValueError, TypeError, RecursionError):
        # Their messages are of a grammar's tokens.
        raise ConfigError(
            f"{excerpt(word)}: cannot be read as KNOB=VALUE; a value with other than letters, digits and ./:_+-% "
            """goes into quotes that the shell leaves, as "KNOB='a, b'\""""
        ) from None


def is_readable(word: str) -> bool:
    """Tell whether Hydra can parse an override."""
    try:
        read_override(word)
    except ConfigError:
        return False
    return True


def sweep_values(override: Override, options: list[str] | None = None) -> list[Any]:
    """Return the values that an override names, as Hydra has them; of a glob, the ``options`` that match.

    Raises:
        ConfigError: no value, more than can be meant, or a sweep that names no values (an interval, a glob over no
            group).
    """
    value, key = override.value(), override.key_or_group
    typed = excerpt(override.input_line or key)
    values: list[Any]
    if isinstance(value, Glob):
        if options is None:
            raise ConfigError(f"{key}: glob() is for knobs whose values have names, and this is none; name the values")
        values = list(value.filter(options))
    elif not override.is_sweep_override():
        return [value]
    elif isinstance(value, RangeSweep):
        count = _range_count(value)
        if count is None or count > MOST_VALUES:
            why = "has no end" if count is None else f"is {count:,} values"
            raise ConfigError(f"{typed}: {why}; allowed: range(START,STOP,STEP) of at most {MOST_VALUES:,}")
        values = list(override.sweep_iterator())
    elif isinstance(value, ChoiceSweep):
        values = list(override.sweep_iterator())
    else:
        raise ConfigError(f"{typed}: names no values; allowed: A,B,C or range(START,STOP,STEP)")
    if not values:
        raise ConfigError(f"{typed}: comes to no value; name one or more")
    return values


def _range_count(value: RangeSweep) -> int | None:
    """Count the values of a range; None where there is no end, or a bound is no number."""
    start, stop, step = (0.0 if part is None else float(part) for part in (value.start, value.stop, value.step))
    if not step or not math.isfinite(start + stop + step) or not math.isfinite((stop - start) / step):
        return None
    return max(0, math.ceil((stop - start) / step))
