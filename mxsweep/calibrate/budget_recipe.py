"""Write a budget's choice of formats as a config file that can be kept, edited and run again."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mxsweep.calibrate.budget import Choice
from mxsweep.config.candidates import as_written
from mxsweep.config.format_config import FormatConfig, fields_of


def recipe_yaml(
    choice: Choice, *, fixed: Mapping[str, FormatConfig] | None = None, overrides: Sequence[str] = ()
) -> str:
    """Return the choice as the text of ``experiment/NAME.yaml`` in a ``--config-dir`` folder.

    The file sets ``modules`` and nothing else: a name means what it does with the run's own block size and scale.

    Args:
        fixed: the run's own ``modules``, which stay, behind the choice, over which they win.
        overrides: the run's knobs, told in a comment.
    """
    modules: dict[str, Any] = {module: as_written(name) for module, name in choice.formats.items()}
    modules |= {pattern: fields_of(formats) for pattern, formats in (fixed or {}).items()}
    knobs = [word for word in overrides if not re.match(r"\+*(ptq\.(budget|formats)|modules|experiment)=", word)]
    counts = [f"{name} in {count}" for name, count in Counter(choice.formats.values()).most_common()]
    lines = [
        "# @package _global_",
        f"# A format for each module, chosen for at most {choice.budget:g} bits a weight, scales included; these are",
        f"# {choice.bits_per_weight:.4f}: {', '.join(counts)} modules.",
        f"# Predicted loss: {choice.predicted_loss:.4g} nats a token, the sum of the KL divergences from the",
        "# unquantized model with one module quantized at a time.",
        "# As experiment/NAME.yaml in FOLDER, with what else the run was:",
        f"#   python -m mxsweep --config-dir FOLDER experiment=NAME {' '.join(map(_quoted, knobs))}".rstrip(),
        yaml.safe_dump({"modules": modules}, sort_keys=False, width=200, default_flow_style=None).rstrip(),
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """Return a word as a shell takes it, in one line."""
    return shlex.quote(word if word.isprintable() else repr(word)[1:-1])
