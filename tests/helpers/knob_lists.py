"""Lists of knobs for tests, from the table."""

from __future__ import annotations

from mxsweep.config import knobs


def groups() -> list[str]:
    """Return the groups that are chosen by name; Hydra's own are none."""
    return [knob.path for knob in knobs.all_knobs() if knob.is_group and not knob.path.startswith(knobs.HYDRA)]


def leaves() -> list[str]:
    """Return the knobs that are set by their path; Hydra's own are none."""
    return [knob.path for knob in knobs.all_knobs() if not knob.is_group and not knob.path.startswith(knobs.HYDRA)]
