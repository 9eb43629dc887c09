"""Complete the words of the command that trains: which training, and which recipe, where nothing says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mxsweep.config.checks import is_folder
from mxsweep.config.knobs import decides_no_result
from mxsweep.config.option_files import config_folders, set_leaves
from mxsweep.config.overrides import chosen_experiment
from mxsweep.terminal.errors import ConfigError

TRAINING, RECIPE = "train=from_scratch", "recipe=mxfp4"
TRAININGS = (TRAINING, "train=finetune")
SAY_HOW = ("train", "train.method")
SAY_WHAT = ("recipe", "format", "format.weight", "format.activation")


def training_words(words: Sequence[str], config_dir: Path | None) -> list[str]:
    """Return the words with those that make them a training, in front, where neither they nor an experiment has any.

    Words that resume a sweep and name no runs stay as they are.

    Raises:
        ConfigError: train=none, which trains nothing.
    """
    typed = [word.partition("=")[0].lstrip("+~") for word in words]
    for word in words:
        if word.lstrip("+") in ("train=none", "train=null", "train='none'"):
            raise ConfigError(
                "train: 'none' trains nothing; allowed here: from_scratch, finetune; without training: python -m "
                "mxsweep"
            )
    resumes = any(word.lower() == "resume=true" for word in words)
    if resumes and all(map(decides_no_result, typed)):
        return list(words)
    given = {*typed, *_of_experiment(words, config_dir)}
    added = [word for word, said in ((TRAINING, SAY_HOW), (RECIPE, SAY_WHAT)) if given.isdisjoint(said)]
    return [*added, *words]


def _of_experiment(words: Sequence[str], config_dir: Path | None) -> Iterable[str]:
    """Return the knobs and groups that the chosen experiment sets or sweeps; none where it cannot be read."""
    if config_dir is not None and not is_folder(config_dir):
        return ()
    _, content = chosen_experiment(words, config_folders(config_dir))
    sweep = content.get("sweep") or []
    grids = [grid for grid in (sweep if isinstance(sweep, list) else [sweep]) if isinstance(grid, dict)]
    defaults = [entry for entry in content.get("defaults") or [] if isinstance(entry, dict)]
    groups = [str(key).removeprefix("override ").strip().lstrip("/") for entry in defaults for key in entry]
    return [*set_leaves(content), *groups, *(str(key) for grid in grids for key in grid)]
