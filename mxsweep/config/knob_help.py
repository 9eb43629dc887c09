"""Write what ``--help`` says of the knobs, from the table; and the text of one knob that the knob page has, too."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from mxsweep.config import effects, knobs
from mxsweep.config.knob import Knob
from mxsweep.config.option_files import LAUNCHER, option_names
from mxsweep.config.value_types import Choice, Flag, Listing

WIDTH = 118
GROUP_COLUMN, LEAF_COLUMN = 18, 32  # where texts begin


def named_values(knob: Knob, folders: Sequence[Path] | None = None) -> list[str]:
    """Return the values of a knob that have a name: options of a group, or the words of a choice.

    Args:
        folders: of config groups; None for mxsweep's own.
    """
    if knob.is_group:
        return ["basic"] * (knob.path == LAUNCHER) + option_names(knob.path, folders)
    if isinstance(knob.type, Choice):
        return list(knob.type.choices())
    if isinstance(knob.type, Flag):
        return [*knob.type.words, "true", "false"]
    return list(knob.type.words) if isinstance(knob.type, Listing) else []


def knobs_help(folders: Sequence[Path] | None = None) -> str:
    """Return every knob with what it is and its values: groups, which are chosen by name, then the leaves below."""
    groups = [knob for knob in knobs.all_knobs() if knob.is_group]
    leaves = [knob for knob in knobs.all_knobs() if not knob.is_group and knob.path != "sweep"]
    lines = [line for knob in groups for line in knob_lines(knob, folders, GROUP_COLUMN)]
    lines += ["", "Leaves, set by their path (those of trainings: python -m mxsweep.train --help)"]
    others = [knob for knob in leaves if knob.effect is not effects.trains]
    return "\n".join(lines + [line for knob in others for line in knob_lines(knob, folders, LEAF_COLUMN)])


def register_knobs_help(folders: Sequence[Path] | None = None) -> None:
    """Make ``${knobs_help:}`` in the config files stand for the help of all knobs."""
    OmegaConf.register_new_resolver("knobs_help", lambda: knobs_help(folders), replace=True)


def knob_lines(knob: Knob, folders: Sequence[Path] | None, column: int, behind: str = "") -> list[str]:
    """Return the lines of a knob's help, its text from ``column``, with ``behind`` it all."""
    values = named_values(knob, folders)
    said = bool(values) and all(value in knob.help for value in values)
    allowed = " | ".join(values) or knob.type.allowed
    return textwrap.wrap(
        (f"{knob.help} [{allowed}]" if allowed and not said else knob.help) + behind,
        WIDTH,
        initial_indent=f"  {knob.path} ".ljust(column),
        subsequent_indent=" " * column,
        break_long_words=False,
        break_on_hyphens=False,
    )
