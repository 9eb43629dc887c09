"""The model card: intervals that a metric can have, names as they stand, and what is said of a baseline."""

from __future__ import annotations

import re
from typing import Any

import pytest

import mxsweep
from mxsweep.runs.export_card import card


def manifest(**more: Any) -> dict[str, Any]:
    config = {
        "model": {"name": "tiny"},
        "format": {"name": "mxfp4"},
        "ptq": {"method": "rtn"},
        "rotation": {"method": "none"},
        "arithmetic": "exact",
    }
    return {
        "config": config,
        "target": "quark",
        "dtype": "bfloat16",
        "run_id": "r",
        "weights": {},
        "kept": [],
        "bytes": {"tensors": 1},
        "bits_per_quantized_weight": {"stored": 4.25, "predicted": 4.25},
        "metrics": {"story": {"acc": 1.0}},
        "examples": {"story": 8},
    } | more


FP4, FP6, FP8, NVFP4 = "fp4_e2m1-b32-e8m0", "fp6_e2m3-b32-e8m0", "fp8_e4m3-b32-e8m0", "fp4_e2m1-b16-e4m3-tensor"


def test_a_card_without_a_baseline_says_neither() -> None:
    said = card(manifest())
    assert "Against" not in said and "baseline" not in said


def test_an_accuracy_has_an_interval_that_is_one() -> None:
    said = card(manifest(metrics={"story": {"acc": 1.0, "acc_stderr": 0.0}}))
    assert "| story | acc | 1 | 0.6756 to 1 |" in said  # of 8 right answers out of 8


@pytest.mark.parametrize("hostile", ["![x](http://a.b/c)", "<img src=x>", "a|b", "*bold*", "`code`\n# heading"])
def test_names_are_shown_as_they_stand(hostile: str) -> None:
    config = manifest()["config"] | {"model": {"name": hostile}, "format": {"name": hostile}}
    config["calibration"] = {"path": hostile}
    layer = {"weight": FP4, "activation": FP4, "activation_as_served": hostile}
    change = {"task": hostile, "metric": hostile, "change": "+1 %", "p": 0.5, "n": 3}
    for baseline in ({"run_id": hostile, "differences": [change]}, {"missing": hostile}):
        said = card(
            manifest(
                config=config,
                run_id=hostile,
                weights={"l": layer},
                kept=[hostile],
                metrics={hostile: {hostile: 1.0}},
                verified={"loader": hostile},
                baseline=baseline,
            )
        )
        assert hostile not in said
        assert not re.search(r"(?<!\\)(\*bold|<img|!\[x\]\(|a\|b)|^# heading", said, re.MULTILINE)


def test_only_loaders_that_compute_it_are_named() -> None:
    """Whoever leaves out the rotation of inputs, or has no scheme for a format, is not said to load it."""
    layer = {"weight": FP4, "activation": FP4, "activation_as_served": FP4}
    plain, fp6, rotated = (
        card(manifest(target="compressed-tensors", weights={"l": layer | more}))
        for more in ({}, {"weight": FP6}, {"input_rotated_in_blocks_of": "32"})
    )
    assert "vllm serve" in plain and "from_pretrained" in plain
    assert "vllm serve" not in fp6 and "no scheme for MXFP6" in fp6 and "from_pretrained" in fp6
    assert "simulates the formats" not in rotated
    assert "Only vLLM" in rotated and "from_pretrained" not in rotated and "model.path" not in rotated


@pytest.mark.parametrize(
    "words",
    [
        ["format=mxfp4"],
        ["format=mxfp4", "block_size=16", "scale_rounding=even", "rounding=even", "format.scale_emax=false"],
        ["format=mxint8", "symmetric=false", "scale_bits=6", "rounding=floor"],
        ["format=mint4"],
        ["format=nvfp4", "format.four_over_six=true", "format.inf=saturate"],
        ["format=mxfp4", "runtime=transformers"],
    ],
    ids=" ".join,
)
def test_the_command_of_a_card_has_the_inputs_of_the_run(words: list[str]) -> None:
    """What is typed as the card says composes to the run's inputs, and to weights as they are stored."""
    run = mxsweep.compose(words)
    layer = {"weight": FP4, "activation": str(run.recipe.linear.activation), "activation_as_served": None}
    has = manifest(target="compressed-tensors", weights={"l": layer})
    has["config"]["arithmetic"] = run.as_dict()["arithmetic"]
    commands = re.findall(r"`python -m mxsweep model=hf model.path=THIS_FOLDER ([^`]+)`", card(has))
    assert len(commands) == 2 and commands[0] == "format=none"
    typed = mxsweep.compose(commands[1].split())
    assert typed.recipe.linear.weight is None
    assert typed.recipe.linear.activation == run.recipe.linear.activation
    assert typed.recipe.arithmetic == run.recipe.arithmetic


def test_a_card_says_in_what_the_run_computed_where_loaders_do_not() -> None:
    assert "measured in float32. Loaders compute in bfloat16" in card(manifest(dtype="float32"))
    assert "measured in" not in card(manifest())


def test_no_command_is_given_where_none_has_the_inputs_of_the_run() -> None:
    """Layers with inputs in several formats, and inputs under calibrated scales, have the command of weights alone."""
    layers = {name: {"weight": FP4, "activation": name, "activation_as_served": None} for name in (FP4, FP8)}
    several = manifest(target="compressed-tensors", weights=layers)
    static = manifest(target="compressed-tensors", weights={"l": layers[FP4]})
    static["config"]["format"]["activation_scale"] = "static"
    for said in map(card, (several, static)):
        assert (
            "format=none` evaluates these weights, with inputs as they are." in said and "format.activation" not in said
        )


@pytest.mark.parametrize(
    ("target", "kinds", "said", "unsaid"),
    [
        ("compressed-tensors", [(FP4, FP4)], ["On Hopper", "simulates"], ["MXFP8", "NVFP4"]),
        ("compressed-tensors", [(FP8, FP8), (NVFP4, NVFP4)], ["W8A16", "NVFP4 by NVFP4"], ["MXFP4 by"]),
        ("compressed-tensors", [(FP4, None)], ["Inputs stay as they are"], ["Hopper", "simulates"]),
        ("compressed-tensors", [(FP6, FP6)], ["simulates"], ["GPU. ", "left out"]),
        ("modelopt", [(NVFP4, NVFP4)], ["Blackwell"], ["simulates"]),
        ("modelopt", [(NVFP4, None)], ["Inputs stay as they are"], ["Blackwell"]),
        ("gguf", [(FP4, None)], ["Q8_0"], ["Inputs stay as they are"]),
    ],
)
def test_what_a_gpu_runs_is_of_the_formats(
    target: str, kinds: list[tuple[str, str | None]], said: list[str], unsaid: list[str]
) -> None:
    layers = {
        str(i): {"weight": weight, "activation": activation, "activation_as_served": activation}
        for i, (weight, activation) in enumerate(kinds)
    }
    text = card(manifest(target=target, weights=layers)).split("## What your GPU will run")[1].split("## Verified")[0]
    assert all(each in text for each in said) and not any(each in text for each in unsaid), text
