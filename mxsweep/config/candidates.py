"""Read the formats that a bit budget chooses between, by their names in ``ptq.formats``. No torch.

An option of ``format`` (mxfp4) says what inputs become as well as weights, and may bring its own block size and scale,
as it does in ``modules``. An element (fp4_e2m1) is of weights alone: a module that gets it keeps the run's format of
inputs, block size and scale, as ``modules={NAME: {weight: fp4_e2m1}}`` says.

Both are worth having, as a budget counts weights only. Of a Llama of 31 million weights at 4.5 bits (see
:mod:`mxsweep.calibrate.budget`), one choice of mxfp4, mxfp6_e2m3 and mxfp8_e4m3 leaves a KL of 0.073 nats a token with
inputs as the options have them; the same formats of weights leave 0.114 with all inputs in fp4_e2m1, and 0.030 with
all inputs in fp6_e2m3, as in a run of w4a6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mxsweep.config.format_config import FormatConfig, element_name, fields_of, read_format, resolve_format
from mxsweep.config.option_files import option_names
from mxsweep.formats import parse_element
from mxsweep.terminal.errors import ConfigError


def resolve_candidates(
    names: Sequence[str], run: FormatConfig, explicit: dict[str, Any], folders: Sequence[Path] | None = None
) -> dict[str, FormatConfig]:
    """Return each name's formats.

    Args:
        run: the run's own formats.
        explicit: block_size, scale and tensor_scale as the run was given them, "auto" where it was not.
        folders: of config groups, where options are looked for; None for mxsweep's own.

    Raises:
        ConfigError: a name that stands there twice, or that leaves weights as they are. (Whether an element exists is
            seen when its MXFormat is made.)
    """
    if not names:
        raise ConfigError("ptq.formats: is empty; allowed: one or more names of formats")
    candidates: dict[str, FormatConfig] = {}
    for name in names:
        if name in candidates:
            raise ConfigError(f"ptq.formats: {name!r} stands there twice; allowed: each format once")
        candidates[name] = _resolve(name, run, explicit, folders)
        if candidates[name].weight == "none":
            raise ConfigError(
                f"ptq.formats: {name!r} leaves weights as they are; allowed: formats that quantize weights "
                "(modules={NAME: none} leaves a module as it is, which the budget counts at the bits it has)"
            )
    return candidates


def as_written(name: str) -> str | dict[str, str]:
    """Return what ``modules`` calls the format that a name in ``ptq.formats`` means: an option, or an element."""
    return {"weight": element_name(name)} if _is_element(name) and name not in option_names("format") else name


def _is_element(name: str) -> bool:
    try:
        parse_element(element_name(name))
    except ValueError:
        return False
    return True


def _resolve(name: str, run: FormatConfig, explicit: dict[str, Any], folders: Sequence[Path] | None) -> FormatConfig:
    if named := read_format(name, explicit, f"ptq.formats[{name}].", folders):
        return named
    own = fields_of(run) | {"weight": name}
    return resolve_format(own, dict.fromkeys(explicit, "auto"), f"ptq.formats[{name}].")
