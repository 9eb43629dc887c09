"""The formats that a bit budget chooses between: what a name in ``ptq.formats`` means. No torch.

An option of ``format`` (mxfp4) says what inputs become as well as weights, and may bring its own block size and scale,
as it does in ``modules``. An element (fp4_e2m1) is of weights alone: a module that gets it keeps the run's format of
inputs, block size and scale, as ``modules={NAME: {weight: fp4_e2m1}}`` says.

Both are worth having, as a budget counts weights only. Of a Llama of 31 million weights at 4.5 bits (see
:mod:`mxsweep.calibrate.budget`), one choice of mxfp4, mxfp6_e2m3 and mxfp8_e4m3 leaves a KL of 0.073 nats a token with
inputs as the options have them; the same formats of weights leave 0.114 with all inputs in fp4_e2m1, and 0.030 with
all inputs in fp6_e2m3, as in a run of w4a6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mxsweep.config.format_config import FormatConfig, element_name, resolve_format
from mxsweep.config.option_files import option_names, read_option
from mxsweep.terminal.errors import ConfigError

OF_AN_OPTION = {"block_size": 32, "scale": "e8m0", "tensor_scale": False}  # where the option does not say


def resolve_candidates(names: Sequence[str], run: FormatConfig, explicit: dict[str, Any]) -> dict[str, FormatConfig]:
    """Each name's formats.

    Args:
        run: the run's own formats.
        explicit: block_size, scale and tensor_scale as the run was given them, "auto" where it was not.

    Raises:
        ConfigError: a name that stands there twice, or that leaves weights as they are. (Whether an element exists is
            seen when its MXFormat is made.)
    """
    found: dict[str, FormatConfig] = {}
    for name in names:
        if name in found:
            raise ConfigError(f"ptq.formats: {name!r} stands there twice; allowed: each format once")
        found[name] = _resolve(name, run, explicit)
        if found[name].weight == "none":
            raise ConfigError(
                f"ptq.formats: {name!r} leaves weights as they are, and a budget counts the bits of quantized ones; "
                "allowed: formats that quantize weights (modules={NAME: none} keeps a module out of the budget)"
            )
    return found


def as_written(name: str) -> str | dict[str, str]:
    """What ``modules`` calls the format that a name in ``ptq.formats`` means."""
    return name if name in option_names("format") else {"weight": element_name(name)}


def _resolve(name: str, run: FormatConfig, explicit: dict[str, Any]) -> FormatConfig:
    option = read_option("format", name)
    if option is not None:
        return resolve_format(OF_AN_OPTION | option, explicit, f"ptq.formats[{name}].")
    own = dataclasses.asdict(run) | {"weight": name}
    if isinstance(own["block_size"], tuple):
        own["block_size"] = list(own["block_size"])
    return resolve_format(own, dict.fromkeys(explicit, "auto"), f"ptq.formats[{name}].")
