"""A budget that chooses one format for what a runtime has as one matrix."""

from __future__ import annotations

from itertools import product

import pytest
from helpers.mixtures import build

from mxsweep import LinearFormats, Recipe, compose
from mxsweep.calibrate.budget import choose_formats, fused_modules
from mxsweep.model.load import load_model
from mxsweep.numerics import MXFormat

CANDIDATES = {name: LinearFormats(MXFormat(name)) for name in ("fp4_e2m1", "fp6_e2m3", "fp8_e4m3")}
SIZES = {"q": (64, 64), "k": (32, 64), "down": (64, 96)}
COSTS = {
    "q": {"fp4_e2m1": 0.9, "fp6_e2m3": 0.2, "fp8_e4m3": 0.1},
    "k": {"fp4_e2m1": 0.1, "fp6_e2m3": 0.09, "fp8_e4m3": 0.08},
    "down": {"fp4_e2m1": 0.8, "fp6_e2m3": 0.3, "fp8_e4m3": 0.05},
}


@pytest.mark.parametrize("budget", [4.3, 5.0, 5.7, 6.5, 8.0])
def test_the_choice_is_the_best_of_all_that_agree_within_a_group(budget: float) -> None:
    choice = choose_formats(SIZES, CANDIDATES, COSTS, budget, fused=[["q", "k"]])
    assert list(choice.formats) == list(SIZES) and choice.formats["q"] == choice.formats["k"]
    weights = sum(rows * columns for rows, columns in SIZES.values())
    agreeing = [dict(zip(SIZES, (one, one, other), strict=True)) for one, other in product(CANDIDATES, repeat=2)]
    best = min(
        sum(COSTS[module][name] for module, name in formats.items())
        for formats in agreeing
        if sum(CANDIDATES[name].stored_bits(SIZES[module]) for module, name in formats.items()) <= budget * weights
    )
    assert choice.predicted_loss == pytest.approx(best)
    assert choice.bits_per_weight <= budget


def test_without_groups_each_module_is_chosen_for_by_itself() -> None:
    alone = choose_formats(SIZES, CANDIDATES, COSTS, 5.0)
    assert alone.formats["q"] != alone.formats["k"]


def test_groups_are_those_of_attention_and_of_the_mlp() -> None:
    recipe = Recipe(CANDIDATES["fp4_e2m1"], modules=(("*.0.self_attn.v_proj", LinearFormats()),))
    groups = fused_modules(load_model("embedded", device="cpu").model, recipe, CANDIDATES)
    ends = [[name.rpartition(".")[2] for name in group] for group in groups]
    assert ends[0] == ["q_proj", "k_proj"] and ends[2] == ["q_proj", "k_proj", "v_proj"]
    assert ends[1] == ["gate_proj", "up_proj"] and len(groups) == 6
    of_experts = fused_modules(build("mixtral"), Recipe(CANDIDATES["fp4_e2m1"]), CANDIDATES)
    experts = [group for group in of_experts if "experts" in group[0]]
    assert experts and all([one.rpartition(".")[2] for one in group] == ["gate_proj", "up_proj"] for group in experts)


def test_it_counts_with_a_budget_alone() -> None:
    budget = ["format=mxfp4", "ptq.budget=5"]
    assert compose([*budget, "ptq.fuse=true"]).config_hash != compose(budget).config_hash
    assert compose([*budget, "ptq.fuse=true"]).as_dict()["ptq"]["fuse"] is True
    assert compose([*budget, "ptq.fuse=false"]).as_dict() == compose(budget).as_dict()
    assert "fuse" not in compose(budget).identity["quantized"]["ptq"]
    assert compose(["format=mxfp4", "ptq.fuse=true"]).config_hash == compose(["format=mxfp4"]).config_hash
