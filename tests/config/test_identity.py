"""What identifies a run: its hash, the content of its files, the device, the version of the numerics."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.adversarial import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from mxsweep import compose
from mxsweep.config.checks import file_digest
from mxsweep.config.run_config import RunConfig
from mxsweep.files import digests
from mxsweep.files.checkpoints import model_folder, model_identity, model_stamps
from mxsweep.formats import STOCHASTIC_VERSION
from mxsweep.machine import gpus as devices
from mxsweep.model.load import load_model
from mxsweep.numerics import (
    ELEMENT_NAMES,
    NUMERICS_VERSION,
    ROUNDINGS,
    SCALE_NAMES,
    SCALE_ROUNDINGS,
    MXFormat,
    quantize,
)
from mxsweep.terminal.errors import ConfigError

TINY = model_folder("embedded")
assert TINY is not None


def of(*overrides: str) -> str:
    return compose(list(overrides)).config_hash


# The hash and what a config means


KNOBS = {
    "format": ["none", "w4a6", "mxfp4", "mxfp4_e2m1", "fp4_e2m1", "nvfp4", "int2", "fp4_e3m0"],
    "block_size": ["auto", "16", "32", "0"],
    "scale_bits": ["8", "6"],
    "scale": ["auto", "e8m0", "e4m3", "fp32"],
    "kv_quant": ["none", "int8"],
    "rounding": ["nearest", "stochastic"],
    "scale_rounding": ["floor", "even", "ceil", "rceil"],
    "symmetric": ["true", "false"],
    "custom_cuda": ["false", "true"],
    "backend": ["auto", "torch"],
    "arithmetic": ["auto", "exact"],
    "modules": ["null", "{lm_head: none}", "{lm_head: int8}"],
    "limit": ["none", "100"],
    "seed": ["1234", "1"],
    "model.dtype": ["auto", "float32", "bfloat16"],
    "model.attention": ["sdpa", "eager", "auto"],
    "model.device": ["auto", "cuda", "cuda:1"],
    "model.revision": ["null", "v2"],
    "model.trust_remote_code": ["false", "true"],
    "model.add_bos_token": ["auto", "true", "false"],
    "batch_size": ["32", "7"],
    "batch_tokens": ["auto", "64"],
    "task.num_fewshot": ["null", "0"],
}


@st.composite
def two_command_lines(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Two that differ in few knobs, so that many pairs mean the same."""

    def some(count: int) -> dict[str, str]:
        knobs = draw(st.lists(st.sampled_from(sorted(KNOBS)), max_size=count, unique=True))
        return {knob: draw(st.sampled_from(KNOBS[knob])) for knob in knobs}

    first = some(6)
    second = first | some(2)
    return [f"{knob}={value}" for knob, value in first.items()], [f"{knob}={value}" for knob, value in second.items()]


def meaning(config: RunConfig) -> tuple[Any, ...]:
    """What of KNOBS decides a result, told another way than the hash tells it."""

    def plain(fmt: MXFormat | None) -> MXFormat | None:
        # The largest value of these two is a power of two.
        without_mantissa = fmt is not None and fmt.element in ("int2", "fp4_e3m0") and fmt.scale_rounding == "rceil"
        return replace(fmt, scale_rounding="ceil") if fmt is not None and without_mantissa else fmt

    recipe = config.recipe
    formats = [recipe.linear.weight, recipe.linear.activation, recipe.key, recipe.value]
    modules = tuple((name, plain(linear.weight), plain(linear.activation)) for name, linear in recipe.modules)
    quantized = (*map(plain, formats), modules, config.backend, config.arithmetic)
    is_gpu = config.model.device.startswith("cuda") or torch.cuda.is_available()
    dtype = "float32" if config.model.dtype == "auto" else config.model.dtype  # what the embedded model's config says
    attention = "eager" if config.model.attention == "eager" else "sdpa"  # which auto is wherever there is sdpa
    baseline = not any(formats) and not any(weight or activation for _, weight, activation in modules)
    return (
        None if baseline else quantized, config.limit, config.seed, dtype, attention, is_gpu,
        config.task.num_fewshot, config.model.add_bos_token,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(two_command_lines())
def test_runs_have_one_hash_if_and_only_if_they_mean_the_same(lines: tuple[list[str], list[str]]) -> None:
    try:
        first, second = (compose(line) for line in lines)
    except ConfigError:
        return
    assert (first.config_hash == second.config_hash) == (meaning(first) == meaning(second))


# Hashes of the embedded model on the CPU as earlier versions had them: sweeps begun then are gone on with.
EARLIER = {
    "": "56aba679042c16f0",
    "format=none": "980e5abaf096daec",
    "format=mxfp4 ptq=gptq ptq.budget=4.5": "c121e8620234e5ed",
    "format=none kv_quant=fp4_e2m1 kv_quant.smooth=0.5": "2e349fcfa849c4cb",
    "format=mxfp4 ptq=gptq rotation=search rotation.judge=ptq": "24f097b5533ba820",
    "block_size=[4,16] format.activation=none": "4d0c3c2486b14a2d",
    "noise=2": "c15d079217db73fc",
    "diagnostics=true": "0f10c93f9e1e328c",
    "model.max_length=64": "cfe92290a8a56cd7",
    "task=arc_easy": "6eb78c0ca71e20f0",
    "modules={lm_head:int8}": "a178dcb72148b11e",
}


@pytest.mark.parametrize(("line", "digest"), EARLIER.items())
def test_hashes_of_earlier_versions_stay(line: str, digest: str) -> None:
    assert of("model.device=cpu", *line.split()).startswith(digest)


def test_what_of_latents_is_quantized_is_in_it_where_something_is() -> None:
    kv, expanded = "kv_quant=fp4_e2m1", "kv_quant.latent=expanded"
    assert of(kv, "kv_quant.latent=cache") == of(kv) != of(kv, expanded)
    assert of(expanded) == of()
    assert of(kv, "kv_quant.recent=4") != of(kv, "kv_quant.recent=4", expanded)
    assert repr(compose([kv]).recipe.kv) == (  # of which the keys of stored artefacts are made
        "KVOptions(key_axis='token', rope='after', first=0, recent=0, scales='block', smooth=0.0)"
    )


def test_knobs_without_an_effect_are_not_in_it() -> None:
    none = of("format=none")
    for knob in (
        "scale=e5m3", "scale_bits=4", "rounding=even", "symmetric=false", "scale_rounding=ceil", "custom_cuda=true",
        "backend=microxcaling", "arithmetic=exact", "modules={lm_head: none}", "block_size=64",
    ):  # fmt: skip
        assert of("format=none", knob) == none, knob
    for scale in ("e5m3", "e4m3", "fp32"):
        assert of(f"scale={scale}", "scale_bits=5", "scale_rounding=ceil") == of(f"scale={scale}")
    assert of("custom_cuda=true", "backend=torch") == of()
    assert of("custom_cuda=true") == of("backend=cuda")
    assert of("scale=e5m3", "arithmetic=exact") == of("scale=e5m3")
    assert of("model.trust_remote_code=true") == of("batch_tokens=5") == of("batch_size=2") == of()
    tile = ["format.activation=none", "block_size=[1,16]"]
    assert of(*tile) == of("format.activation=none", "block_size=16") != of(*tile[:1], "block_size=[2,16]")
    assert of("task=lambada_openai") == of("task=lambada_openai", "+task.fields.other=x")


def test_a_tile_of_one_row_is_a_block() -> None:
    x = torch.randn(6, 40)
    assert_same_bits(quantize(x, MXFormat("fp4_e2m1", (1, 16))), quantize(x, MXFormat("fp4_e2m1", 16)))


def test_the_seed_and_the_order_of_patterns_are_in_it() -> None:
    assert of("seed=1") != of() and of("format=none", "seed=1") != of("format=none")
    assert of("modules={a*: int8, '*b': int4}") != of("modules={'*b': int4, a*: int8}")


def test_only_quantized_runs_have_the_version_of_the_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [], ["kv_quant=int8", "format=none"], ["rounding=stochastic"], ["format=none"]
    runs += ["train=from_scratch", "recipe=mxfp4"], ["train=from_scratch", "recipe=mxfp4_sr"]
    of_numerics, of_chance = [False, False, False, True, False, False], [True, True, False, True, True, False]
    for version, stays in (("NUMERICS", of_numerics), ("STOCHASTIC", of_chance)):
        before = [of(*words) for words in runs]
        with monkeypatch.context() as patched:
            patched.setattr(f"mxsweep.formats.backends.{version}_VERSION", 99)
            assert [a == b for a, b in zip(before, [of(*words) for words in runs], strict=True)] == stays


_FORMATS = st.builds(
    MXFormat,
    st.sampled_from([*ELEMENT_NAMES, "mxfp4_e2m1", "fp3_e1m1"]),
    st.sampled_from([0, 1, 16, (1, 16), (16, 1)]),
    st.just("e8m0"),
    st.integers(2, 8),
    st.sampled_from(ROUNDINGS),
    st.sampled_from(SCALE_ROUNDINGS),
    st.booleans(),
) | st.builds(
    MXFormat,
    st.sampled_from([*(name for name in ELEMENT_NAMES if name != "mint4"), "mxfp4_e2m1", "fp3_e1m1"]),
    st.sampled_from([0, 1, 16, (1, 16), (16, 1)]),
    st.sampled_from(SCALE_NAMES),
    st.integers(2, 8),
    st.sampled_from(ROUNDINGS),
    st.sampled_from(SCALE_ROUNDINGS),
    st.booleans(),
)


@given(_FORMATS, _FORMATS, st.booleans())
def test_a_formats_text_tells_it_from_every_other(one: MXFormat, other: MXFormat, tensor_scale: bool) -> None:
    assert (str(one) == str(other)) == (one == other)
    if one.scale == "e4m3":
        assert (str(replace(one, tensor_scale=tensor_scale)) == str(one)) == (not tensor_scale)


# Models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def of_model(folder: Path | str, *overrides: str) -> str:
    return of("model=hf", f"model.path={folder}", *overrides)


def test_a_folder_is_its_content(model: Path, tmp_path: Path) -> None:
    before = of_model(model)
    assert before == of() == of("model.dtype=float32") == of_model(model, "model.revision=v2")
    (model / "README.md").write_text("another")
    (model / "training.json").unlink()
    (model / "pytorch_model.bin").write_bytes(b"not read beside safetensors")
    moved = model.rename(tmp_path / "moved")
    assert of_model(moved) == before
    linked = tmp_path / "linked"  # as the hub's cache has them
    linked.mkdir()
    for file in moved.iterdir():
        (linked / file.name).symlink_to(file)
    assert of_model(linked) == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_byte_changes_it(model: Path, name: str) -> None:
    before = of_model(model)
    content = bytearray((model / name).read_bytes())
    number = {"config.json": b"568", "tokenizer_config.json": b"256"}.get(name)  # another character makes it no JSON
    at = content.rindex(number) if number else -2
    content[at] ^= 1
    (model / name).write_bytes(content)
    assert of_model(model) != before
    content[at] ^= 1
    (model / name).write_bytes(content)
    assert of_model(model) == before


def test_a_file_more_changes_it(model: Path) -> None:
    seen = [of_model(model)]
    for name in ("chat_template.jinja", "special_tokens_map.json", "additional_chat_templates/tool.jinja"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
        seen.append(of_model(model))
    (model / "tokenizer.json").rename(model / "tokenizer.model")
    seen.append(of_model(model))
    assert len(set(seen)) == len(seen)


def test_code_counts_where_it_is_trusted(model: Path) -> None:
    plain, trusted = of_model(model), of_model(model, "model.trust_remote_code=true")
    assert plain == trusted
    (model / "modeling_tiny.py").write_text("1")
    assert of_model(model) == plain != of_model(model, "model.trust_remote_code=true")


def test_how_codes_are_read_counts_and_what_an_export_measured_does_not(model: Path) -> None:
    plain = of_model(model)
    layers = {"model.layers.0.mlp.up_proj": {"weight": "fp4_e2m1-b32-e8m0", "activation": None}}
    said = {"target": "quark", "dtype": "float32", "weights": layers, "run_id": "x", "seconds": {"write": 1.0}}
    seen = []
    for change in (
        {},
        {"target": "modelopt"},
        {"dtype": "bfloat16"},
        {"weights": {}},
        {"weights": {"model.layers.0.mlp.up_proj": {"weight": "fp4_e2m1-b16-e8m0", "activation": None}}},
    ):
        (model / "export.json").write_text(json.dumps(said | change))
        stamps = model_stamps(str(model), False)
        seen.append(of_model(model))
        (model / "export.json").write_text(json.dumps(said | change | {"run_id": "another", "seconds": {"write": 2}}))
        assert of_model(model) == seen[-1] and model_stamps(str(model), False) != stamps
    assert len({plain, *seen}) == 1 + len(seen)
    (model / "export.json").unlink()
    assert of_model(model) == plain


def test_shards_are_those_of_the_index(model: Path) -> None:
    def of_model(folder: Path) -> dict[str, str]:
        """Return the identity of what planning refuses."""
        return model_identity(str(folder), revision=None, dtype="auto", trust_remote_code=False)

    (model / "model.safetensors").unlink()
    (model / "sub").mkdir()
    (model / "sub" / "a.safetensors").write_bytes(b"1")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "sub/a.safetensors", "y": "missing.safetensors"}}))
    before = of_model(model)
    (model / "sub" / "a.safetensors").write_bytes(b"2")
    assert of_model(model) != before
    for damaged in ("{", "[]", "[1]", '{"x": 5, "y": []}', '{"x": ".."}', '{"x": "/etc/hosts"}'):
        index.write_text(damaged if damaged in ("{", "[]") else f'{{"weight_map": {damaged}}}')
        of_model(model)  # loading the model says what is wrong with it


def test_pickled_weights_count_where_there_are_no_others(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    before = of_model(model)
    (model / "training_args.bin").write_bytes(b"1")
    assert of_model(model) == before
    (model / "pytorch_model.bin").write_bytes(b"1")
    assert of_model(model) != before


def test_a_hub_name_is_its_name_and_revision() -> None:
    name = "someone/some-model"
    assert of_model(name) == of_model(name, "model.revision=main")
    different = [of_model(name), of_model(name, "model.revision=v2"), of_model("someone/other"),
                 of_model(name, "model.dtype=bfloat16"), of_model(name, "model.max_length=2048")]  # fmt: skip
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "bfloat16"),
        ({}, None),
        ({"dtype": None}, None),
        ({"dtype": "bfloat16", "text_config": {"dtype": "float32"}}, None),
    ],
)
def test_dtype_auto_is_what_the_config_says(model: Path, stored: dict[str, Any], dtype: str | None) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["dtype"]
    (model / "config.json").write_text(json.dumps(config | stored))
    auto = of_model(model)
    for explicit in ("float32", "bfloat16", "float16"):
        assert (of_model(model, f"model.dtype={explicit}") == auto) == (explicit == dtype)
    if "text_config" not in stored:
        loaded = load_model(str(model), device="cpu").model
        assert str(loaded.dtype) == f"torch.{dtype or 'float32'}"


def test_a_folder_written_anew_is_loaded_anew(model: Path) -> None:
    first = load_model(str(model), device="cpu")
    assert load_model(str(model), device="cpu") is first
    shutil.copy(model / "model.safetensors", model / "copy")
    (model / "copy").replace(model / "model.safetensors")
    assert load_model(str(model), device="cpu") is not first


# Files


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"12")
    fstat = os.fstat

    def growing(descriptor: int) -> os.stat_result:
        with file.open("ab") as stream:
            stream.write(b"x")
        return fstat(descriptor)

    monkeypatch.setattr(digests.os, "fstat", growing)
    with pytest.raises(ConfigError, match=r"task.data: .*data' cannot be read: it is being written"):
        file_digest(str(file))


def test_a_file_that_vanished_is_refused_by_its_fields_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a b c"}\n')
    config = replace(compose(["task=lambada_openai", f"task.data={data}"]))
    data.unlink()
    with pytest.raises(ConfigError, match=r"^task.data: '.*data.jsonl' cannot be read: No such file") as refused:
        _ = config.config_hash
    assert "\n" not in str(refused.value)

    def refuse(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(digests, "_read", refuse)
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    with pytest.raises(ConfigError, match=r"^model.path: '.*model' cannot be read: .*\w+: Permission denied"):
        of_model(model)


# Devices


def test_auto_is_the_device_that_it_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.visible_gpu_count() == 0
    assert of() == of("model.device=cpu") != of("model.device=cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.visible_gpu_count() == 2
    assert of() == of("model.device=cuda") == of("model.device=cuda:1") != of("model.device=cpu")
    assert of("model.device_map=auto") == of() != of("model.device=mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a login node plans for nodes with GPUs
    assert of("model.device_map=auto") == of("model.device=cuda")


_FAKE_DRIVER = """
#include <stdlib.h>
#include <string.h>
static int gpus(void) { const char *visible = getenv("CUDA_VISIBLE_DEVICES"); return visible ? strlen(visible) : 4; }
int cuInit(unsigned flags) { return gpus() ? 0 : 100; }
int cuDeviceGetCount(int *count) { *count = gpus(); return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("build", "counts"), [("2.13.0", "4 1 2 0"), ("2.13.0+cu130", "4 1 2 0"), ("2.13.0+cpu", "0 0 0 0")]
)
def test_gpus_are_counted_without_torch(tmp_path: Path, build: str, counts: str) -> None:
    (tmp_path / "cuda.c").write_text(_FAKE_DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "cuda.c"], check=True, timeout=60)
    code = (
        "import os, sys; from mxsweep.machine import gpus as devices\n"
        f"devices.version = lambda name: {build!r}\n"
        "def count(visible):\n"
        "    os.environ['CUDA_VISIBLE_DEVICES'] = visible\n"
        "    return devices.visible_gpu_count()\n"
        "print(devices.visible_gpu_count(), count('3'), count('01'), count(''))\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment["LD_LIBRARY_PATH"] = str(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.split() == counts.split()


def test_a_hash_needs_no_torch_and_is_the_same_with_it() -> None:
    code = (
        "import sys; from mxsweep import compose; print(compose(['experiment=ex3']).config_hash)\n"
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == of("experiment=ex3")


# The numerics


# Of quantize's answers in each version of the numerics. The same on CPUs with and without AVX2 and AVX-512, and for any
# number of threads.
NUMERICS_DIGESTS = {
    1: "64cb1f04f446a5d42a6d4fe62e19faad5b6f49c5140946238f82d9f5fd045b17",
}
MINT_DIGESTS = {
    1: "1309f830f6842a2e994055def831e2c2f715d74995afeb0d469e736e19c0f00e",
}
# Of the stochastic ones among those formats, in each STOCHASTIC_VERSION.
STOCHASTIC_DIGESTS = {
    1: "590621ee14d2b1f6497bebffe74490e8ce8e445385a79b4ce554123e81d4b957",
    2: "086efad7d0f4e89963f1a85109aee40ce43a2438cb1c226327692915d26131da",
}


def numerics_input() -> np.ndarray:
    """float32 [28, 96], where decisions are close: from SHAKE-256, so that no library's random numbers are in it.

    Four rows each: ties of every format, these an ulp less or more, powers of two with their neighbours, ordinary
    numbers of one magnitude, subnormals, any bit pattern (in every other row without NaN and Inf), and blocks of 16
    whose largest are the smallest normal number and the smallest scale, with their neighbours.
    """
    words = np.frombuffer(hashlib.shake_256(b"mxsweep").digest(28 * 96 * 4), "<u4").reshape(7, 4, 96).astype(np.int64)
    shift = (words[..., :1] >> 8) % 33 - 16
    sign = np.where(words & 1, -1, 1)
    ties = np.ldexp((words % 1025 - 512) / 64, shift).astype(np.float32)
    powers = (sign * np.ldexp(1.0, (words >> 4) % 17 - 8 + shift)).astype(np.float32)
    ordinary = np.ldexp((words % 2**24 - 2**23) / 2**22, shift).astype(np.float32)
    small = ((words % 2**24) >> (words >> 25) % 24).astype(np.uint32).view(np.float32)
    tame = (words & 0x807FFFFF) | (100 + (words >> 24) % 51) << 23
    bits = np.where(np.arange(4)[:, None] % 2, tame, words).astype(np.uint32).view(np.float32)
    largest = np.repeat([0x007FFFFF, 0x00800000, 0x00800001, 0x003FFFFF, 0x00400000, 0x00400001], 16)
    edges = np.where(np.arange(96) % 16, words % 0x003FFFFF, largest).astype(np.uint32).view(np.float32)
    steps = (words >> 6) % 3 - 1
    parts = (ties, beside(ties, steps), beside(powers, steps), ordinary, small, bits, edges)
    return np.concatenate([part[index] for index, part in enumerate(parts)])


def beside(x: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """`x` some ulps further from zero, or nearer."""
    return np.where(x == 0, x, (x.view(np.int32) + steps.astype(np.int32)).view(np.float32))


def without_close_ones(x: np.ndarray) -> np.ndarray:
    """Without what is so close to a power of two that a logarithm's last bit, another on every CPU, decides."""
    mantissa, exponent = x.view(np.int32) & 0x7FFFFF, x.view(np.int32) >> 23 & 0xFF
    close = ((mantissa > 0) & (mantissa < 256)) | (mantissa > 2**23 - 256) | (exponent == 0)
    return np.where(close, np.float32(0), x)


def under_a_maximum(powers: np.ndarray) -> np.ndarray:
    """Every fourth made its block's largest, far from a power of two: of the others no logarithm is taken."""
    return np.where(np.arange(96) % 4, powers, 3 * np.abs(powers).max(axis=1, keepdims=True))


def numerics_formats() -> list[MXFormat]:
    """All named elements by scales and roundings, and each other field of a format by itself."""
    elements = [name for name in ELEMENT_NAMES if name != "mint4"]  # which has one scale only
    formats = [MXFormat(e, 32, s, rounding=r) for e, s, r in product(elements, SCALE_NAMES, ROUNDINGS)]
    for element in elements:
        formats += [MXFormat(element, scale_rounding=name) for name in SCALE_ROUNDINGS[1:]]
        formats += [MXFormat(element, scale=name, symmetric=False) for name in SCALE_NAMES]
        formats += [MXFormat(element, 16, "e4m3", tensor_scale=True), MXFormat(element, scale_bits=4)]
        formats += [MXFormat(element, size) for size in (0, 16, 20, (4, 16))]
    return formats


def mint_formats() -> list[MXFormat]:
    """Those of `mint4`, which came later than the first version's digest."""
    formats = [MXFormat("mint4", rounding=rounding) for rounding in ROUNDINGS]
    formats += [MXFormat("mint4", size) for size in (0, 16, 20, (4, 16))]
    return [*formats, MXFormat("mint4", symmetric=False), MXFormat("mint4", scale_bits=4)]


def numerics_digest(formats: list[MXFormat]) -> str:
    """Of what `formats` make of a fixed input, in both arithmetics and all dtypes."""
    x = numerics_input()
    native = [fmt for fmt in formats if fmt.has_native_arithmetic]
    content = hashlib.sha256()
    for arithmetic, values, of_these in (
        ("exact", x, formats),
        ("native", without_close_ones(x), native),
        # Rounding toward zero takes the logarithm of every element.
        ("native", under_a_maximum(x[8:12]), [fmt for fmt in native if fmt.rounding != "floor"]),
    ):
        for dtype, fmt in product((torch.float32, torch.bfloat16, torch.float16), of_these):
            y = quantize(torch.from_numpy(values).to(dtype), fmt, arithmetic=arithmetic, generator=7)
            y = y.masked_fill(y.isnan(), torch.nan)
            codes = y.view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
            content.update(f"{arithmetic} {dtype} {fmt}".encode() + codes.astype("<i4").tobytes())
    return content.hexdigest()


def parted(formats: list[MXFormat]) -> tuple[list[MXFormat], list[MXFormat]]:
    """Those that round without chance, and those that round by chance."""
    of_chance = [fmt for fmt in formats if fmt.rounding == "stochastic"]
    later = ("stochastic", "ties_to_zero")  # and what came after the first version's digest
    return [fmt for fmt in formats if fmt.rounding not in later], of_chance


@pytest.mark.parametrize(
    ("formats", "digests", "name", "version"),
    [
        (parted(numerics_formats())[0], NUMERICS_DIGESTS, "NUMERICS_VERSION", NUMERICS_VERSION),
        (parted(mint_formats())[0], MINT_DIGESTS, "NUMERICS_VERSION", NUMERICS_VERSION),
        (parted(numerics_formats() + mint_formats())[1], STOCHASTIC_DIGESTS, "STOCHASTIC_VERSION", STOCHASTIC_VERSION),
    ],
    ids=["all that the first version had", "mint4", "stochastic"],
)
def test_the_version_of_the_numerics_is_raised_when_answers_change(
    formats: list[MXFormat], digests: dict[int, str], name: str, version: int
) -> None:
    assert max(digests) == version, f"each table of digests needs one for {name}"
    found = numerics_digest(formats)
    assert found == digests[version], (
        f"quantize's answers are no longer those of {name} {version}. If that is meant, raise {name} in "
        f"mxsweep/formats/backends.py and add {version + 1}: {found!r} to this table of digests"
    )
