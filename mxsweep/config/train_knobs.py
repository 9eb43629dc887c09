"""Declare the knobs of training: how, on what and from where, and the formats of the operands of each product.

They are entries of the table in ``knob_table.py``, which holds the knobs of runs.
"""

from __future__ import annotations

import re
from typing import Any

from mxsweep.config import effects
from mxsweep.config.knob import UNSET, Kind, Knob, Scope
from mxsweep.config.train_config import FINETUNE, FROM_SCRATCH
from mxsweep.config.value_types import (
    WORD,
    WORD_OR_NULL,
    Checked,
    Choice,
    Flag,
    Number,
    Operand,
    Text,
    ValueType,
    Whole,
)
from mxsweep.formats.training import BACKWARDS, FIXED, HIGH_PRECISION, PRODUCTS, SIGNS
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted

NOT_TRAINED = "none"
NO_RECIPE = "none"
PLAIN_RECIPE = "bf16"  # that quantizes nothing
KEPT_WORDS = ("lm_head", "embeddings", "first", "last")
KEPT = r"lm_head|embeddings|(first|last)(:[1-9]\d{0,5})?"
OPERAND = Operand("auto, none, a format, an element, or a mapping, as {element: fp4_e2m1, rounding: stochastic}")
COUNT_OR_NULL = Whole("a whole number of steps, 1 to 10^9, or null", 1, 10**9, words=(None,))
MOST_CHANNELS, MOST_BLOCKS = 2**18, 2**10  # of random weights
ORDER = Whole("0, or a whole number", 0, 2**15)
SHARE = Number("0 to 1", 0, 1)


def check_betas(knob: str, value: Any) -> None:
    """Raise ConfigError unless the value is a pair of shares below 1."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    numbers = pair and all(isinstance(beta, int | float) and not isinstance(beta, bool) for beta in value)
    if not numbers or not all(0 <= beta < 1 for beta in value):
        raise ConfigError(
            f"{knob}: {quoted(value)} is not allowed; allowed: two numbers from 0 to below 1, as [0.9,0.95]"
        )


def check_kept(knob: str, value: Any) -> None:
    """Raise ConfigError unless the value lists what may be kept: a word for a part of the model, or a pattern."""
    names = value if isinstance(value, list | tuple) else [value]
    for name in names:
        pattern = isinstance(name, str) and re.search(r"[.*?\[]", name)
        if not isinstance(name, str) or not (pattern or re.fullmatch(KEPT, name)):
            raise ConfigError(
                f"{knob}: {quoted(name)} is not known; allowed: {', '.join(KEPT_WORDS)}, first:N and last:N decoder "
                "blocks, or glob patterns over names of modules, as *.down_proj"
            )


def kept_blocks(name: str) -> tuple[str, int] | None:
    """Return from which end an entry of keep_high keeps decoder blocks, and how many; None of an entry that keeps other
    things.
    """
    ends = re.fullmatch(r"(first|last)(?::(\d+))?", name)
    return None if ends is None else (ends[1], int(ends[2] or 1))


def one_kept_word(name: str) -> str:
    """Return the one word for what an entry of keep_high keeps: ``first:1`` is ``first``."""
    return name.removesuffix(":1") if name in ("first:1", "last:1") else name


def _train(path: str, help: str, type: ValueType, scope: Scope = Scope.BASELINE, **more: Any) -> Knob:
    """Declare a knob of how a model is trained, which is of a baseline's identity as of any run's."""
    place = None if scope is Scope.NONE else "train"
    return Knob(path, help, type, scope, **{"effect": effects.trains, "place": place} | more)


def _corpus(path: str, help: str, type: ValueType, **more: Any) -> Knob:
    """Declare a knob of the text that is trained on."""
    return _train(f"corpus.{path}", help, type, tells_metrics_apart=True, **more)


def _matmuls(path: str, help: str, type: ValueType, off: Any = UNSET) -> Knob:
    """Declare a knob of what the operands of a linear layer's products become while it is trained."""
    return Knob(f"matmuls.{path}", help, type, Scope.RUN, off, effects.trains, place="training", decided_by=("recipe",))


def _product(product: str, sums_over: str, inherits: tuple[str, str]) -> tuple[Knob, ...]:
    """Declare the knobs of one product: its two operands, and whether these are rotated."""
    operands = zip(PRODUCTS[product], inherits, strict=True)
    return (
        *(
            _matmuls(
                f"{product}.{name}", f"{name} of {product}, blocks along {sums_over}; auto: {parent}", OPERAND, "auto"
            )
            for name, parent in operands
        ),
        _matmuls(
            f"{product}.hadamard",
            f"order of the random Hadamard matrices by which both operands of {product} are rotated; 0: not at all",
            ORDER,
            0,
        ),
    )


TRAIN_GROUPS = (
    Knob(
        "init",
        "weights that training begins with; 1m to 60m: a Llama of so many parameters, tiny one for a CPU; model: the "
        "run's model",
        ValueType(),
        Scope.BASELINE,
        effect=effects.trains,
        place="train",
        is_group=True,
    ),
    Knob(
        "corpus",
        "text that is trained on; stories: embedded; text: corpus.path=FILE; hub: a data set",
        ValueType(),
        Scope.BASELINE,
        effect=effects.trains,
        place="train",
        is_group=True,
    ),
    Knob(
        "train",
        "whether the run first trains its model; none; from_scratch: from random weights; finetune: from model",
        ValueType(),
        Scope.BASELINE,
        off=NOT_TRAINED,
        label="train",
        shown_at="train.method",
        place="train",
        is_group=True,
    ),
    Knob(
        "recipe",
        "formats of a training by one name; they are in conf/recipe/, and anything typed beside it wins",
        ValueType(),
        Scope.RUN,
        off=NO_RECIPE,
        effect=effects.trains,
        label="recipe",
        shown_at="recipe.name",
        place="training",
        is_group=True,
    ),
)

PRODUCTS_OF_LAYERS = (
    Knob("recipe.name", "what tables call it; auto: as recipe", WORD, Scope.NONE, effect=effects.trains),
    *_product("fprop", "the input's channels", ("format.activation", "format.weight")),
    *_product("dgrad", "the output's channels", ("fprop.input's", "fprop.weight's")),
    *_product("wgrad", "the tokens of a sequence", ("fprop.input's", "fprop.input's")),
    _matmuls(
        "backward",
        "what the operands that fprop has, too, are made from in dgrad and wgrad: the tensors as they were "
        "(high_precision), or what fprop quantized (requantized)",
        Choice(words=BACKWARDS),
        HIGH_PRECISION,
    ),
    _matmuls("signs", "of Hadamard matrices: drawn once (fixed), or each step (step)", Choice(words=SIGNS), FIXED),
    _matmuls(
        "keep_high",
        "what stays as it is whatever else is said: lm_head, embeddings, first, first:N, last, last:N (decoder "
        "blocks), or glob patterns over names of modules",
        Checked("a list of such words and patterns", check_kept),
    ),
)

TRAINING = (
    _train("train.method", "as train", Choice(words=(NOT_TRAINED, FROM_SCRATCH, FINETUNE)), off=NOT_TRAINED),
    _train(
        "train.tokens",
        "how long, in tokens; the last step is whole; instead of train.steps",
        Whole("a whole number of tokens, 1 to 10^15, or null", 1, 10**15, words=(None,)),
    ),
    _train("train.steps", "how long, in steps; instead of train.tokens", COUNT_OR_NULL),
    _train("train.batch", "sequences of a step", Whole("sequences, 1 to 10^6", 1, 10**6)),
    _train(
        "train.length",
        "tokens of a sequence, a multiple of every block that runs along them; of a new model its longest text, too",
        Whole("tokens of a sequence, 2 to 10^6", 2, 10**6),
        tells_metrics_apart=True,
    ),
    _train(
        "train.micro_batch",
        "sequences at a time, whose gradients are added up; auto: as many as fit",
        Whole("auto, or a whole number of sequences, at least 1", 1, words=("auto",)),
        Scope.NONE,
    ),
    _train(
        "train.optimizer",
        "adamw; muon: Muon for matrices within the blocks, AdamW for the rest",
        Choice(words=("adamw", "muon")),
    ),
    _train("train.lr", "the highest learning rate", Number("above 0", 0, with_low=False)),
    _train(
        "train.schedule",
        "of the learning rate after its warm-up; wsd: constant, then linear to its end; cosine, linear, constant",
        Choice(words=("wsd", "cosine", "linear", "constant")),
    ),
    _train("train.warmup", "share of the steps in which the learning rate rises", SHARE),
    _train(
        "train.decay",
        "of wsd: share of the steps, the last ones, in which it falls",
        SHARE,
        effect=effects.decays_at_the_end,
    ),
    _train("train.final_lr", "where the learning rate ends, as a share of the highest", SHARE),
    _train(
        "train.betas", "of AdamW; Muon has torch's own momentum", Checked("two numbers from 0 to below 1", check_betas)
    ),
    _train("train.weight_decay", "of matrices", Number("0 or more")),
    _train(
        "train.clip",
        "the largest norm of the gradients; null: any",
        Number("above 0, or null", 0, with_low=False, or_null=True),
    ),
    _train("train.dtype", "of products and activations", Choice(words=("float32", "bfloat16"))),
    _train(
        "train.master_dtype",
        "of the weights that are trained, and of the optimizer",
        Choice(words=("float32", "bfloat16")),
    ),
    _train("train.eval_every", "steps between validation losses; null: at the end only", COUNT_OR_NULL, Scope.NONE),
    _train(
        "train.eval_sequences",
        "held-out sequences that the validation loss is of",
        Whole("sequences, 1 to 10^6", 1, 10**6),
        tells_metrics_apart=True,
    ),
    _train("train.checkpoint_every", "steps between checkpoints; null: at the end only", COUNT_OR_NULL, Scope.NONE),
    _train(
        "train.measure_every",
        "steps between measures of what quantizing does to operands and gradients; null: at the end only",
        COUNT_OR_NULL,
        Scope.NONE,
    ),
    _train("train.keep", "newest checkpoints kept until it is done", Whole("checkpoints, at least 1", 1), Scope.NONE),
    _train("train.processes", "how many train one model", Whole("processes, 1 to 1,024", 1, 2**10), Scope.NONE),
    _train("train.parallel", "how several share it: ddp, fsdp", Choice(words=("ddp", "fsdp")), Scope.NONE),
    _train("train.compile", "true: the model is compiled", Flag("true, false")),
    _corpus("source", "as corpus", Choice(words=("stories", "text", "hub"))),
    _corpus(
        "path",
        "of text: a UTF-8 file, also .xz, .gz or .jsonl; of hub: the name of a data set, or a folder of one",
        WORD_OR_NULL,
        kind=Kind.PATH,
    ),
    _corpus("name", "of hub: the data set's configuration", WORD_OR_NULL, kind=Kind.TEXT),
    _corpus("split", "of hub: train, or another of the data set's", WORD, kind=Kind.TEXT),
    _corpus("field", "of hub and of a .jsonl file: where a row's text stands", WORD, kind=Kind.TEXT),
    _corpus(
        "heldout",
        "a file that the validation loss is of; null: the end of the corpus",
        WORD_OR_NULL,
        kind=Kind.PATH,
    ),
    _corpus(
        "heldout_share",
        "how much of the corpus that end is",
        Number("above 0 and below 1", 0, 1 - 2**-53, with_low=False),
    ),
    _train("init.source", "as init: random, or model", Choice(words=("random", "model"))),
    _train(
        "init.hidden",
        "channels of the residual stream",
        Whole(f"channels, up to {MOST_CHANNELS:,}, or 0 with init=model", 0, MOST_CHANNELS),
    ),
    _train(
        "init.layers", "decoder blocks", Whole(f"blocks, up to {MOST_BLOCKS}, or 0 with init=model", 0, MOST_BLOCKS)
    ),
    _train(
        "init.heads",
        "query heads of a block",
        Whole(f"heads, up to {MOST_BLOCKS}, or 0 with init=model", 0, MOST_BLOCKS),
    ),
    _train(
        "init.kv_heads",
        "key-value heads of a block",
        Whole(f"heads, up to {MOST_BLOCKS}, or 0 with init=model", 0, MOST_BLOCKS),
    ),
    _train(
        "init.mlp",
        "channels within the feed-forward layer",
        Whole(f"channels, up to {MOST_CHANNELS:,}, or 0 with init=model", 0, MOST_CHANNELS),
    ),
    _train(
        "init.tokenizer",
        "of random weights; auto: the stories' words for stories, else bytes; bytes; or a folder with one",
        Text("auto, bytes, or a folder"),
        kind=Kind.PATH,
    ),
)
