"""The config of a training: formats of each product's operands, what is refused, and what makes it one run."""

from __future__ import annotations

import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from mxsweep import compose
from mxsweep.config import knobs
from mxsweep.config.option_files import option_names
from mxsweep.config.run_config import RunConfig
from mxsweep.config.train_config import SIZES
from mxsweep.config.train_help import training_help
from mxsweep.config.train_words import training_words
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.formats.training import LayerFormats, OperandFormat
from mxsweep.terminal.errors import ConfigError

FP4 = MXFormat("fp4_e2m1")


def trained(*words: str) -> RunConfig:
    return compose(["train=from_scratch", *words])


def operands(*words: str) -> dict[str, str]:
    """Return the operands that are quantized, with their formats."""
    linear = trained(*words).training_recipe.linear
    return {name: str(operand) for name, operand in linear.operands() if operand is not None}


# What the operands become


def test_operands_of_the_backward_products_inherit_those_of_fprop() -> None:
    assert operands("format=w4a6") == {
        "fprop.input": "fp6_e2m3-b32-e8m0", "fprop.weight": "fp4_e2m1-b32-e8m0",
        "dgrad.grad": "fp6_e2m3-b32-e8m0", "dgrad.weight": "fp4_e2m1-b32-e8m0",
        "wgrad.grad": "fp6_e2m3-b32-e8m0", "wgrad.input": "fp6_e2m3-b32-e8m0",
    }  # fmt: skip
    assert operands("format=mxfp4", "matmuls.fprop.input=mxint8")["wgrad.grad"] == "int8-b32-e8m0"
    assert operands("format=none", "matmuls.dgrad.grad=fp8_e5m2") == {"dgrad.grad": "fp8_e5m2-b32-e8m0"}
    assert set(operands("format=mxfp4", "matmuls.fprop.input=none")) == {"fprop.weight", "dgrad.weight"}


@pytest.mark.parametrize(
    ("words", "grad"),
    [
        ("matmuls.dgrad.grad={rounding: stochastic}", "fp4_e2m1-b16-e4m3-tensor-round_stochastic"),
        ("matmuls.dgrad.grad={element: fp4_e3m0, scale: e8m0}", "fp4_e3m0-b16-e8m0"),
        ("matmuls.dgrad.grad={block_size: [16,1]}", "fp4_e2m1-b16x1-e4m3-tensor"),
        ("matmuls.dgrad.grad={tensor_scale: false, four_over_six: true}", "fp4_e2m1-b16-e4m3 4/6"),
        ("matmuls.dgrad.grad={symmetric: false, prescale: 0.75}", "fp4_e2m1-b16-e4m3-tensor-asym x0.75"),
        ("matmuls.dgrad.grad={scale: e8m0, scale_bits: 6, scale_rounding: ceil}", "fp4_e2m1-b16-e8m0-sb6-scale_ceil"),
        ("matmuls.dgrad.grad=mxfp8_e5m2", "fp8_e5m2-b32-e8m0"),
        ("matmuls.dgrad.grad=w4a6", "fp6_e2m3-b32-e8m0"),
        ("matmuls.dgrad.grad=int8", "int8-b32-e8m0"),
        ("matmuls.dgrad.grad=mxfp8_e5m2 block_size=64", "fp8_e5m2-b64-e8m0"),
        ("matmuls.fprop.input={prescale: 0.75}", "fp4_e2m1-b16-e4m3-tensor x0.75"),
        ("matmuls.fprop.input={prescale: 0.75} matmuls.dgrad.grad=mxint8", "int8-b32-e8m0"),
    ],
)
def test_what_is_set_takes_the_place_of_what_is_inherited(words: str, grad: str) -> None:
    given = words.split(" matmuls") if " matmuls" in words else words.split(" block")
    rest = [f"{'matmuls' if ' matmuls' in words else 'block'}{word}" for word in given[1:]]
    assert operands("format=nvfp4", given[0], *rest)["dgrad.grad"] == grad


def test_a_pattern_gives_formats_and_leaves_roundings() -> None:
    config = trained(
        "format=mxfp4",
        "matmuls.dgrad.grad={element: fp4_e3m0, rounding: stochastic}",
        "matmuls.wgrad.input=none",
        "modules={'*.down_proj': mxfp8_e4m3, '*.layers.0.*': none}",
    )
    (name, down), (_, first) = config.training_recipe.modules
    formats = {operand: str(fmt) for operand, fmt in down.operands()}
    assert name == "*.down_proj" and first == LayerFormats()
    assert formats["fprop.input"] == formats["dgrad.weight"] == "fp8_e4m3-b32-e8m0"
    assert formats["dgrad.grad"] == "fp8_e4m3-b32-e8m0-round_stochastic" and formats["wgrad.input"] == "None"


def test_backend_and_arithmetic_are_chosen_with_backward_formats_in_mind() -> None:
    assert trained("recipe=mxfp8").arithmetic == "exact"
    assert trained("format=none", "matmuls.dgrad.grad=fp4_e2m1").arithmetic == "native"
    with pytest.raises(ConfigError, match="arithmetic: 'native' is defined"):
        trained("recipe=mxfp4_sr", "arithmetic=native")


@pytest.mark.parametrize("name", [name for name in option_names("recipe") if name != "none"])
def test_recipes(name: str) -> None:
    config = trained(f"recipe={name}")
    assert config.recipe_label == name
    assert config.is_baseline == (name == "bf16")
    gradients = [dict(config.training_recipe.linear.operands())[f"{product}.grad"] for product in ("dgrad", "wgrad")]
    drawn = [fmt is not None and fmt.fmt.rounding == "stochastic" for fmt in gradients]
    assert drawn == [name in ("mxfp4_sr", "mxfp4_sr_unclipped", "nvfp4", "quartet_like")] * 2


def test_recipes_say_what_their_sources_do() -> None:
    nvfp4 = trained("recipe=nvfp4").training_recipe
    assert nvfp4.linear.fprop.second == nvfp4.linear.dgrad.second
    assert nvfp4.linear.fprop.second is not None and nvfp4.linear.fprop.second.fmt.block_size == (16, 16)
    assert [formats.hadamard for formats in (nvfp4.linear.fprop, nvfp4.linear.dgrad, nvfp4.linear.wgrad)] == [0, 0, 16]
    assert nvfp4.keep_high == ("lm_head", "embeddings", "last")
    unclipped = trained("recipe=mxfp4_sr_unclipped").training_recipe
    drawn = OperandFormat(MXFormat("fp4_e2m1", rounding="stochastic"), prescale=0.75)
    assert unclipped.linear.fprop.is_plain and unclipped.linear.dgrad.first == unclipped.linear.wgrad.second == drawn
    assert trained("recipe=mxfp8").recipe.linear.weight == MXFormat("fp8_e4m3", rounding="even", scale_rounding="rceil")


def test_what_is_typed_wins_over_a_recipe() -> None:
    assert operands("recipe=mxfp4_e3m0_grad", "matmuls.wgrad.grad=mxint8")["wgrad.grad"] == "int8-b32-e8m0-round_even"
    assert operands("recipe=mxfp4", "format=mxint4")["dgrad.grad"] == "int4-b32-e8m0-round_even"
    assert operands("recipe=mxfp4", "block_size=16")["wgrad.input"] == "fp4_e2m1-b16-e8m0-round_even"


# What the trained model is evaluated in


def test_a_trained_model_is_evaluated_as_its_forward_pass_was() -> None:
    config = trained("recipe=w6a6g4", "modules={'*.down_proj': mxfp8_e4m3}")
    six = MXFormat("fp6_e2m3", rounding="even")
    assert config.recipe.linear == LinearFormats(six, six)
    assert config.recipe.modules[0][1].weight == MXFormat("fp8_e4m3", rounding="even")
    assert config.not_evaluated == [] and not config.ptq.is_solved
    backward = trained("format=none", "matmuls.dgrad.grad=fp4_e2m1")
    assert backward.recipe.is_baseline and not backward.is_baseline


def test_what_an_evaluation_cannot_do_is_said() -> None:
    config = trained("format=mxfp4", "matmuls.fprop.hadamard=32", "matmuls.fprop.input={block_size: [8,16]}")
    assert config.recipe.linear == LinearFormats(FP4, MXFormat("fp4_e2m1", block_size=128))
    assert [text.split(",")[0] for text in config.not_evaluated] == [
        "fprop's Hadamard rotation (of order 32) is left out", "inputs",
    ]  # fmt: skip
    rest = trained("format=nvfp4", "matmuls.fprop.weight={prescale: 0.5}").not_evaluated
    assert rest == ["weights are not multiplied by 0.5 before they are quantized"]


def test_the_better_of_two_scales_is_evaluated_too() -> None:
    config = trained("format=nvfp4", "matmuls.fprop.weight={four_over_six: true}")
    one = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    assert config.recipe.linear == LinearFormats(replace(one, four_over_six=True), one)
    assert config.not_evaluated == []
    backward = trained("format=nvfp4", "matmuls.dgrad.grad={four_over_six: true}")
    assert backward.recipe.linear == LinearFormats(one, one)


# Sizes


def test_sizes() -> None:
    sizes = {name: trained(f"init={name}").init for name in option_names("init") if name != "model"}
    assert {name: round(init.parameters / 1e6, 1) for name, init in sizes.items()} == {
        "tiny": 0.4, "1m": 1.1, "10m": 10.6, "30m": 30.5, "60m": 61.3,
    }  # fmt: skip
    assert {name: init.label for name, init in sizes.items()} == {name: f"llama-{name}" for name in sizes}
    for name in ("10m", "30m", "60m"):
        assert not any(value % 128 for value in (sizes[name].hidden, sizes[name].mlp))
        assert sizes[name].hidden // sizes[name].heads % 32 == 0
    assert trained("init=1m", "init.layers=2").init.label == "llama-128x2-0.4m"
    assert compose(["train=finetune"]).init.sizes == dict.fromkeys(SIZES, 0)


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train.length=100", "train.length: 100 is no multiple of 32, which matmuls.wgrad.grad takes"),
        ("train.length=32 matmuls.wgrad.hadamard=64", "train.length: 32 is no multiple of 64, which matmuls.wgrad"),
        ("train.length=48 matmuls.wgrad.input={block_size:[8,32]} matmuls.wgrad.grad=none", "wgrad.input takes"),
        ("train.length=48 block_size=16 modules={a:{block_size:32}}", "of modules[a] takes together"),
        ("train.tokens=9 train.steps=1", "train.steps: 1 does not go with train.tokens=9, where both are given"),
        ("train.steps=null", "where neither is given"),
        ("train.warmup=0.7 train.decay=0.7", "train.decay: 0.7 and train.warmup=0.7 are more than all steps"),
        ("train.micro_batch=64", "train.micro_batch: 64 is more than train.batch="),
        ("train.processes=3 train.batch=16", "train.processes: 3 cannot share train.batch=16; allowed: a divisor"),
        ("train.betas=[0.9]", "train.betas: [0.9] is not allowed; allowed: two numbers"),
        ("train.dtype=float16", "train.dtype: 'float16' is not known; allowed: float32, bfloat16"),
        ("train.optimizer=sgd", "train.optimizer: 'sgd' is not known; allowed: adamw, muon"),
        ("train.processes=2 model.device=cuda:0", "model.device: 'cuda:0' is one GPU, and train.processes=2"),
        ("train.processes=2 model.device=mps", "model.device: 'mps' is one GPU, and train.processes=2"),
        ("model.device_map=auto", "model.device_map: 'auto' does not go with train=from_scratch"),
        ("corpus=text", "corpus.path: none is given; corpus=text needs a text file"),
        ("corpus=text corpus.path=/no/file", "corpus.path: '/no/file' is not a file"),
        ("corpus=hub corpus.path=/no/folder", "corpus.path: '/no/folder' does not exist"),
        ("corpus.path=x.txt", "corpus.path: 'x.txt' goes with corpus=text or hub, and corpus=stories takes none"),
        ("corpus.name=x", "corpus.name: 'x' goes with corpus=hub, and corpus=stories takes none; allowed: null"),
        ("corpus.split=test", "corpus.split: 'test' goes with corpus=hub, and corpus=stories takes none"),
        ("corpus.field=body", "corpus.field: 'body' goes with corpus=hub or text, and corpus=stories takes none"),
        ("init=model", "init: 'model' does not go with train=from_scratch"),
        ("init.heads=3", "init.heads: 3 heads do not share 128 channels"),
        ("init.kv_heads=3", "init.kv_heads: 3 is no divisor of init.heads, 4"),
        ("init.layers=0", "init.layers: 0 is not allowed"),
        ("init.tokenizer=/no/folder", "init.tokenizer: '/no/folder' is no folder with a tokenizer"),
        ("model=gpt2", "model: 'gpt2' has no say where training begins with random weights"),
        ("ptq=gptq", "ptq: does not go with train=from_scratch, since a trained model is evaluated as it was trained"),
        ("kv_quant=int8", "kv_quant: does not go with train=from_scratch"),
        ("rotation=hadamard", "rotation: does not go with train=from_scratch"),
        ("matmuls.keep_high=[head]", "matmuls.keep_high: 'head' is not known; allowed: lm_head, embeddings, first"),
        ("matmuls.keep_high=[first:0]", "matmuls.keep_high: 'first:0' is not known"),
        ("format=mxpf4", "format: 'mxpf4' is no format (near it: mxfp4); allowed: mint4, mxfp4"),
        ("format.weight=mxpf4", "format.weight: 'mxpf4' is no format (near it: mxfp4); allowed: mint4, mxfp4"),
        ("matmuls.dgrad.grad=fp99", "matmuls.dgrad.grad: 'fp99' is no format; allowed: mint4, mxfp4"),
        ("matmuls.dgrad.grad={elment:int8}", "matmuls.dgrad.grad: 'elment' is not a field; allowed: element, block"),
        ("matmuls.dgrad.grad={rounding:up}", "matmuls.dgrad.grad.rounding: 'up' is not known; allowed: nearest"),
        ("matmuls.dgrad.grad={prescale:2}", "matmuls.dgrad.grad.prescale: 2 is not allowed"),
        (
            "matmuls.dgrad.grad={prescale:0.5} backend=microxcaling",
            "matmuls.dgrad.grad.prescale: 0.5 does not go with backend=microxcaling, which has none; allowed: 1, or",
        ),
        ("matmuls.dgrad.grad={prescale:1e-45}", "prescale: 1e-45 is not allowed; allowed: 2^-24 to 1"),
        ("matmuls.dgrad.grad={four_over_six:true}", "matmuls.dgrad.grad.four_over_six: true does not go with"),
        ("matmuls.fprop.input={four_over_six:true}", "matmuls.fprop.input.four_over_six: true does not go with"),
        ("matmuls.fprop.input={tensor_scale:true}", "matmuls.fprop.input.tensor_scale: true does not go with scale"),
        ("matmuls.dgrad.grad={element:mxfp4}", "matmuls.dgrad.grad.element: 'mxfp4' is not an element; allowed: none"),
        ("matmuls.dgrad.grad=3", "matmuls.dgrad.grad: 3 is not a format; allowed: auto, none"),
        ("matmuls.backward=low", "matmuls.backward: 'low' is not known; allowed: high_precision, requantized"),
        ("train=finetune init=10m", "init: random weights cannot be finetuned; allowed with train=finetune: model"),
        ("train=finetune train.length=512", "train.length: 512 is longer than 'tiny' takes; allowed: up to 256"),
        ("train=finetune init.hidden=64", "init.hidden: 64 has no say with init=model"),
        ("train=none recipe=mxfp4", "recipe: 'mxfp4' is of a training, and train=none trains nothing"),
        ("train=none matmuls.signs=step", "matmuls.signs: is of a training, and train=none trains nothing"),
        ("train=none task=none", "task: [] must be one or more names of lm-eval tasks; task=none goes with train"),
    ],
)  # fmt: skip
def test_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        trained(*words.split())
    assert message in str(refused.value)


def test_texts_that_are_evaluated_are_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "a b c"}\n')
    words = ["corpus=text", f"corpus.path={file}"]
    with pytest.raises(ConfigError, match=r"corpus\.path: .* holds the same as .*, which lambada_openai evaluates"):
        trained(*words, "task=lambada_openai", f"task.data={file}")
    with pytest.raises(ConfigError, match=r"corpus\.heldout: .* holds the same as corpus\.path"):
        trained(*words, f"corpus.heldout={file}")
    with pytest.raises(ConfigError, match="has no text field 'page'"):
        trained(*words, "corpus.field=page")


def test_a_text_that_cannot_do_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    short, other, packed = tmp_path / "short.txt", tmp_path / "other.bin", tmp_path / "plain.txt.xz"
    short.write_text("x" * 400)
    other.write_bytes(b"\xff\xfe text")
    packed.write_text("not packed")
    words = ["corpus=text", "train.length=64", f"corpus.path={short}"]
    with pytest.raises(ConfigError, match=r"64 is more than corpus\.heldout_share=0\.01 comes to, 4 tokens; .* share"):
        trained(*words)
    assert trained(*words, "corpus.heldout_share=0.2").corpus.heldout_share == 0.2
    with pytest.raises(ConfigError, match=r"train\.length: 64 is more than the corpus comes to, 40 tokens"):
        trained(*words, "corpus.heldout_share=0.9")
    (tmp_path / "held.txt").write_text("y" * 63)
    with pytest.raises(ConfigError, match=r"train\.length: 64 is more than corpus\.heldout comes to, 64 tokens"):
        trained(*words, f"corpus.heldout={tmp_path / 'held.txt'}")
    for path in (other, packed):
        with pytest.raises(ConfigError, match=r"corpus\.path: '.*' cannot be read as UTF-8 text: "):
            trained(*words[:2], f"corpus.path={path}")
    (tmp_path / "blank.txt").write_text(" \n" * 99)
    with pytest.raises(ConfigError, match=r"corpus\.path: '.*blank\.txt' is empty; give a UTF-8 text"):
        trained(*words[:2], f"corpus.path={tmp_path / 'blank.txt'}")


def test_a_data_set_whose_files_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, pattern: str) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path / "closed"))

    monkeypatch.setattr(Path, "rglob", refuse)
    with pytest.raises(ConfigError, match=r"corpus\.path: .* cannot be read: .*closed: Permission denied"):
        trained("corpus=hub", f"corpus.path={tmp_path}")


# What makes it one run


def of(*words: str) -> str:
    return trained(*words).config_hash


def test_what_decides_a_training_is_in_every_runs_identity() -> None:
    for recipe in ("bf16", "mxfp4"):
        words = [f"recipe={recipe}"]
        train = trained(*words).train
        different = [
            of(*words), of(*words, "seed=1"), of(*words, "train.lr=0.1"), of(*words, "train.steps=7"),
            of(*words, "init=1m"), of(*words, "train.compile=true"), of(*words, "train.dtype=float32"),
            of(*words, "init.tokenizer=bytes"), of(*words, "train.betas=[0.9,0.98]"), of(*words, "task=none"),
            compose(["train=finetune", *words]).config_hash, of(*words, "train.eval_sequences=3"),
        ]  # fmt: skip
        assert len(set(different)) == len(different)
        same = [
            of(*words, "train.keep=7"), of(*words, "train.micro_batch=4"), of(*words, "train.processes=2"),
            of(*words, "train.parallel=fsdp"), of(*words, "train.checkpoint_every=7"),
            of(*words, f"train.tokens={train.total_steps * train.batch * train.length - 5}"),
        ]  # fmt: skip
        assert set(same) == {of(*words)}


def test_formats_of_backward_products_are_in_a_quantized_runs_identity() -> None:
    different = [
        of("recipe=mxfp4"), of("recipe=mxfp4_sr"), of("recipe=mxfp4", "matmuls.backward=requantized"),
        of("recipe=mxfp4", "matmuls.keep_high=[lm_head]"), of("recipe=mxfp4", "matmuls.wgrad.hadamard=32"),
        of("recipe=mxfp4", "matmuls.wgrad.hadamard=32", "matmuls.signs=step"), of("recipe=bf16"),
        of("recipe=bf16", "matmuls.wgrad.input=fp4_e2m1"),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert of("recipe=bf16", "matmuls.keep_high=[]", "matmuls.signs=step") == of("recipe=bf16") == of("format=none")
    assert of("recipe=mxfp4", "matmuls.signs=step", "matmuls.keep_high=[embeddings,lm_head]") == of("recipe=mxfp4")
    assert of("recipe=mxfp4", "matmuls.keep_high=[first,last]") == of(
        "recipe=mxfp4", "matmuls.keep_high=[last:1,first:1]"
    )
    assert of("format=mxfp4", "rounding=even") == of("recipe=mxfp4")
    assert of("recipe=bf16", "matmuls.wgrad.hadamard=32") == of("recipe=bf16")


def test_a_corpus_is_its_content(tmp_path: Path) -> None:
    texts = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"]
    for file, text in zip(texts, ("one", "one", "two"), strict=True):
        file.write_text(text * 10_000)  # of which the hundredth part that is held out is long enough, too
    packed = tmp_path / "d.txt.xz"
    packed.write_bytes(lzma.compress(b"one" * 10_000))
    first, second, third, fourth = (of("corpus=text", f"corpus.path={file}") for file in (*texts, packed))
    assert first == second and len({first, third, fourth}) == 3
    named = ["corpus=text", f"corpus.path={texts[0]}"]
    assert of(*named, f"corpus.heldout={texts[2]}") != first != of(*named, "corpus.heldout_share=0.5")
    assert of(*named, "corpus.field=page") == first == of(*named, "init.tokenizer=bytes")


def test_knobs_of_trainings_have_no_effect_without_one() -> None:
    plain = compose([]).config_hash
    for word in (
        "train.lr=1",
        "train.length=7",
        "corpus.heldout_share=0.5",
        "init=10m",
        "matmuls.keep_high=[]",
        "recipe=none",
    ):
        assert compose([word]).config_hash == plain


def test_what_is_recorded() -> None:
    assert not {"train", "corpus", "init", "matmuls", "recipe"} & compose([]).as_dict().keys()
    data = trained("recipe=mxfp4_sr", "init=1m").as_dict()
    assert (data["recipe"], data["train"]["method"], data["model"]["name"]) == (
        {"name": "mxfp4_sr"},
        "from_scratch",
        "llama-1m",
    )
    assert data["matmuls"]["dgrad"] == {"grad": {"rounding": "stochastic"}, "weight": "auto", "hadamard": 0}
    assert set(data["matmuls"]) == {"fprop", "dgrad", "wgrad", "backward", "signs", "keep_high"}
    assert trained("recipe=mxfp4").run_id("T").startswith("T_from_scratch_mxfp4_s1234_")
    assert trained("recipe=mxfp4", "seed=2").run_id("T").startswith("T_from_scratch_mxfp4_s2_")


def test_labels_of_recipes() -> None:
    assert trained("format=mxfp4").recipe_label == "mxfp4"
    assert trained("format=none").recipe_label == trained("format=none", "recipe=mxfp4").recipe_label == "bf16"
    assert trained("recipe=bf16", "format=int8").recipe_label == "mxint8"
    assert trained("format=mxfp4", "matmuls.dgrad.grad=none").recipe_label == "mxfp4+matmuls"


# The words of the command


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ("", "train=from_scratch recipe=mxfp4"),
        ("recipe=bf16 train.steps=3", "train=from_scratch"),
        ("train=finetune", "recipe=mxfp4"),
        ("format=int8", "train=from_scratch"),
        ("experiment=ex1", "train=from_scratch"),
        ("matmuls.dgrad.grad=fp4_e3m0", "train=from_scratch recipe=mxfp4"),
        ("train.method=finetune +recipe=mxfp8", ""),
        ("resume=true", ""),
        ("resume=true hydra.sweep.dir=x", ""),
        ("resume=true seed=3", "train=from_scratch recipe=mxfp4"),
    ],
)
def test_the_command_adds_what_nothing_says(words: str, added: str) -> None:
    assert training_words(words.split(), None) == [*added.split(), *words.split()]


@pytest.mark.parametrize("training", ["from_scratch", "finetune"])
def test_the_help_has_the_defaults_that_the_training_gets(training: str) -> None:
    shown = training_help(words=["recipe=mxfp4", f"train={training}"])
    config = compose([f"train={training}"]).as_dict()
    for name in ("steps", "batch", "optimizer", "lr", "warmup", "decay"):
        described = " ".join(shown.partition(f"\n  train.{name} ")[2].split())
        assert described.partition("(= ")[2].startswith(f"{config['train'][name]})"), name
    assert f"(= {'model' if training == 'finetune' else 'tiny'})" in shown
    assert f"Defaults below are those of train={training};" in shown
    assert "(= mxfp4 where no format= is typed)" in " ".join(shown.split())


def test_the_help_leaves_out_no_knob_of_trainings() -> None:
    shown = training_help()
    leaves = [knob.path for knob in knobs.all_knobs() if knob.path.partition(".")[0] in ("train", "init", "matmuls")]
    assert {path for path in leaves if f"\n  {path} " not in shown} == {"train.method", "init.source"}


def test_the_command_refuses_to_train_nothing() -> None:
    with pytest.raises(ConfigError, match="train: 'none' trains nothing"):
        training_words(["train=none"], None)
