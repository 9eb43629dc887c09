"""What a run is under the preset of another runtime: formats by its rules, refusals, identity, record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.made_runs import outcomes, put

from mxsweep import compose
from mxsweep.config.option_files import option_names
from mxsweep.config.runtimes import RUNTIME_NAMES, RUNTIMES, Runtime, register_runtime
from mxsweep.results.groups import read_results
from mxsweep.terminal.errors import ConfigError


def formats(*words: str) -> list[str | None]:
    linear = compose(list(words)).recipe.linear
    return [fmt and str(fmt) for fmt in (linear.weight, linear.activation)]


def test_every_runtime_can_be_chosen_on_the_command_line() -> None:
    assert sorted(map(str, option_names("runtime"))) == sorted(RUNTIME_NAMES)
    assert [compose([f"runtime={name}", "format=none"]).runtime for name in RUNTIMES] == list(RUNTIMES)


@pytest.mark.parametrize(
    ("words", "weight", "activation", "arithmetic"),
    [
        ("quark w4a6", "fp4_e2m1-b32-e8m0-scale_even-round_even", "fp6_e2m3-b32-e8m0-scale_even-round_even", "exact"),
        ("vllm mxfp4", "fp4_e2m1-b32-e8m0-scale_even-round_even", "fp4_e2m1-b32-e8m0-scale_even-round_even", "exact"),
        (
            "transformers mxfp8_e4m3",
            "fp8_e4m3-b32-e8m0-scale_even1-round_even",
            "fp8_e4m3-b32-e8m0-scale_even1-round_even",
            "exact",
        ),
        (
            "llm_compressor mxfp6_e2m3 format.activation=fp8_e4m3",
            "fp6_e2m3-b32-e8m0-scale_even-round_even",
            "fp8_e4m3-b32-e8m0-scale_even1-round_even",
            "exact",
        ),
        (
            "torchao mxfp4",
            "fp4_e2m1-b32-e8m0-scale_rceil-round_even",
            "fp4_e2m1-b32-e8m0-scale_rceil-round_even",
            "exact",
        ),
        ("torchao mxfp4 scale_rounding=floor", "fp4_e2m1-b32-e8m0-round_even", "fp4_e2m1-b32-e8m0-round_even", "exact"),
        ("auto_round mxint8 model.dtype=float32", "int8-b32-e8m0-round_even", "int8-b32-e8m0-round_even", "native"),
        ("auto_round mxint8 model.dtype=bfloat16", "int8-b32-e8m0-round_even", "int8-b32-e8m0-round_even", "exact"),
        (
            "llm_compressor nvfp4",
            "fp4_e2m1-b16-e4m3-tensor-round_even-rule_compressed_tensors",
            "fp4_e2m1-b16-e4m3-tensor-round_even-rule_compressed_tensors",
            "exact",
        ),
        (
            "vllm nvfp4",
            "fp4_e2m1-b16-e4m3-tensor-round_even-rule_compressed_tensors",
            "fp4_e2m1-b16-e4m3-tensor-round_even-rule_vllm",
            "exact",
        ),
        (
            "torchao nvfp4 tensor_scale=false",
            "fp4_e2m1-b16-e4m3-round_even-rule_torchao",
            "fp4_e2m1-b16-e4m3-round_even-rule_torchao",
            "exact",
        ),
        (
            "auto_round fp4_e2m1 scale=e5m3 block_size=16",
            "fp4_e2m1-b16-e5m3-round_even-floor_none",
            "fp4_e2m1-b16-e5m3-round_even-floor_none",
            "exact",
        ),
        ("quark mxint8", "int8-b32-e8m0-scale_even8-round_even", "int8-b32-e8m0-scale_even8-round_even", "exact"),
        (
            "quark fp4_e2m1 scale=e5m3 block_size=32 tensor_scale=true",
            "fp4_e2m1-b32-e5m3-tensor-round_even-rule_quark",
            "fp4_e2m1-b32-e5m3-tensor-round_even-rule_quark",
            "exact",
        ),
        ("vllm mxfp8_e4m3 format.activation=none", "fp8_e4m3-b32-e8m0-scale_even1-round_even", None, "exact"),
        (
            "modelopt mxfp4 format.activation=none",
            "fp4_e2m1-b32-e8m0-scale_rceil-round_ties_to_zero",
            None,
            "exact",
        ),
        ("llama_cpp mxfp4 format.activation=none", "fp4_e2m1-b32-e8m0-round_ties_to_zero", None, "exact"),
        ("microxcaling mxfp8_e5m2", "fp8_e5m2-b32-e8m0", "fp8_e5m2-b32-e8m0", "native"),
        ("quark mxfp4 block_size=64 format.activation=none", "fp4_e2m1-b64-e8m0-scale_even-round_even", None, "exact"),
        ("transformers int8 format.activation=none rounding=even", "int8-b32-e8m0-round_even", None, "exact"),
    ],
)  # fmt: skip
def test_formats_become_what_the_runtime_computes(
    words: str, weight: str, activation: str | None, arithmetic: str
) -> None:
    runtime, fmt, *rest = words.split()
    config = compose([f"runtime={runtime}", f"format={fmt}", *rest])
    assert formats(f"runtime={runtime}", f"format={fmt}", *rest) == [weight, activation]
    assert config.arithmetic == arithmetic


def test_a_modules_formats_and_a_budgets_are_the_runtimes_too() -> None:
    config = compose(["runtime=llm_compressor", "format=mxfp4", "modules={'*.down_proj': mxfp8_e4m3}", "ptq.budget=6"])
    ((_, down),) = config.recipe.modules
    assert str(down.weight) == "fp8_e4m3-b32-e8m0-scale_even1-round_even"
    assert str(config.budget_formats["mxfp6_e2m3"].activation) == "fp6_e2m3-b32-e8m0-scale_even-round_even"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("runtime=quark rounding=nearest", "rounding: 'nearest' does not go with runtime=quark"),
        ("runtime=quark scale_rounding=floor", "scale_rounding: 'floor' does not go with runtime=quark"),
        ("runtime=torchao format=mxfp4 rounding=floor", "rounding: 'floor' does not go with runtime=torchao"),
        ("runtime=microxcaling rounding=stochastic", "allowed with it: nearest, even, floor"),
        ("runtime=quark arithmetic=native", "'native' does not go with runtime=quark; allowed with it: exact"),
        ("runtime=auto_round arithmetic=exact model.dtype=float32", "runtime=auto_round; allowed with it: native"),
        ("runtime=auto_round custom_cuda=true model.dtype=float32", "custom_cuda: true computes exact arithmetic"),
        ("runtime=auto_round model=hf model.path=no/such", "model.dtype: 'auto' does not say before no/such is loaded"),
        ("runtime=vllm format=mxfp8_e4m3", "is no product that runtime=vllm computes"),
        ("runtime=modelopt format=mxfp4", "format.activation: fp4_e2m1-b32-e8m0 is nothing that runtime=modelopt"),
        ("runtime=torchao format=w4a6", "weights in fp4_e2m1 by inputs in fp6_e2m3 is no product"),
        ("runtime=quark format=mxfp8_e5m2", "weights in fp8_e5m2 by inputs in fp8_e5m2 is no product"),
        ("runtime=quark format=mxfp4 block_size=16", "format.weight: fp4_e2m1-b16-e8m0 is nothing that runtime=quark"),
        ("runtime=quark format=mxfp4 block_size=64", "format.activation: fp4_e2m1-b64-e8m0 is nothing"),
        ("runtime=quark scale_bits=6", "is nothing that runtime=quark computes"),
        ("runtime=quark symmetric=false", "is nothing that runtime=quark computes"),
        ("runtime=quark modules={lm_head: mxfp8_e5m2}", "modules[lm_head]: weights in fp8_e5m2 by inputs in"),
        ("runtime=microxcaling format=nvfp4", "backend 'microxcaling' has no scale e4m3"),
        ("runtime=quark kv_quant=int8", "kv_quant: int8 is nothing that runtime=quark computes"),
        ("runtime=quark rotation=hadamard", "rotation: hadamard is nothing that runtime=quark computes"),
        ("runtime=quark rotation=hadamard rotation.residual=true", "none, alone or with rotation.residual=true"),
        ("runtime=quark train=from_scratch", "runtime: 'quark' does not go with train=from_scratch"),
        ("runtime=llama_cpp format=mxfp4", "weights in fp4_e2m1 by inputs as they are (format.activation=none)"),
        ("runtime=torchao format=nvfp4", "format.weight: fp4_e2m1-b16-e4m3-tensor is nothing that runtime=torchao"),
        ("runtime=quark format.scale_emax=false", "format.scale_emax: does not go with runtime=quark"),
        ("runtime=quark format.rounding={weight: even, activation: floor}", "format.rounding: does not go with"),
        ("runtime=vllm format=nvfp4 format.scale_rule=mxsweep", "format.scale_rule: does not go with runtime=vllm"),
        (
            "runtime=vllm format=nvfp4 format.share_tensor_scale=matrix",
            "format.share_tensor_scale: 'matrix' does not go with runtime=vllm; allowed with it: fused",
        ),
        (
            "runtime=vllm format=nvfp4 format.activation_scale=dynamic",
            "format.activation_scale: 'dynamic' does not go with runtime=vllm; allowed with it: static, a number",
        ),
        ("runtime=tensorrt", "runtime: 'tensorrt' is not known; allowed: none, vllm"),
    ],
)  # fmt: skip
def test_what_a_runtime_does_not_compute_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(_split(words))
    assert message in str(refused.value)


def _split(words: str) -> list[str]:
    import re

    return re.split(r" (?=[a-z_.]+=)", words)


def test_a_residual_stream_alone_is_rotated_under_every_runtime() -> None:
    assert compose(["runtime=quark", "format=mxfp4", "rotation=none", "rotation.residual=true"]).rotation.residual


def test_a_knob_that_says_what_the_runtime_does_is_no_contradiction() -> None:
    said = ["runtime=quark", "format=mxfp4", "rounding=even", "scale_rounding=even", "arithmetic=exact"]
    assert compose(said).config_hash == compose(said[:2]).config_hash


def test_a_run_without_a_preset_is_the_run_that_it_was() -> None:
    plain, none = compose(["format=mxfp4"]), compose(["format=mxfp4", "runtime=none"])
    assert plain.identity == none.identity and "runtime" not in plain.identity["quantized"]
    assert plain.as_dict() == none.as_dict() and "runtime" not in plain.as_dict()
    assert compose(["format=none", "runtime=quark"]).config_hash == compose(["format=none"]).config_hash


def test_a_number_is_one_run_however_it_is_typed() -> None:
    whole, point, other = (
        compose(["format=nvfp4", f"format.activation_scale={value}"]) for value in ("2688", "2688.0", "2688.5")
    )
    assert whole.config_hash == point.config_hash != other.config_hash
    assert whole.as_dict() == point.as_dict() and other.recipe.activation_scale == 2688.5


def test_the_record_says_what_all_formats_have_and_nothing_that_is_not_so() -> None:
    config = compose(["runtime=quark", "format=mxfp4"]).as_dict()
    assert [config[name] for name in ("runtime", "rounding", "scale_rounding")] == ["quark", "even", "even"]
    mixed = compose(["runtime=llm_compressor", "format=mxfp4", "modules={lm_head: mxfp8_e4m3}"]).as_dict()
    assert mixed["rounding"] == "even" and "scale_rounding" not in mixed
    assert compose(["runtime=quark", "format=mxfp4"]).identity["quantized"]["runtime"] == "quark"


@pytest.mark.parametrize(
    ("words", "shares", "scale"),
    [
        ("runtime=vllm format=nvfp4", True, "static"),
        ("runtime=llm_compressor format=nvfp4 format.activation_scale=2688", True, 2688.0),
        ("runtime=transformers format=nvfp4 format.activation=none", True, "dynamic"),
        ("runtime=auto_round format=nvfp4 format.share_tensor_scale=fused", True, "static"),
        ("runtime=modelopt format=nvfp4", False, "static"),
        ("runtime=modelopt format=nvfp4 format.share_tensor_scale=fused", True, "static"),
        ("runtime=vllm format=mxfp4", False, "dynamic"),
        ("format=nvfp4", False, "dynamic"),
    ],
)
def test_per_tensor_scales_are_shared_and_calibrated_as_the_runtime_has_them(
    words: str, shares: bool, scale: str | float
) -> None:
    config = compose(words.split())
    assert (config.recipe.shares_tensor_scales, config.recipe.activation_scale) == (shares, scale)
    assert config.needs_calibration == (scale == "static") == (config.as_dict()["calibration"] is not None)
    assert config.as_dict()["format"].get("activation_scale", "dynamic") == scale


@pytest.mark.parametrize(
    ("kinds", "word"),
    [
        ("format.activation=none", "format.activation_scale=static"),
        ("format.weight=none", "format.share_tensor_scale=fused"),
        ("format.weight=none format.activation=none kv_quant=fp4_e2m1", "format.activation_scale=static"),
    ],
)
def test_a_part_of_a_format_has_no_use_for_words_on_the_other_kinds_scales(kinds: str, word: str) -> None:
    part, plain = compose(["format=nvfp4", *kinds.split(), word]), compose(["format=nvfp4", *kinds.split()])
    assert part.config_hash == plain.config_hash
    assert not part.needs_calibration
    whole = [compose(["format=nvfp4", *words]) for words in ([], [word])]
    assert whole[0].config_hash != whole[1].config_hash
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        compose(["format=mxfp4", *kinds.split(), word])


def test_a_name_stands_for_one_runtime() -> None:
    with pytest.raises(ValueError, match="'quark' stands for another runtime"):
        register_runtime(Runtime("quark", "another"))


def made(folder: Path, *runtimes: str) -> Path:
    for number, runtime in enumerate(("", *runtimes)):
        more = {"format": "mxfp4"} if runtime else {"format": "none"}
        more |= {} if runtime in ("", "none") else {"runtime": runtime}
        put(folder / str(number), outcomes(-np.arange(1.0, 5.0) - number), **more)
    return folder


def test_a_table_of_one_runtime_names_it_and_of_several_has_a_column(tmp_path: Path) -> None:
    of_one = read_results([made(tmp_path / "one", "quark")])
    assert of_one.groups[0].title.endswith(", as Quark computes it")
    of_two = read_results([made(tmp_path / "two", "none", "quark", "vllm")])
    assert of_two.shown == ["runtime", "format"] or of_two.shown == ["format", "runtime"]
    assert [row.knobs["runtime"] for row in of_two.groups[0].rows if not row.is_baseline] == ["none", "quark", "vllm"]
    assert "computes" not in of_two.groups[0].title
    without = read_results([made(tmp_path / "without", "none")])
    assert "computes" not in without.groups[0].title and "runtime" not in without.shown
