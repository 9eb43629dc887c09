"""Words that change nothing: remedies are refused, the rest is said once, and nothing is said of what has an effect."""

from __future__ import annotations

import pytest

from mxsweep.config.overrides import prepare
from mxsweep.sweeps.plan import plan
from mxsweep.sweeps.without_effect import check_effects
from mxsweep.terminal.errors import ConfigError


def told(*words: str) -> list[str]:
    grids, sweeps = prepare(list(words))
    planned = plan(grids, sweeps or any("," in word for word in words))
    return check_effects(planned.runs, planned.settings.reuse)


@pytest.mark.parametrize(
    "words",
    [
        "kv_quant.rope=before",
        "kv_quant.smooth=0.5",
        "kv_quant.first=4 format=mxfp4",
        "ptq.damping=0.5 ptq=clip",
        "rotation.judge=ptq",
        "rotation.judge=ptq rotation=search ptq=rtn,clip",
        "rotation.judge=ptq rotation=search ptq=gptq format=none kv_quant=fp4_e2m1",
        "rotation=search format=none",
        "rotation=search format=none kv_quant=rescue4",
        "rotation=search kv_quant=rescue4 rotation.matmuls=[qk]",
        "rotation.positions=last_words rotation=none,search format=none kv_quant=rescue4",
        "rotation=hadamard rotation.matmuls=[qk]",
        "rotation=wush format=none kv_quant=rescue4",
        "rotation=wush rotation.matmuls=[qk] kv_quant=rescue4",
        "ptq=gptq format=none kv_quant=fp4_e2m1",
        "calibration=text calibration.path=/nowhere",
        "ptq.damping=0.1,0.5 ptq=rtn,clip",
        "scale_rounding=search format=nvfp4,mint4",
        "scale_rounding=search format=none kv_quant=fp4_e2m1 scale=fp32",
        # the same in either order, though the two come to one run
        "scale_rounding=search,floor format=nvfp4",
        "scale_rounding=floor,search format=nvfp4",
        "rotation=none,wush format=none kv_quant=rescue4",
        "rotation=wush,none format=none kv_quant=rescue4",
        "ptq=rtn,gptq format=none kv_quant=fp4_e2m1",
        "ptq=gptq,rtn format=none kv_quant=fp4_e2m1",
    ],
)
def test_a_remedy_that_does_nothing_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"has no effect in (this run|any of these runs).*leave it out"):
        told(*words.split())


def test_a_refusal_says_where_the_knob_has_an_effect() -> None:
    with pytest.raises(ConfigError, match="only where rotation is not none, with something of these products"):
        told("rotation.matmuls=[q]")
    with pytest.raises(ConfigError, match="only where the weight method has it"):
        told("ptq.damping=0.5")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("scale=e5m3 scale_bits=6", ["scale_bits=6: has no effect in this run, only where scales are e8m0"]),
        (
            "format=nvfp4 scale_rounding=even",
            [
                "scale_rounding=even: has no effect in this run, only where scales are powers of two, whose "
                "rounding the element leaves open"
            ],
        ),
        (
            "reuse=proven scale_bits=6,8 ptq=gptq",
            [
                "reuse=proven: has no effect in any of these runs, only where runs differ in scale_bits or "
                "scale_rounding alone, with e8m0 scales and nothing worked out beforehand"
            ],
        ),
        (
            "format=none block_size=16,32",
            [
                f"block_size={n}: has no effect in any of these runs, only where something is quantized"
                for n in (16, 32)
            ],
        ),
        (
            "kv_quant=rescue4 kv_quant.key=none kv_quant.value=none",
            ["kv_quant=rescue4: has no effect in this run, only where keys or values are quantized"],
        ),
        (
            "format=mxfp4 format.weight=none format.activation=none",
            ["format=mxfp4: has no effect in this run, only where something is quantized"],
        ),
        ("format=none block_size=16", ["block_size=16: has no effect in this run, only where something is quantized"]),
    ],
)
def test_another_knob_is_said(words: str, said: list[str]) -> None:
    assert told(*words.split()) == said


@pytest.mark.parametrize(
    "words",
    [
        "kv_quant.smooth=0.5 kv_quant=none,fp4_e2m1",
        "kv_quant.smooth=0 kv_quant.first=0 ptq=rtn rotation=none format=none",  # what does nothing was asked to
        "format=none kv_quant=none",
        "format=null kv_quant=null",
        "kv_quant=rescue4 kv_quant.key=none",
        "kv_quant=rescue4 kv_quant.key=none,int4 kv_quant.value=none",
        "format=nvfp4 format.weight=none format.activation=none kv_quant=int8",  # whose scale is nvfp4's
        "ptq=gptq format=none,mxfp4 ptq.damping=0.05",
        "scale_bits=6,8 scale=e5m3,e8m0",
        "reuse=proven scale_bits=6,8",
        "reuse=never scale_bits=6,8 ptq=gptq",
        "scale_rounding=floor,search format=nvfp4,mxfp4",
        "scale_rounding=search format=nvfp4 ptq.budget=5",
        "ptq.damping=0.5 ptq=rtn,gptq",
        "rotation=search format=none kv_quant=rescue4,fp4_e2m1",
        "rotation=hadamard kv_quant=rescue4 rotation.matmuls=[qk] format=none",
        "rotation=wush format=none,mxfp4 kv_quant=rescue4 calibration.samples=4",
        "experiment=attribution format=nvfp4 format.activation_scale=static calibration=stories",
        "experiment=ex1",
        "block_size=16 scale_bits=6 seed=3 limit=5 noise=2",
        "ptq=gptq calibration=text calibration.path=/nowhere",  # refused for what it is
    ],
)
def test_nothing_is_said_of_what_has_an_effect_in_a_run(words: str) -> None:
    assert told(*words.split()) == []
