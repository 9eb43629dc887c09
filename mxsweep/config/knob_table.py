"""Declare every knob, once, and none of their defaults, which are in ``conf/``.

From this table come a run's identity and its baseline's config, what tables show and call it, ``--help``,
docs/knobs.md, how the command line reads a value, which paths count from the folder that they were typed in, and what
is fuzzed. A new leaf is an entry here, its default in ``conf/config.yaml``, and the code that uses it; with an ``off``
value, runs without it stay the runs that they were. (Knobs of sweeps, which decide no result, are declared in
``sweep_knobs.py``, those of training in ``train_knobs.py``; all are part of the table.)

The order is that of the help, of columns, and of checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mxsweep.config import effects
from mxsweep.config.checks import check_activation_scale, check_limit, check_model_path
from mxsweep.config.knob import UNSET, Kind, Knob, Remedy, Scope
from mxsweep.config.rules_config import ALL_TOKENS, LAST_WORDS, RULES, SCALE_ROUNDING, SEARCHED, rule_type
from mxsweep.config.runtimes import NO_RUNTIME, RUNTIME_NAMES
from mxsweep.config.sweep_knobs import LAUNCHERS, SWEEPS, sweep_knob
from mxsweep.config.train_knobs import PRODUCTS_OF_LAYERS, TRAIN_GROUPS, TRAINING
from mxsweep.config.value_types import (
    MOST_OF_A_BLOCK,
    WORD,
    WORD_OR_NULL,
    Block,
    Checked,
    Choice,
    Element,
    Flag,
    Listing,
    Mapping,
    Number,
    Pattern,
    ValueType,
    Whole,
)
from mxsweep.config.weight_methods import ROUND_TO_NEAREST, WEIGHT_METHOD_NAMES
from mxsweep.formats import ARITHMETICS, BACKENDS, ROUNDINGS, SCALE_NAMES
from mxsweep.formats.exported_recipe import EXPORTS, NO_EXPORT
from mxsweep.formats.recipe import DYNAMIC, HADAMARD, LATENT_IN_CACHE, LATENTS, MATMULS, OF_A_MATRIX, OF_FUSED, WUSH
from mxsweep.formats.scale import SCALE_ROUNDINGS_ALLOWED

MOST_NOISE = 100  # further evaluations of a run
FEWEST_OF_CONTEXT = 16  # of fewer no task has a question: a slip as well
MOST_TOKENS = 10**9  # far above what any model has: above them is a slip
SEEDS = Whole("0 to 2^32 - 1", 0, 2**32 - 1)
SCALE_OR_AUTO = Choice(words=SCALE_NAMES, or_auto=True)

TILE = "0 for the whole row, [rows,columns] for a tile of a weight"
BLOCK = Block(f"a whole number, {TILE}")
BLOCK_OR_AUTO = Block(f"auto, a whole number, {TILE}", or_auto=True)


def _format(path: str, help: str, type: ValueType, **more: Any) -> Knob:
    """Declare a knob that says how tensors are quantized: of no baseline, in the identity by the formats it makes."""
    defaults: dict[str, Any] = {"effect": effects.quantizes, "place": "formats"}
    return Knob(path, help, type, Scope.RUN, **defaults | more)


def _rule(name: str, help: str) -> Knob:
    """Declare a knob of a rule, of weights and activations alike or of each."""
    return _format(f"format.{name}", help, rule_type(name), off=RULES[name][1], is_silent=True)


def _kv(path: str, help: str, type: ValueType, off: Any = UNSET, remedy: Remedy | None = None, **more: Any) -> Knob:
    """Declare a knob of how keys and values are quantized."""
    place = more.pop("place", "kv_options" if remedy else "formats")
    effect = more.pop("effect", effects.quantizes_kv)
    return Knob(
        f"kv_quant.{path}",
        help,
        type,
        Scope.RUN,
        off,
        effect,
        place=place,
        remedy=remedy,
        of_remedy=remedy is None,
        **more,
    )


def _ptq(path: str, help: str, type: ValueType, off: Any = UNSET, **more: Any) -> Knob:
    """Declare a knob of how weights are quantized."""
    return Knob(f"ptq.{path}", help, type, Scope.RUN, off, place="ptq", of_remedy=True, **more)


def _rotation(path: str, help: str, type: ValueType, remedy: Remedy | None = None, **more: Any) -> Knob:
    """Declare a knob of which operands are rotated, and how."""
    return Knob(path, help, type, Scope.RUN, place="rotation", remedy=remedy, of_remedy=remedy is None, **more)


def _calibration(path: str, help: str, type: ValueType, off: Any = UNSET, **more: Any) -> Knob:
    """Declare a knob of what is calibrated on."""
    return Knob(
        f"calibration.{path}",
        help,
        type,
        Scope.RUN,
        off,
        effects.calibrates,
        place="calibration",
        of_remedy=True,
        **more,
    )


def _model(path: str, help: str, type: ValueType, scope: Scope = Scope.BASELINE, **more: Any) -> Knob:
    """Declare a knob of which model is loaded, and how."""
    defaults: dict[str, Any] = {"place": "model"}
    return Knob(f"model.{path}", help, type, scope, **defaults | more)


def _task(path: str, help: str, type: ValueType, scope: Scope = Scope.BASELINE, **more: Any) -> Knob:
    """Declare a knob of what is evaluated."""
    defaults: dict[str, Any] = {"place": "task"}
    return Knob(f"task.{path}", help, type, scope, **defaults | more)


GROUPS = (
    _format(
        "format",
        "what weights and activations become; none: the baseline; w4a6: weights fp4_e2m1, activations fp6_e2m3; mint4: "
        "Mase's MXINT4; an element, as fp6_e3m2; format.weight= and format.activation= set one of them",
        Element("any element format"),
        off="none",
        effect=effects.always,
        label="format",
        shown_at="format.name",
        is_group=True,
    ),
    _format(
        "block_size",
        "elements that share a scale; auto: the format's own (16 for nvfp4, else 32); 0: the whole row; "
        "[rows,columns]: a tile of a weight, with format.activation=none",
        BLOCK_OR_AUTO,
        label="block_size",
        is_group=True,
    ),
    _format(
        "scale_bits",
        "width of an e8m0 scale",
        Whole("2 to 8", 2, 8),
        effect=effects.has_scale_bits,
        label="scale_bits",
        is_group=True,
    ),
    _format("scale", "what a scale is stored as; auto: the format's own", SCALE_OR_AUTO, label="scale", is_group=True),
    _format(
        "custom_cuda",
        "false: PyTorch operations; true: the CUDA kernels, which need a GPU",
        Flag("true, false"),
        off=False,
        label="custom_cuda",
        is_group=True,
    ),
    _format(
        "runtime",
        "none: the rules are the run's knobs; else what another runtime computes for weights and inputs, bit for bit: "
        "its roundings, scales and arithmetic; formats that it does not run are refused",
        Choice(words=RUNTIME_NAMES),
        off=NO_RUNTIME,
        place=None,
        is_silent=True,
        is_group=True,
    ),
    _format(
        "kv_quant",
        "what keys and values become; an element, as int3; kv_quant.key= and kv_quant.value= set one of them",
        Element("any element format"),
        off="none",
        effect=effects.always,
        label="kv_quant",
        shown_at="kv_quant.name",
        is_group=True,
    ),
    Knob(
        "ptq",
        "how weights are quantized; rtn: rounded to nearest; clip: scales searched; gptq: errors compensated; "
        "autoround: rounding learned, block by block; qat: finetuned, the whole model at once",
        ValueType(),
        Scope.RUN,
        off=ROUND_TO_NEAREST,
        effect=effects.quantizes_weights,
        label="ptq",
        shown_at="ptq.method",
        place="ptq",
        is_group=True,
        remedy=Remedy(ladder=WEIGHT_METHOD_NAMES),
    ),
    Knob(
        "rotation",
        "in which basis operands are quantized; hadamard: the products in rotation.matmuls rotated; search: those that "
        "rotating significantly helps; wush: blocks of linear layers' inputs multiplied by matrices of their own, from "
        "calibration data, and keys rotated as by hadamard",
        ValueType(),
        Scope.RUN,
        off="none",
        effect=effects.can_rotate,
        label="rotation",
        shown_at="rotation.method",
        place="rotation",
        is_group=True,
        remedy=Remedy(
            names=(("hadamard", "rotation"), ("search", "rotation search"), ("wush", "WUSH")),
            ladder=("none", "hadamard", "search", "wush"),
        ),
    ),
    Knob(
        "calibration",
        "what gptq, clip, wush, searches and budgets look at; auto: stories, for the embedded model; text: "
        "calibration.path=FILE; task: an lm-eval task's train split; hub: a data set",
        ValueType(),
        Scope.RUN,
        off="auto",
        effect=effects.calibrates,
        place="calibration",
        is_group=True,
        of_remedy=True,
    ),
    Knob(
        "limit",
        "how much of a task; none: all of it; below 1: a fraction; else a count",
        Checked("none, a fraction between 0 and 1, or a whole count", check_limit),
        Scope.BASELINE,
        label="limit",
        is_group=True,
        tells_metrics_apart=True,
    ),
    Knob(
        "model",
        "tiny: embedded; hf: any causal language model, by model.path=; FOLDER, FILE.gguf or NAME/ON-THE-HUB: model=hf "
        "with it",
        ValueType(),
        Scope.BASELINE,
        kind=Kind.TEXT,
        label="model",
        shown_at="model.name",
        place="model",
        is_group=True,
        tells_metrics_apart=True,
    ),
    Knob(
        "task",
        "what is evaluated; story: embedded; any lm-eval task; FILE.yaml: one of your own; [a,b]: several; none: of a "
        "run that trains, its held-out loss alone",
        Listing("names of lm-eval tasks"),
        Scope.BASELINE,
        place="task",
        is_group=True,
        tells_metrics_apart=True,
    ),
    *TRAIN_GROUPS,
    Knob(
        "experiment",
        "recipes: what they set and sweep is in conf/experiment/",
        ValueType(),
        Scope.BASELINE,
        place="the knobs that it sets",
        is_group=True,
    ),
    sweep_knob("logging", "none; wandb: each finished run also goes to Weights & Biases", ValueType(), is_group=True),
    sweep_knob(
        "hydra/launcher",
        "where a sweep's runs are done; basic: in turn, here; gpus: a process per GPU; slurm: an array of jobs",
        ValueType(),
        is_group=True,
    ),
)

FORMATS = (
    _format(
        "rounding",
        "of an element: nearest (ties away from zero), even, ties_to_zero, floor (toward zero), stochastic",
        Choice(words=ROUNDINGS),
        decided_by=("recipe", "runtime"),
    ),
    _format(
        "scale_rounding",
        "of an e8m0 scale: floor (OCP MX), even, ceil, rceil; evenN: the maximum rounded to N mantissa bits first; "
        "search: floor, or the one of these four with which the calibration loss is significantly lower",
        Pattern(
            f"{SCALE_ROUNDINGS_ALLOWED}, {SEARCHED}", f"{SCALE_ROUNDING.expression}|{SEARCHED}", SCALE_ROUNDING.what
        ),
        effect=effects.rounds_scales,
        decided_by=("recipe", "runtime"),
    ),
    _format("symmetric", "false: each block's midpoint is subtracted first, and kept in bfloat16", Flag("true, false")),
    _format(
        "tensor_scale",
        "auto: as the format has it; true: a second scale a tensor, with scale=e4m3, as NVFP4 has it",
        Flag("auto, true, false", ("auto",)),
        decided_by=("format",),
    ),
    _format(
        "backend",
        "who computes: torch, cuda, microxcaling (Microsoft's library); auto: as custom_cuda says",
        Choice(words=BACKENDS, or_auto=True),
        off="auto",
        decided_by=("custom_cuda",),
    ),
    _format(
        "arithmetic",
        "native: as microxcaling's PyTorch path, in the tensor's dtype; exact: float32; auto: as custom_cuda says, "
        "exact in float16",
        Choice(words=ARITHMETICS, or_auto=True),
        off="auto",
        decided_by=("custom_cuda", "backend", "scale"),
    ),
    _format(
        "modules",
        "formats by glob pattern over module names, later patterns win: 'modules={model.layers.0.*: none, *.down_proj: "
        "mxfp8_e4m3, lm_head: {weight: int8, activation: none, block_size: 64}}'; of a mapping, what is left out is "
        "the run's",
        Mapping("a mapping of patterns to formats, or null"),
        off=None,
        effect=effects.always,
    ),
    _format(
        "format.weight", "element of weights", Element("an element format, or none"), off="none", effect=effects.always
    ),
    _format(
        "format.activation",
        "element of activations",
        Element("an element format, or none"),
        off="none",
        effect=effects.always,
    ),
    _format("format.block_size", "the format's own, where block_size=auto", BLOCK),
    _format("format.scale", "the format's own, where scale=auto", Choice(words=SCALE_NAMES)),
    _format("format.tensor_scale", "the format's own, where tensor_scale=auto", Flag("true, false")),
    _format(
        "format.share_tensor_scale",
        "what has one scale a tensor, of formats with tensor_scale; matrix: each weight; fused: q, k and v together, "
        "and gate and up, as runtimes do that multiply by them at once",
        Choice(words=(OF_A_MATRIX, OF_FUSED)),
        off=OF_A_MATRIX,
        effect=effects.scales_weights,
        place=None,
        is_silent=True,
    ),
    _format(
        "format.activation_scale",
        "what the scale a tensor of inputs is made from, of formats with tensor_scale; dynamic: each token's largest "
        "magnitude; static: the largest of the calibration data, layer by layer; a number: this",
        Checked("dynamic, static, a number above 0", check_activation_scale),
        off=DYNAMIC,
        effect=effects.scales_inputs,
        place=None,
        is_silent=True,
    ),
    _rule("rounding", "of an element, where weights and activations differ; auto: the run's"),
    _rule("scale_rounding", "of an e8m0 scale, where weights and activations differ; auto: the run's"),
    _rule(
        "scale_rule",
        "by whose rule a scale that is no power of two is chosen and applied, as NVFP4 has several",
    ),
    _rule(
        "scale_floor",
        "the least such scale: subnormal, normal: the smallest such; none: blocks may vanish; auto: the rule's own",
    ),
    _rule("scale_emax", "false: an e8m0 scale is the maximum's own power of two, whatever the element holds"),
    _rule("inf", "nan_block: an Inf makes its block NaN; saturate: it counts as the largest finite value"),
    _rule("four_over_six", "true: each block has the better of two scales, its maximum at 6 or at 4 of fp4_e2m1"),
)

KEYS_AND_VALUES = (
    _format(
        "kv_quant.key", "element of keys", Element("an element format, or none"), off="none", effect=effects.always
    ),
    _format(
        "kv_quant.value", "element of values", Element("an element format, or none"), off="none", effect=effects.always
    ),
    _kv(
        "block_size",
        "of keys and values; auto: the run's; with key_axis=channel, tokens",
        Whole("auto, a whole number up to 2^24, or 0 for the whole axis", 0, MOST_OF_A_BLOCK, words=("auto",)),
        decided_by=("kv_quant", "block_size"),
    ),
    _kv("scale", "of keys and values; auto: the run's", SCALE_OR_AUTO, decided_by=("kv_quant", "scale")),
    _kv(
        "tensor_scale",
        "of keys and values; auto: the run's, where the scale is",
        Flag("auto, true, false", ("auto",)),
        decided_by=("kv_quant", "format", "tensor_scale", "scale", "kv_quant.scale"),
    ),
    _kv(
        "key_axis",
        "token: blocks of keys along head_dim; channel: along the sequence, quantized once a block is complete",
        Choice(words=("token", "channel")),
        off="token",
        remedy=Remedy("keys by {}"),
    ),
    _kv(
        "rope",
        "keys are quantized after the rotary embedding, or before it",
        Choice(words=("after", "before")),
        off="after",
        remedy=Remedy("keys {} RoPE"),
    ),
    _kv(
        "first",
        "tokens at the beginning that stay as they are",
        Whole("tokens, 0 to 10^9", 0, MOST_TOKENS),
        off=0,
        remedy=Remedy("first {} tokens kept"),
    ),
    _kv(
        "recent",
        "for each query, the newest tokens (its own included) that stay as they are",
        Whole("tokens, 0 to 10^9", 0, MOST_TOKENS),
        off=0,
        remedy=Remedy("last {} tokens kept"),
    ),
    _kv(
        "rotation",
        "hadamard: keys for the cache, and the queries that read them, are rotated, whatever rotation says of qk",
        Choice(words=("none", "hadamard")),
        off="none",
        effect=effects.chooses_key_rotation,
        place="rotation",
        remedy=Remedy("keys rotated"),
    ),
    _kv(
        "scales",
        "block; head: one scale for a whole head of a token",
        Choice(words=("block", "head")),
        off="block",
        remedy=Remedy("scales by {}"),
    ),
    _kv(
        "smooth",
        "keys are divided by max^smooth of each channel (calibrated; a power of two, equal over a RoPE pair), queries "
        "multiplied by it; 0: not at all",
        Number("0 to 1", 0, 1),
        off=0.0,
        remedy=Remedy("keys smoothed by {:g}"),
    ),
    _kv(
        "latent",
        "of multi-head latent attention (MLA: DeepSeek-V3, ...), what is quantized; cache: the latent and the RoPE key "
        "of a token, which the cache holds; expanded: the keys and values of each head that are computed from these",
        Choice(words=LATENTS),
        off=LATENT_IN_CACHE,
        place="kv_options",
    ),
)

REMEDIES = (
    _ptq("method", "as ptq", Choice(words=WEIGHT_METHOD_NAMES), off=ROUND_TO_NEAREST, effect=effects.quantizes_weights),
    _ptq(
        "clip_loss",
        "what a searched scale minimizes: output (weighted by calibrated inputs), weight (gptq's)",
        Choice(words=("output", "weight")),
        effect=effects.SwaysWeights("clip_loss"),
    ),
    _ptq(
        "damping",
        "of GPTQ: added to the Hessian's diagonal, as a share of its mean",
        Number("a share of the Hessian's mean diagonal, above 0 and at most 1", 0, 1, with_low=False),
        effect=effects.SwaysWeights("damping"),
    ),
    _ptq(
        "act_order",
        "of GPTQ: columns in the order of the inputs' second moments",
        Flag("true, false"),
        effect=effects.SwaysWeights("act_order"),
    ),
    _ptq(
        "steps",
        "steps of sign gradient descent: of autoround for each decoder block, of qat for the whole model",
        Whole("1 to 10^6", 1, 10**6),
        effect=effects.SwaysWeights("steps"),
    ),
    _ptq(
        "budget",
        "bits a weight, as tables show them: each module's format is chosen from ptq.formats; null: the run's format",
        Number("bits a weight above 0, or null", 0, with_low=False, or_null=True),
        off=None,
        effect=effects.quantizes_weights,
        remedy=Remedy("budget of {:g} bits"),
    ),
    _ptq(
        "formats",
        "what a budget chooses from: options of format, of inputs as well as weights, and elements, of weights alone",
        Listing("one or more names of formats"),
        effect=effects.has_budget,
    ),
    _ptq(
        "fuse",
        "of a budget: true: q, k and v get one format, and gate and up, which runtimes have as one matrix",
        Flag("true, false"),
        off=False,
        effect=effects.has_budget,
        is_silent=True,
    ),
    _rotation(
        "rotation.method",
        "as rotation",
        Choice(words=("none", HADAMARD, "search", WUSH)),
        off="none",
        effect=effects.can_rotate,
    ),
    _rotation(
        "rotation.matmuls",
        "which products may be rotated: linear layers, all of which together mean those that the model has, and qk, "
        "keys for the cache",
        Listing(words=MATMULS),
        effect=effects.rotates_products,
        decided_by=("rotation", "format", "kv_quant"),  # those of what is quantized
    ),
    _rotation(
        "rotation.judge",
        "whose weights a search judges by, with ptq=gptq, autoround or qat; clip: those on searched scales, and what "
        "is found is confirmed by the method's own; ptq: the method's own throughout",
        Choice(words=("clip", "ptq")),
        effect=effects.chooses_judge,
    ),
    _rotation(
        "rotation.positions",
        "of a search, whose loss is compared: of all tokens, or of the last words of sentences or stories; auto: "
        "last_words where a task scores chosen words",
        Choice(words=("auto", ALL_TOKENS, LAST_WORDS)),
        effect=effects.searches,
    ),
    _rotation(
        "rotation.residual",
        "true: also rotate the residual stream, offline (QuaRot)",
        Flag("true, false"),
        off=False,
        effect=effects.quantizes,
        remedy=Remedy("residual stream rotated"),
    ),
    _rotation(
        "rotation_block",
        "order of the matrices: mx, the run's block_size; a number; 0, the whole dimension",
        Whole(
            "mx (the run's block_size), a whole number up to 2^24, or 0 for the whole dimension",
            0,
            MOST_OF_A_BLOCK,
            words=("mx",),
        ),
        effect=effects.rotates,
    ),
    _calibration("source", "as calibration", Choice(words=("auto", "stories", "text", "task", "hub")), off="auto"),
    _calibration(
        "path",
        "of text a UTF-8 file, also .xz, .gz or .jsonl, of task lm-eval's name, of hub a data set's name or folder",
        WORD_OR_NULL,
        off=None,
        kind=Kind.PATH,
    ),
    _calibration("name", "of hub: the data set's configuration", WORD_OR_NULL, kind=Kind.TEXT),
    _calibration("split", "of task and hub: train or validation, or another of the data set's", WORD, kind=Kind.TEXT),
    _calibration("field", "of hub and of a .jsonl file: where a row's text stands", WORD, kind=Kind.TEXT),
    _calibration("samples", "sequences", Whole("sequences, 1 to 10^6", 1, 10**6)),
    _calibration("length", "tokens of a sequence, at most", Whole("tokens of a sequence, 2 to 10^6", 2, 10**6)),
    _calibration("seed", "which sequences", SEEDS),
)

MODEL_AND_TASK = (
    _model("name", "as model", WORD, Scope.NONE),
    _model(
        "path",
        "with model=hf: a folder, a GGUF file, or a name on the Hugging Face hub",
        Checked("a folder, a file FILE.gguf, or a name on the hub (owner/name)", check_model_path),
        kind=Kind.PATH,
        tells_metrics_apart=True,
    ),
    _model("revision", "a branch, tag or commit on the hub", WORD_OR_NULL, kind=Kind.TEXT, tells_metrics_apart=True),
    _model(
        "dtype",
        "auto: the checkpoint's own, float32 for a GGUF file",
        Choice(words=("auto", "float32", "bfloat16", "float16")),
    ),
    _model(
        "device",
        "auto: cuda where there is one",
        Pattern("auto, cpu, cuda, cuda:0, mps", r"auto|cpu|mps|cuda(:\d+)?", "a device"),
        place="device",
    ),
    _model(
        "device_map", "auto: spread a model larger than one GPU", Choice(words=("auto",), or_null=True), place="device"
    ),
    _model(
        "attention",
        "how attention is computed; auto: what transformers picks for the model, sdpa or else eager, which the record "
        "says; with kv_quant one of these three",
        Pattern(
            "auto, sdpa, eager, flex_attention, flash_attention_2 (3, 4), or a kernel's name on the hub "
            "(kernels-community/flash-attn2)",
            r"auto|sdpa|eager|flex_attention|flash_attention_[234]|[\w.-]+/[\w.-]+(@[\w.-]+)?(:[\w.-]+)?",
            "an implementation of attention",
        ),
        same=(("sdpa", "auto"),),
        place="attention",
    ),
    _model(
        "max_length",
        "tokens a context may have; null: the model's own limit",
        Whole("tokens, 16 to 10^9, or null", FEWEST_OF_CONTEXT, MOST_TOKENS, words=(None,)),
        place="max_length",
        tells_metrics_apart=True,
    ),
    _model("trust_remote_code", "true: run the checkpoint's own code", Flag("true, false")),
    _model(
        "dequantize",
        "true: take the weights of a checkpoint that is quantized already for plain values, its own quantization of "
        "activations left out; of another it means nothing",
        Flag("true, false"),
    ),
    _model(
        "add_bos_token",
        "what the tokenizer puts around a text; auto: as its files say; true: the beginning-of-sequence token in "
        "front, and no other; false: none",
        Flag("auto, true, false", ("auto",)),
        off="auto",
        place=None,
        tells_metrics_apart=True,
    ),
    _task("names", "as task", Listing("names of lm-eval tasks")),
    _task("fields", "of task.data: the field that a row must hold, by task", Mapping(), Scope.NONE),
    _task(
        "data",
        "a JSON-lines file instead of the hub (text a row for LAMBADA, page for WikiText); with several tasks {name: "
        "FILE.jsonl}",
        Mapping("a file, a mapping of tasks to files, or null"),
        kind=Kind.PATH,
        place="data",
        tells_metrics_apart=True,
    ),
    _task(
        "include_path",
        "a folder of lm-eval tasks of your own, or the YAML file of one; null: lm-eval's alone; task=FILE.yaml is this "
        "and the name of the task in it",
        WORD_OR_NULL,
        kind=Kind.PATH,
        place="own_tasks",
        tells_metrics_apart=True,
    ),
    _task(
        "num_fewshot",
        "examples in the prompt; null: the task's own",
        Whole("0 to 10,000, or null for the task's own", 0, 10_000, words=(None,)),
        tells_metrics_apart=True,
    ),
    _task(
        "fewshot_evaluated",
        "true: examples may come from the evaluated rows (never the row that is asked), where a task has no others",
        Flag("true, false"),
        off=False,
        place=None,
        tells_metrics_apart=True,
    ),
    _task(
        "apply_chat_template",
        "as in lm-eval; the model's template runs without limits of time and memory, and is trusted",
        Flag("true, false"),
        tells_metrics_apart=True,
    ),
)

RUNS = (
    Knob(
        "batch_tokens",
        "tokens a forward pass when scoring, padding included; halved where they do not fit; auto: 16,384 on a GPU, "
        "4,096 on a CPU",
        Whole("auto, or a whole number of tokens a forward pass, 1 to 10^9", 1, MOST_TOKENS, words=("auto",)),
        Scope.NONE,
    ),
    Knob(
        "batch_size",
        "sequences at a time when generating",
        Whole("a whole number of sequences at a time when generating, 1 to 10^6", 1, 10**6),
        Scope.NONE,
    ),
    Knob(
        "seed",
        "few-shot choice, stochastic rounding, the diagnostics' sample, the noise; of a training also the initial "
        "weights and the order of the data",
        SEEDS,
        Scope.BASELINE,
    ),
    Knob(
        "diagnostics",
        "true: also measure where error enters (diagnostics.parquet), on a sample",
        Flag("true, false"),
        Scope.BASELINE,
        off=False,
        effect=effects.quantizes,
        is_note=True,
    ),
    Knob(
        "export",
        "none; auto, or a target: also write the run's model as a packed checkpoint, into RUN/export",
        Choice(words=EXPORTS),
        Scope.NONE,
        off=NO_EXPORT,
        is_silent=True,
    ),
    Knob(
        "noise",
        "evaluate so many times more with rounding-sized perturbations: the noise floor",
        Whole(f"0 to {MOST_NOISE} further evaluations", 0, MOST_NOISE),
        Scope.BASELINE,
        off=0,
        is_note=True,
    ),
)


def by_path(knobs: Iterable[Knob]) -> dict[str, Knob]:
    """Return knobs by their paths. Raises ValueError for a path that is declared twice."""
    table: dict[str, Knob] = {}
    for knob in knobs:
        if knob.path in table:
            raise ValueError(f"{knob.path} is declared twice")
        table[knob.path] = knob
    return table


TABLE = by_path(
    (
        *GROUPS,
        *FORMATS,
        *KEYS_AND_VALUES,
        *REMEDIES,
        *MODEL_AND_TASK,
        *RUNS,
        *PRODUCTS_OF_LAYERS,
        *TRAINING,
        *SWEEPS,
        *LAUNCHERS,
    )
)
