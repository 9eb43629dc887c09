"""Write what ``python -m mxsweep.train --help`` says: the knobs of trainings first, with their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mxsweep.config import knob_defaults, knobs
from mxsweep.config.command_line import flags_help
from mxsweep.config.effects import decays_at_the_end, trains
from mxsweep.config.knob_help import GROUP_COLUMN, LEAF_COLUMN, knob_lines
from mxsweep.config.train_words import RECIPE, TRAINING, TRAININGS
from mxsweep.terminal.written_values import written

HEAD = """\
mxsweep.train: which formats can a language model be trained in?

python -m mxsweep.train [KNOB=VALUE ...]     a sweep: each recipe, and what it is compared with (recipe=bf16), is
                                             trained, then evaluated; tables, curves and a page as of any sweep
It is `python -m mxsweep -m train=from_scratch recipe=mxfp4 KNOB=VALUE ...`, each of the two where nothing says other.
Defaults below are those of {training}; `python -m mxsweep.train {other} --help` lists the other's.
"""
EXAMPLES = """\
Examples
  python -m mxsweep.train                                         the small Llama on stories, on a CPU: minutes
  python -m mxsweep.train recipe=mxfp4,mxfp4_sr seed=1,2,3        pairs of the same seed and order of data
  python -m mxsweep.train format=mxfp4 matmuls.dgrad.grad=fp4_e3m0,fp8_e5m2
  python -m mxsweep.train recipe=nvfp4 'matmuls.wgrad.grad={rounding: even}' matmuls.keep_high=[lm_head,embeddings]
  python -m mxsweep.train init=10m corpus=text corpus.path=FILE.txt.xz train.tokens=25_000_000 train.length=512 \\
      train.batch=64 train.optimizer=adamw train.lr=2e-3
  python -m mxsweep.train train=finetune model=FOLDER corpus=text corpus.path=FILE.txt recipe=w6a6g4,mxfp4
  python -m mxsweep.train recipe=mxfp4,mxfp8 dry_run=true         what it would train
  python -m mxsweep.train resume=true                             go on with the newest sweep
  python -m mxsweep model=RUN/model format=mxfp4                  what was trained is a model like any other
"""
OPERANDS = """
An operand is none (as it is), a format or an element by its name, or a mapping; auto, and what a mapping leaves out, is
inherited. In a mapping: element, block_size (N: N elements along the sum; [N,1]: across it; [R,C]: a tile, C along it),
scale, scale_bits, tensor_scale, rounding, scale_rounding, symmetric, prescale (0.75 before stochastic rounding keeps it
without bias) and four_over_six (the better of two scales for each block of NVFP4).\
"""
FORMATS = ("format", "block_size", "scale", "scale_bits", "rounding", "scale_rounding", "symmetric", "modules")
OTHERS = ("task", "seed", "model", "model.device", "experiment", "hydra/launcher", "logging", "dry_run", "resume")


def training_help(folders: Sequence[Path] | None = None, words: Sequence[str] = ()) -> str:
    """Return the help; options of groups are those in ``folders``, and defaults those of the training in ``words``."""
    typed = [word for word in (TRAINING, *words) if word in TRAININGS]
    defaults = knob_defaults.defaults_of(*typed[-1].split("="))
    defaults["recipe"] = f"{RECIPE.partition('=')[2]} where no format= is typed"
    paths = [knob.path for knob in knobs.all_knobs()]
    groups = ("train", "recipe", "init", "corpus")
    leaves = [path for path in paths if knobs.TABLE[path].effect in (trains, decays_at_the_end) and path not in groups]
    # How long comes before how exactly.
    leaves = sorted((path for path in leaves if not _repeats(path)), key=lambda path: path.startswith("matmuls."))
    other = next(training for training in TRAININGS if training != typed[-1])
    parts = [
        HEAD.format(training=typed[-1], other=other),
        "Chosen by name",
        *_lines(groups, GROUP_COLUMN, folders, defaults),
        "\nSet by their path (and their defaults)",
        *_lines(leaves, LEAF_COLUMN, folders, defaults),
        OPERANDS,
        "\nFormats of all operands, where neither matmuls. nor a recipe says other",
        *_lines(FORMATS, GROUP_COLUMN, folders, defaults),
        "\nOf all that `python -m mxsweep --help` lists, besides",
        *_lines(OTHERS, GROUP_COLUMN, folders, defaults),
        "",
        EXAMPLES,
        flags_help().rstrip(),
    ]
    return "\n".join(parts)


def _repeats(path: str) -> bool:
    """Return whether a leaf holds no more than the name of the group that it is in."""
    return path in ("train.method", "corpus.source", "init.source", "recipe.name")


def _lines(paths: Sequence[str], column: int, folders: Sequence[Path] | None, defaults: dict[str, object]) -> list[str]:
    lines: list[str] = []
    for path in paths:
        default = written(defaults[path]) if path in defaults else ""
        lines += knob_lines(knobs.TABLE[path], folders, column, f" (= {default})" if default else "")
    return lines
