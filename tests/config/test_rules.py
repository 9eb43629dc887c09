"""Tests of the knobs that say by whose rules weights and activations are quantized."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mxsweep import compose
from mxsweep.config import effects
from mxsweep.config.recorded_config import _flat, values_of
from mxsweep.formats import MXFormat
from mxsweep.terminal.errors import ConfigError

NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)


def test_a_rule_is_of_all_tensors_or_of_each() -> None:
    linear = compose(["format=nvfp4", "format.scale_rule=torchao", "format.scale_floor=none"]).recipe.linear
    expected = replace(NVFP4, scale_rule="torchao", scale_floor="none")
    assert (linear.weight, linear.activation) == (expected, expected)
    words = [
        "format=nvfp4", "format.scale_rule={weight:compressed_tensors,activation:vllm}",
        "format.rounding={weight:even,activation:ties_to_zero}", "kv_quant=fp4_e2m1",
    ]  # fmt: skip
    recipe = compose(words).recipe
    assert recipe.linear.weight == replace(NVFP4, scale_rule="compressed_tensors", rounding="even")
    assert recipe.linear.activation == replace(NVFP4, scale_rule="vllm", rounding="ties_to_zero") == recipe.key


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["format.four_over_six=true"], "fp4_e2m1-b16-e4m3-tensor-4over6"),
        (["format.inf=saturate"], "fp4_e2m1-b16-e4m3-tensor-inf_saturate"),
        (["rounding=ties_to_zero"], "fp4_e2m1-b16-e4m3-tensor-round_ties_to_zero"),
        (["scale=e5m3", "tensor_scale=true"], "fp4_e2m1-b16-e5m3-tensor"),
        (["scale=e8m0", "format.scale_emax=false"], "fp4_e2m1-b16-e8m0-noemax"),
        (["scale=e8m0", "scale_rounding=even7"], "fp4_e2m1-b16-e8m0-scale_even7"),
        (["scale=e8m0", "format.scale_rounding=rceil"], "fp4_e2m1-b16-e8m0-scale_rceil"),
    ],
)
def test_each_knob_is_a_field_of_the_format(words: list[str], text: str) -> None:
    assert str(compose(["format=nvfp4", *words]).recipe.linear.weight) == text


def test_rules_that_change_nothing_are_not_said_and_are_the_same_run() -> None:
    plain = compose(["format=nvfp4"])
    same = compose(["format=nvfp4", "format.scale_rule={weight:mxsweep,activation:mxsweep}", "format.inf=nan_block"])
    assert same.config_hash == plain.config_hash and same.as_dict() == plain.as_dict()
    assert set(plain.as_dict()["format"]) == {"name", "weight", "activation"}
    other = compose(["format=nvfp4", "format.scale_rule=quark"])
    assert other.config_hash != plain.config_hash
    assert json.loads(json.dumps(other.as_dict()))["format"]["scale_rule"] == "quark"
    # Of a power of two there is no rule to choose.
    assert compose(["format=mxfp4", "format.scale_rule=quark"]).config_hash == compose(["format=mxfp4"]).config_hash


def test_a_training_has_the_rules_of_its_formats() -> None:
    words = ["train=from_scratch", "format=nvfp4", "format.four_over_six={weight:true,activation:false}"]
    config = compose([*words, "matmuls.dgrad.grad={scale_rule: torchao}"])
    first, second = config.training_recipe.linear.fprop.first, config.training_recipe.linear.fprop.second
    assert (str(first), str(second)) == ("fp4_e2m1-b16-e4m3-tensor", "fp4_e2m1-b16-e4m3-tensor 4/6")
    assert str(config.training_recipe.linear.dgrad.first) == "fp4_e2m1-b16-e4m3-tensor-rule_torchao"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format.scale_rule=mine"], "format.scale_rule: 'mine' is not known; allowed: mxsweep, torchao, modelopt"),
        (
            ["format.scale_rule={weight:torchao}"],
            "format.scale_rule: {weight: torchao} is not allowed; allowed: one value, or {weight: X, activ",
        ),
        (["format.inf={weight:saturate,activation:zero}"], "format.inf.activation: 'zero' is not known; allowed: nan_"),
        (["format=mxfp4", "format.four_over_six=true"], "format.four_over_six: true does not go with scale 'e8m0'"),
        # under the knob of the tensors that have the scale, where the run's own formats go with the rule
        (
            ["format=nvfp4", "format.four_over_six=true", "kv_quant=fp4_e2m1", "kv_quant.scale=e8m0"],
            "kv_quant.scale: 'e8m0' does not go with format.four_over_six=true; allowed: e5m3, e4m3, fp32",
        ),
        (
            ["format=nvfp4", "format.four_over_six=true", "modules={*.down_proj: mxfp8_e4m3}"],
            "modules[*.down_proj].scale: 'e8m0' does not go with format.four_over_six=true; allowed: e5m3, ",
        ),
        (
            ["format=none", "format.four_over_six=true", "kv_quant=int8"],
            "format.four_over_six: true does not go with scale 'e8m0'",
        ),
        (["format=nvfp4", "kv_quant=mint4"], "kv_quant.scale: 'e4m3' does not go with element mint4; allowed: e8m0"),
        (
            ["format=mxfp4", "kv_quant=int8", "kv_quant.tensor_scale=true"],
            "kv_quant.tensor_scale: true does not go with scale 'e8m0'; allowed: scale e5m3, e4m3",
        ),
        (["scale_rounding=even23"], "scale_rounding: 'even23' is not known; allowed: floor, even, ceil, rceil, even0"),
        (
            ["format=mxfp4", "format.scale_emax=false", "scale_rounding=rceil"],
            "format.scale_emax: false does not go with scale_rounding rceil",
        ),
        (["ptq=gptq", "format.rounding={weight:stochastic,activation:even}"], "rounding: 'stochastic' does not go"),
    ],
)  # fmt: skip
def test_refusals(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose(words)
    assert str(refusal.value).startswith(message)


def test_a_search_of_scale_roundings_begins_with_floor_and_needs_calibration() -> None:
    fixed, searched = compose(["format=mxfp4"]), compose(["format=mxfp4", "scale_rounding=search"])
    assert searched.recipe == fixed.recipe and searched.scale_roundings == ("floor", "even", "ceil", "rceil")
    assert searched.needs_calibration and not fixed.needs_calibration
    assert searched.config_hash != fixed.config_hash
    record = searched.as_dict()
    assert record["scale_rounding"] == "search" and record["calibration"] is not None


@pytest.mark.parametrize("words", ["format=nvfp4", "format=mint4", "format=none"])
def test_where_no_scale_can_be_rounded_otherwise_nothing_is_searched(words: str) -> None:
    searched = compose([words, "scale_rounding=search"])
    assert not searched.searches and not searched.needs_calibration
    assert searched.config_hash == compose([words]).config_hash


@pytest.mark.parametrize(
    "words",
    [
        "format=mxfp4",
        "format=nvfp4",
        "format=mint4 kv_quant=mint4",
        "format=none",
        "format=none kv_quant=fp4_e2m1",
        "format=nvfp4 kv_quant=fp4_e2m1",
        "format=nvfp4 kv_quant=int4 kv_quant.scale=e8m0",
        "format=mxfp4 scale=e5m3",
        "format=nvfp4 ptq.budget=5",
        "format=nvfp4 modules={'*.down_proj':mxfp8_e4m3}",
        "format=nvfp4 modules={'*.down_proj':{scale:fp32}}",
        "format=none modules={'*.down_proj':{weight:mint4}}",
    ],
)
def test_a_knob_of_scale_roundings_has_an_effect_where_there_is_something_to_search(words: str) -> None:
    config = compose([*words.split(), "scale_rounding=search"])
    for values in (values_of(config), _flat(config.as_dict())):
        assert effects.rounds_scales(values) == bool(config.scale_roundings) == effects.searches(values)


def test_a_budget_of_other_formats_is_searched_after_it_is_spent() -> None:
    assert compose(["format=nvfp4", "ptq.budget=5", "scale_rounding=search"]).scale_roundings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("format.scale_rounding=even", r"format\.scale_rounding: 'even' does not go with scale_rounding=search.*auto"),
        ("format.scale_emax=false", r"format\.scale_emax: false does not go with scale_rounding=search.*true"),
        ("arithmetic=native", r"arithmetic: 'native'.*scale_even is none such; allowed: auto, exact"),
        ("backend=microxcaling", "backend: 'microxcaling' has no scale_rounding even"),
        ("runtime=torchao", "scale_rounding: 'search' does not go with runtime=torchao; allowed with it: rceil"),
        ("train=finetune", "scale_rounding: does not go with train=finetune.*allowed: floor"),
    ],
)
def test_what_goes_with_no_search_of_scale_roundings_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["format=mxfp4", "scale_rounding=search", "model.device=cpu", words])
