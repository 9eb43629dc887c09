"""The typed config: what a format says for itself, what wins over it, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mxsweep import compose
from mxsweep.config.option_files import option_names
from mxsweep.config.run_config import RunConfig
from mxsweep.formats.recipe import LINEAR_MATMULS, MATMULS, Rotation
from mxsweep.numerics import MXFormat
from mxsweep.terminal.errors import ConfigError


def test_defaults() -> None:
    config = compose([])
    assert (config.format.name, config.format.block_size, config.scale_bits) == ("w4a6", 32, 8)
    assert (config.backend, config.arithmetic) == ("torch", "native")
    assert config.recipe.linear.weight == MXFormat("fp4_e2m1")
    assert config.recipe.linear.activation == MXFormat("fp6_e2m3")
    assert config.recipe.key is None
    assert (config.task.names, config.limit, config.model.path) == (("story",), None, "embedded")


@pytest.mark.parametrize(
    ("overrides", "weight"),
    [
        (["format=nvfp4"], MXFormat("fp4_e2m1", block_size=16, scale="e4m3", tensor_scale=True)),
        (["format=nvfp4", "block_size=32"], MXFormat("fp4_e2m1", block_size=32, scale="e4m3", tensor_scale=True)),
        (["format=nvfp4", "scale=e8m0"], MXFormat("fp4_e2m1", block_size=16, scale="e8m0")),
        (["format=nvfp4", "tensor_scale=false"], MXFormat("fp4_e2m1", block_size=16, scale="e4m3")),
        (["format=mxfp4", "scale=e4m3"], MXFormat("fp4_e2m1", scale="e4m3")),
        (
            ["format=mxfp4", "scale=e4m3", "tensor_scale=true"],
            MXFormat("fp4_e2m1", scale="e4m3", tensor_scale=True),
        ),
        (["format.weight=int8"], MXFormat("int8")),
        (["format=fp6_e3m2", "scale_bits=3"], MXFormat("fp6_e3m2", scale_bits=3)),
        (["rounding=even", "scale_rounding=ceil"], MXFormat("fp4_e2m1", rounding="even", scale_rounding="ceil")),
        (["block_size=[4,16]", "format.activation=none"], MXFormat("fp4_e2m1", block_size=(4, 16))),
        (["block_size=0"], MXFormat("fp4_e2m1", block_size=0)),
        (["symmetric=false"], MXFormat("fp4_e2m1", symmetric=False)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_explicit_values_win_over_a_formats_own(overrides: list[str], weight: MXFormat) -> None:
    assert compose(overrides).recipe.linear.weight == weight


@pytest.mark.parametrize(
    ("overrides", "backend", "arithmetic"),
    [
        ([], "torch", "native"),
        (["scale=e5m3"], "torch", "exact"),
        (["arithmetic=exact"], "torch", "exact"),
        (["rounding=stochastic"], "torch", "exact"),
        (["modules={lm_head: nvfp4}"], "torch", "native"),  # the other layers as without it
        (["custom_cuda=true"], "cuda", "exact"),
        (["custom_cuda=true", "backend=torch"], "torch", "native"),
        (["backend=microxcaling"], "microxcaling", "native"),
        (["model.dtype=bfloat16"], "torch", "native"),
        (["model.dtype=float16"], "torch", "exact"),  # native makes NaN of a block of zeros there
        (["model.dtype=float16", "arithmetic=native"], "torch", "native"),
    ],
)
def test_backend_and_arithmetic(overrides: list[str], backend: str, arithmetic: str) -> None:
    config = compose(overrides)
    assert (config.backend, config.arithmetic) == (backend, arithmetic)


@pytest.mark.parametrize(
    ("config", "weights", "arithmetic"),
    [
        ({"dtype": "float16"}, torch.float16, "exact"),
        ({"torch_dtype": "float16"}, torch.float16, "exact"),
        ({}, torch.float16, "exact"),
        ({"dtype": "bfloat16"}, torch.bfloat16, "native"),
        ({"dtype": "float32"}, torch.float16, "native"),
        ({}, torch.float32, "native"),
    ],
)
def test_a_checkpoint_in_float16_is_quantized_in_exact_arithmetic(
    config: dict[str, str], weights: torch.dtype, arithmetic: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    save_file({"w": torch.zeros(4, dtype=weights)}, tmp_path / "model.safetensors")
    assert compose(["model=hf", f"model.path={tmp_path}"]).arithmetic == arithmetic


def test_experiments() -> None:
    config = compose(["experiment=ex3"])
    assert config.recipe.linear.weight == config.recipe.key == MXFormat("fp4_e2m1", block_size=16, scale="e5m3")
    assert config.custom_cuda and config.backend == "cuda"
    with pytest.raises(ConfigError, match=r"is a sweep.*; compose\(\) makes one"):
        compose(["experiment=ex1"])


def test_modules_later_patterns_win_and_are_made_whole() -> None:
    config = compose(
        [
            "block_size=16",
            "modules={model.layers.0.*: none, '*.down_proj': mxfp8_e4m3, '*.up_proj': {weight: int8, block_size: 64}, "
            "lm_head: nvfp4, '*.q_proj': {scale: e5m3}}",
            "arithmetic=exact",
        ]
    )
    formats = config.recipe.formats_of
    assert formats("model.layers.0.q_proj_", True).weight is None
    assert formats("model.layers.0.down_proj", True).weight == MXFormat("fp8_e4m3", block_size=16)
    up = formats("model.layers.1.up_proj", True)
    assert (up.weight, up.activation) == (MXFormat("int8", block_size=64), MXFormat("fp6_e2m3", block_size=64))
    assert formats("model.layers.1.k_proj", True).weight == MXFormat("fp4_e2m1", block_size=16)
    # A block size that was typed wins over nvfp4's own.
    assert formats("lm_head", False).weight == MXFormat("fp4_e2m1", block_size=16, scale="e4m3", tensor_scale=True)
    assert formats("model.layers.1.q_proj", True).weight == MXFormat("fp4_e2m1", block_size=16, scale="e5m3")
    assert formats("model.embed_tokens", False).weight is None


@pytest.mark.parametrize("name", [name for name in option_names("format") if name != "none"])
def test_a_modules_format_is_the_one_of_that_name(name: str) -> None:
    (_, formats), *_ = compose([f"modules={{lm_head: {name}}}"]).recipe.modules
    assert formats == compose([f"format={name}"]).recipe.linear


def test_labels_come_from_the_typed_config() -> None:
    assert compose(["format.weight=int8"]).format.name == "w:int8,a:fp6_e2m3"
    assert compose(["format=fp6_e3m2"]).format.name == "mxfp6_e3m2"
    assert compose(["format=int3"]).format.name == "int3"
    assert compose(["format=nvfp4"]).format.name == "nvfp4"
    assert compose(["format=nvfp4", "scale=e8m0"]).format.name == "mxfp4"
    assert compose(["kv_quant=int8", "kv_quant.key=none"]).kv_quant.name == "k:none,v:int8"
    assert compose(["block_size=48", "scale_bits=6"]).run_id("T").startswith("T_w4a6_bs48_sb6_ccfalse_")


def test_hash_tells_apart_what_changes_the_result_and_nothing_else() -> None:
    def of(*overrides: str) -> str:
        return compose(list(overrides)).config_hash

    different = [
        of(), of("block_size=16"), of("scale_bits=6"), of("kv_quant.key=int8"), of("limit=3"), of("seed=1"),
        of("modules={'*.q_proj': none}"), of("backend=microxcaling"), of("arithmetic=exact"), of("task=wikitext"),
        of("task.num_fewshot=2"), of("model.dtype=bfloat16"), of("model.max_length=64"), of("format=nvfp4"),
        of("format=nvfp4", "tensor_scale=false"), of("rounding=even"), of("scale=e5m3"), of("format=none"),
    ]  # fmt: skip
    assert len(set(different)) == len(different)
    assert of("block_size=32") == of() == of("batch_size=7") == of("batch_tokens=64")
    assert of("scale=e5m3", "scale_bits=6") == of("scale=e5m3")  # e5m3 has no scale bits
    assert of("format=none", "block_size=16") == of("format=none", "backend=microxcaling") == of("format=none")


@pytest.fixture
def lambada_file(tmp_path: Path) -> Path:
    file = tmp_path / "lambada.jsonl"
    file.write_text('{"text": "a b c"}\n{"text": "x"}\n')
    return file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("format=banana", "format: 'banana' is no format; allowed: mint4, mxfp4"),
        ("format.activation=fp5_e9m9", "format.activation: 'fp5_e9m9'"),
        ("format=mxpf4", "format: 'mxpf4' is no format (near it: mxfp4); allowed: mint4, mxfp4"),
        ("format.weight=mxfp4_e2m2", "format.weight: 'mxfp4_e2m2' is no format"),
        ("kv_quant=fp99", "kv_quant: 'fp99' is no format; allowed: fp4_e2m1, "),
        ("kv_quant=rescue5", "kv_quant: 'rescue5' is no format (near it: rescue4); allowed: fp4_e2m1, "),
        ("kv_quant.key=rescue5", "kv_quant.key: 'rescue5' is not an element format; allowed: "),
        ("block_size=-1", "block_size: -1 is not a block; allowed: a whole number of 1 or more"),
        (f"block_size={10**21}", "is not a block; allowed: a whole number of 1 or more, up to 2^24"),
        (f"block_size=[1,{10**21}]", "is not a block; allowed: a whole number of 1 or more, up to 2^24"),
        (f"rotation_block={10**21}", f"rotation_block: {10**21} is not allowed"),
        (
            f"calibration.samples={10**12}",
            f"calibration.samples: {10**12} is not allowed; allowed: sequences, 1 to 10^6",
        ),
        (
            "ptq=qat calibration.samples=1",
            "calibration.samples: 1 does not go with ptq=qat, which trains on some sequences and checks on others; "
            "allowed with it: 2 or more",
        ),
        (f"calibration.length={10**21}", f"calibration.length: {10**21} is not allowed"),
        (f"kv_quant.recent={10**21}", f"kv_quant.recent: {10**21} is not allowed; allowed: tokens, 0 to 10^9"),
        (f"task.num_fewshot={10**21}", f"task.num_fewshot: {10**21} is not allowed; allowed: 0 to 10,000"),
        (f"batch_tokens={10**21}", f"batch_tokens: {10**21} is not allowed"),
        (f"batch_size={10**21}", f"batch_size: {10**21} is not allowed"),
        (f"model.max_length={10**21}", f"model.max_length: {10**21} is not allowed"),
        ("block_size=1.5", "block_size: 1.5"),
        ("block_size=", "block_size: ''"),
        ("block_size=[0,16]", "block_size: [0,16]"),
        ("block_size=[4,16]", "block_size: [4,16] is a tile, which only weights can have, and format.activation"),
        ("scale_bits=1", "scale_bits: 1 is not allowed; allowed: 2 to 8"),
        ("scale_bits=40", "scale_bits: 40 is not allowed; allowed: 2 to 8"),
        ("scale=e9m9", "scale: 'e9m9' is not known; allowed: e8m0, e5m3, e4m3, fp32"),
        ("scale=e5m3 arithmetic=native", "arithmetic: 'native' is defined for e8m0 scales"),
        (
            "format.weight=fp16_e7m8 arithmetic=native model.dtype=float16",
            "arithmetic: 'native' computes in the tensors' dtype, and float16 does not hold the largest value",
        ),
        (
            "scale=e5m3 backend=microxcaling",
            "backend: 'microxcaling' has no scale e5m3; it has e8m0 (asked for",
        ),
        (
            "custom_cuda=true model.device=cpu",
            "custom_cuda: true needs a GPU, and model.device is 'cpu'; allowed: auto, cuda",
        ),
        (
            "backend=cuda model.device=cpu",
            "backend: 'cuda' needs a GPU, and model.device is 'cpu'; allowed: auto, cuda",
        ),
        ("custom_cuda=true arithmetic=native", "arithmetic: 'native' is not what the CUDA kernels compute"),
        ("tensor_scale=true", "tensor_scale"),
        ("custom_cuda=maybe", "custom_cuda: 'maybe' is not a yes or no; allowed: true, false"),
        ("limit=0", "limit: 0 is not allowed; give none (all), a fraction between 0 and 1, or a whole count"),
        ("limit=-3", "limit: -3"),
        ("limit=2.5", "limit: 2.5"),
        ("limit=nan", "limit: nan is not allowed"),
        ("limit=inf", "limit: inf is not allowed"),
        ("limit=many", "limit: 'many'"),
        ("rounding=up", "rounding: 'up' is not known; allowed: nearest, even, floor, stochastic, ties_to_zero"),
        ("scale_rounding=up", "scale_rounding: 'up'"),
        ("backend=tpu", "backend: 'tpu'"),
        ("arithmetic=fuzzy", "arithmetic: 'fuzzy'"),
        ("symmetric=3", "symmetric: 3"),
        (
            "batch_size=0",
            "batch_size: 0 is not allowed; allowed: a whole number of sequences at a time when generating, 1 to 10^6",
        ),
        (
            "batch_tokens=0",
            "batch_tokens: 0 is not allowed; allowed: auto, or a whole number of tokens a forward pass, 1 to 10^9",
        ),
        ("batch_tokens=many", "batch_tokens: 'many' is not allowed; allowed: auto, or a whole number of tokens"),
        ("batch_tokens=null", "batch_tokens: null is not allowed; allowed: auto, or a whole number of tokens"),
        ("seed=-1", "seed: -1"),
        ("model.path=gpt2", "model.path: 'gpt2' goes with model=hf"),
        ("model=hf", "model.path: is not given; give the name of a model on the Hugging Face hub"),
        ("model=hf model.path=''", "model.path: '' is empty"),
        ("model=hf model.path=/no/such/folder", "model.path: '/no/such/folder' does not exist"),
        ("model.dtype=int8", "model.dtype: 'int8'"),
        ("model.device=gpu", "model.device: 'gpu' is not a device; allowed: auto, cpu, cuda, cuda:0, mps"),
        ("model.attention=flash", "model.attention: 'flash'"),
        (
            "kv_quant=fp4_e2m1 model.attention=flex_attention",
            "model.attention: 'flex_attention' does not go with kv_quant=fp4_e2m1",
        ),
        ("model.max_length=0", "model.max_length: 0"),
        ("model.max_length=3", "model.max_length: 3 is not allowed; allowed: tokens, 16 to 10^9, or null"),
        ("model.trust_remote_code=yes_please", "model.trust_remote_code: 'yes_please'"),
        ("task=[story,story]", "names a task twice"),
        ("task.num_fewshot=-1", "task.num_fewshot: -1"),
        ("task=lambada_openai task.data=/no/file.jsonl", "task.data: '/no/file.jsonl' is not a file"),
        ("task=[lambada_openai,wikitext] task.data=x.jsonl", "is one file for the tasks lambada_openai, wikitext"),
        ("task.data=x.jsonl", "the task 'story' generates its own data"),
        ("modules=3", "modules: 3 must map glob patterns to formats"),
        ("modules={a: {wait: int8}}", "modules[a]: 'wait' is not a field"),
        ("modules={a: banana}", "modules[a].weight: 'banana'"),
    ],
)
def test_refused(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(_split(overrides))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_hash_is_of_a_data_files_content(lambada_file: Path, tmp_path: Path) -> None:
    def of(file: Path) -> str:
        return compose(["task=lambada_openai", f"task.data={file}"]).config_hash

    before = of(lambada_file)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(lambada_file.read_bytes())
    assert of(copy) == before
    copy.write_text('{"text": "a b d"}\n')
    assert of(copy) != before


def test_data_file_with_the_wrong_field(lambada_file: Path, tmp_path: Path) -> None:
    compose(["task=lambada_openai", f"task.data={lambada_file}"])
    with pytest.raises(ConfigError, match=r"line 1 has no text field 'page'; it has 'text'"):
        compose(["task=wikitext", f"task.data={lambada_file}"])
    (tmp_path / "mixed.jsonl").write_text('{"text": "a b c"}\n{"page": "x"}\n')
    with pytest.raises(ConfigError, match=r"line 2 has no text field 'text'; it has 'page'"):
        compose(["task=lambada_openai", f"task.data={tmp_path / 'mixed.jsonl'}"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="holds no rows"):
        compose(["task=wikitext", f"task.data={tmp_path / 'empty.jsonl'}"])
    (tmp_path / "text.txt").write_text("once upon a time\n")
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        compose(["task=wikitext", f"task.data={tmp_path / 'text.txt'}"])


def test_config_is_checked_without_torch() -> None:
    code = (
        "import sys; from mxsweep import compose; compose(['experiment=ex3', 'custom_cuda=false']);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules and 'lm_eval' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_as_dict_is_json_and_holds_the_knobs_where_conf_has_them() -> None:
    config = compose(["block_size=[4,16]", "format.activation=none", "task=[story,lambada_openai]"])
    data = json.loads(json.dumps(config.as_dict()))
    assert data["block_size"] == [4, 16]
    assert data["format"] == {"name": "w:fp4_e2m1,a:none", "weight": "fp4_e2m1", "activation": "none"}
    assert data["kv_quant"] == {"name": "none", "key": "none", "value": "none"}
    assert data["task"]["name"] == "story+lambada_openai"
    elsewhere = {"further", "rules", "runtime", "train", "corpus", "init", "matmuls", "recipe_name"}
    assert {field.name for field in RunConfig.__dataclass_fields__.values()} - elsewhere <= set(data)


def _split(words: str) -> list[str]:
    """At the blanks that begin a new override."""
    import re

    return re.split(r" (?=[a-z_.]+=)", words)


def test_rescue4_is_its_leaves_and_keys_rotated_by_the_rotation_of_qk() -> None:
    rescued = compose(["format=none", "kv_quant=rescue4"])
    kept = ["format=none", "kv_quant=fp4_e2m1", "kv_quant.first=4", "kv_quant.recent=32"]
    assert rescued.config_hash == compose([*kept, "kv_quant.rotation=hadamard"]).config_hash
    assert rescued.config_hash == compose([*kept, "rotation=hadamard", "rotation.matmuls=[qk]"]).config_hash
    assert rescued.config_hash != compose(kept).config_hash
    assert rescued.recipe.rotation == Rotation(("qk",), 32)
    record = rescued.as_dict()
    assert record["kv_quant"]["rotation"] == "hadamard" and record["rotation"] == {"method": "none"}
    assert (record["kv_quant"]["first"], record["kv_quant"]["recent"], record["rotation_block"]) == (4, 32, "mx")
    unrotated = compose(["format=none", "kv_quant=rescue4", "kv_quant.rotation=none"])
    assert unrotated.config_hash == compose(kept).config_hash and unrotated.recipe.rotation is None


def test_a_search_that_has_nothing_to_choose_is_recorded_as_none() -> None:
    kept = ["format=none", "kv_quant=rescue4"]
    searched = compose([*kept, "rotation=search"])
    assert not searched.searches and searched.config_hash == compose(kept).config_hash
    assert searched.as_dict() == compose(kept).as_dict()


def test_keys_rotated_for_the_cache_go_with_any_rotation() -> None:
    assert compose(["kv_quant=rescue4", "rotation=hadamard", "rotation.matmuls=[o]"]).recipe.rotation == Rotation(
        ("o", "qk"), 32
    )
    every = ["kv_quant=fp4_e2m1", "rotation=hadamard"]
    twice = compose([*every, "kv_quant.rotation=hadamard"])
    assert twice.config_hash == compose(every).config_hash and twice.as_dict() == compose(every).as_dict()
    searched = compose(["kv_quant=rescue4", "rotation=search"])
    assert searched.recipe.rotation == Rotation(("qk",), 32)
    assert ("qk",) not in [one.matmuls for one in searched.candidates] and len(searched.candidates) == 7
    assert "qk" not in searched.as_dict()["rotation"]["matmuls"].split("+")
    values_alone = compose(["format=none", "kv_quant=rescue4", "kv_quant.key=none"])
    assert values_alone.recipe.rotation is None and "rotation" not in values_alone.as_dict()["kv_quant"]


def test_inputs_with_matrices_of_their_own_are_calibrated() -> None:
    config = compose(["format=mxfp4", "rotation=wush"])
    assert config.recipe.rotation == Rotation(LINEAR_MATMULS, 32, "wush") and not config.searches
    assert config.transforms_inputs and config.needs_calibration
    assert config.as_dict()["calibration"]["samples"] == 128
    assert config.as_dict()["rotation"] == {"method": "wush", "matmuls": "+".join(LINEAR_MATMULS)}
    hashes = {
        compose(["format=mxfp4", *words]).config_hash
        for words in (
            ["rotation=none"],
            ["rotation=hadamard"],
            ["rotation=wush"],
            ["rotation=wush", "calibration.samples=64"],
            ["rotation=wush", "rotation.matmuls=[down]"],
            ["rotation=wush", "rotation_block=16"],
        )
    }
    assert len(hashes) == 6
    unquantized = compose(["format=none", "rotation=wush"])
    assert not unquantized.needs_calibration and unquantized.config_hash == compose(["format=none"]).config_hash


def test_keys_are_rotated_beside_inputs_with_matrices_of_their_own() -> None:
    cached = ["format=mxfp4", "kv_quant=fp4_e2m1", "rotation=wush"]
    both = compose(cached)
    assert both.recipe.rotation == Rotation(MATMULS, 32, "wush")
    of_layers = f"rotation.matmuls=[{','.join(LINEAR_MATMULS)}]"
    assert compose([*cached, of_layers, "kv_quant.rotation=hadamard"]).config_hash == both.config_hash
    assert compose([*cached, of_layers]).recipe.rotation == Rotation(LINEAR_MATMULS, 32, "wush")
    alone = ["format=none", "kv_quant=fp4_e2m1", "rotation=wush"]
    assert compose(alone).recipe.rotation is None and not compose(alone).needs_calibration
    assert compose(alone).as_dict() == compose(alone[:2]).as_dict()
    kept = compose([*alone, "kv_quant.rotation=hadamard"])
    assert kept.recipe.rotation == Rotation(("qk",), 32)
    assert kept.config_hash == compose([*alone[:2], "kv_quant.rotation=hadamard"]).config_hash


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rotation_block=0", "rotation_block: 0 does not go with rotation=wush, where each block of each input has a"),
        ("rotation_block=512", "rotation_block: 512 does not go with rotation=wush.*; allowed with it: 1 to 256"),
        ("block_size=1024", "rotation_block: mx, which is 1024 here, does not go with rotation=wush"),
        ("train=from_scratch", "rotation: does not go with train=from_scratch"),
        ("runtime=quark", "rotation: wush is nothing that runtime=quark computes"),
        ("runtime=vllm", "rotation: wush is nothing that runtime=vllm computes, which has one Hadamard matrix for all"),
    ],
)
def test_what_matrices_of_inputs_do_not_go_with(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["format=mxfp4", "rotation=wush", *words.split()])


def test_the_text_of_a_rotation_is_what_it_was() -> None:
    assert repr(Rotation(("q", "qk"), 32)) == "Rotation(matmuls=('q', 'qk'), block=32)"
    assert repr(Rotation(("q",), 32, "wush")) == "Rotation(matmuls=('q',), block=32, kind='wush')"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("block_size=true", "block_size: true is not a block"),
        ("rounding=null", "rounding: null is not known"),
        ("format=true", "format: 'true' is no format"),
        ("rotation.matmuls=[qk,qk]", "rotation.matmuls: [qk,qk] must name"),
        ("format.four_over_six={weight: true}", "format.four_over_six: {weight: true} is not allowed"),
        ("format.four_over_six=true", "format.four_over_six: true does not go with scale 'e8m0'"),
        ("tensor_scale=true", "tensor_scale: true does not go with scale 'e8m0'"),
        ("modules=[true,null]", "modules: [true,null] must map"),
        ("limit=true", "limit: true is not allowed"),
    ],
)
def test_a_refusal_shows_the_value_as_it_was_typed(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose([word])
    assert str(refused.value).startswith(message)
