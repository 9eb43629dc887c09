"""Weights that a runtime has as one matrix share the scale of a tensor: each becomes its part of that matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mixtures import build
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedModel

from mxsweep import LinearFormats, Recipe, compose, quantize_model
from mxsweep.calibrate.sequential import solve_weights
from mxsweep.calibrate.weights import solve_without_data, solver
from mxsweep.formats.recipe import Rotation
from mxsweep.forward.batches import unpadded_batches
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantized_weights import measure_weights
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat, decode, encode, quantize
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError

NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
OWN = Recipe(LinearFormats(NVFP4, NVFP4), arithmetic="exact")
FUSED = replace(OWN, shares_tensor_scales=True)
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj"]
GROUPS = {
    "llama": [
        [f"model.layers.0.self_attn.{name}" for name in ATTENTION],
        [f"model.layers.0.mlp.{name}" for name in ("gate_proj", "up_proj")],
    ],
    "phi3": [
        [f"model.layers.0.self_attn.qkv_proj.{name}" for name in ATTENTION],
        [f"model.layers.0.mlp.gate_up_proj.{name}" for name in ("gate_proj", "up_proj")],
    ],
}


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name not in ("llama", "phi3"):
        return build(name)
    config = LlamaConfig(**SIZES) if name == "llama" else Phi3Config(**SIZES)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():  # maxima that differ, so that a scale of its own is another
        for number, parameter in enumerate(model.parameters()):
            parameter[..., 0] *= 1 + number
    return model


def groups_of(name: str, model: PreTrainedModel, recipe: Recipe) -> list[list[str]]:
    if name in GROUPS:
        return GROUPS[name]
    names = [site.name for site in find_sites(model, recipe)]
    experts = sorted({n.rpartition(".")[0] for n in names if ".experts." in n})
    assert len(experts) > 2
    return [[f"{expert}.{role}_proj" for role in ("gate", "up")] for expert in experts]


def original(model: PreTrainedModel, recipe: Recipe) -> dict[str, Tensor]:
    return {site.name: site.operand.weight.clone() for site in find_sites(model, recipe)}


def become(model: PreTrainedModel, recipe: Recipe, **more: Any) -> dict[str, Tensor]:
    sites = find_sites(model, recipe)
    with quantize_model(model, recipe, **more):
        modules = {site.name: model.get_submodule(site.operand.module_name) for site in sites}
        return {name: module.matrix(name).clone() for name, module in modules.items()}


def parts(fused: Tensor, names: Sequence[str], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(names, fused.split([len(weights[name]) for name in names]), strict=True))


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
def test_each_weight_is_its_part_of_the_fused_matrix_quantized(name: str, rotated: bool) -> None:
    model = make(name)
    rotation = Rotation(("q", "k", "v", "gate", "up"), 16) if rotated else None
    recipe = replace(FUSED, rotation=rotation)
    weights, got = original(model, recipe), become(model, recipe)
    own = become(model, replace(OWN, rotation=rotation))
    in_groups, changed = set(), 0
    for names in groups_of(name, model, recipe):
        fused = torch.cat([weights[one] for one in names])
        expected = parts(quantize(hadamard(fused, 16) if rotated else fused, NVFP4, arithmetic="exact"), names, weights)
        for one in names:
            assert torch.equal(got[one], expected[one]), one
            changed += not torch.equal(got[one], own[one])
        in_groups |= set(names)
    assert changed
    alone = [one for one in got if one.endswith(("down_proj", "o_proj"))]
    assert alone and all(torch.equal(got[one], own[one]) for one in alone)


def test_statistics_are_under_the_shared_scale() -> None:
    model = make("llama")
    weights = original(model, FUSED)
    maximum = torch.stack([weights[name].abs().amax() for name in GROUPS["llama"][0]]).amax()
    reports = {layer.name: layer for layer in measure_weights(model, FUSED)}
    for name in GROUPS["llama"][0]:
        statistics = reports[name].statistics
        assert statistics is not None
        y = quantize(weights[name], NVFP4, arithmetic="exact", tensor_amax=maximum)
        assert statistics.elements_flushed == int(((y == 0) & (weights[name] != 0)).sum())


def test_weights_of_other_formats_share_nothing() -> None:
    plain = MXFormat("fp4_e2m1")
    model = make("llama")
    recipe = replace(FUSED, modules=(("*.k_proj", LinearFormats(plain)), ("*.up_proj", LinearFormats(plain))))
    maxima = shared_maxima(find_sites(model, recipe), recipe)
    assert [name.rpartition(".")[2] for name in maxima] == ["q_proj", "v_proj"]
    assert shared_maxima(find_sites(model, OWN), OWN) == {}


def test_searched_scales_are_those_of_the_fused_matrix() -> None:
    from mxsweep.solvers.clip import search_scales

    model = make("llama")
    weights = original(model, FUSED)
    solved = solve_without_data(model, FUSED, solver(compose(["ptq=clip", "ptq.clip_loss=weight"]).ptq))
    for names in GROUPS["llama"]:
        fused = torch.cat([weights[name] for name in names])
        expected = parts(search_scales(fused, NVFP4).quantize(fused, NVFP4), names, weights)
        assert all(torch.equal(decode(solved[name]), expected[name]) for name in names)


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
def test_gptq_has_the_shared_scale_and_its_weights_stay_on_the_grid(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = make(name)
    weights = original(model, FUSED)
    rng = np.random.default_rng(0)
    batches = unpadded_batches([rng.integers(1, 90, 24) for _ in range(8)], torch.device("cpu"))
    solve = solver(compose(["ptq=gptq", "ptq.clip_loss=weight"]).ptq)
    solved = solve_weights(model, FUSED, Prepared(), batches, solve).weights
    got = become(model, FUSED, prepared=Prepared(weights=solved))
    for names in groups_of(name, model, FUSED):
        fused = encode(torch.cat([weights[one] for one in names]), NVFP4)
        assert fused.tensor_scale is not None
        for one in names:
            shared = solved[one].tensor_scale
            assert shared is not None and float(shared) == float(fused.tensor_scale)
            assert torch.equal(got[one], decode(solved[one]))
    rounded = become(model, FUSED)
    assert any(not torch.equal(got[one], rounded[one]) for one in got)


def test_what_shares_is_part_of_a_runs_identity_only_where_it_has_an_effect() -> None:
    fused = ["format=nvfp4", "format.share_tensor_scale=fused"]
    assert compose(fused).config_hash != compose(fused[:1]).config_hash
    said = ["format=nvfp4", "format.share_tensor_scale=matrix"]
    assert compose(said).config_hash == compose(fused[:1]).config_hash
    assert "share_tensor_scale" not in compose(said).as_dict()["format"]
    assert compose(fused).as_dict()["format"]["share_tensor_scale"] == "fused"
    assert repr(OWN) == repr(replace(FUSED, shares_tensor_scales=False)) and "shares" not in repr(OWN)
    assert "shares_tensor_scales=True" in repr(FUSED)


@pytest.mark.parametrize("words", ["format=mxfp4", "format=mxfp4 ptq.budget=5", "train=from_scratch recipe=nvfp4"])
def test_what_has_no_scale_to_share_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"format\.share_tensor_scale: 'fused' is of weights with a per-tensor scale"):
        compose([*words.split(), "format.share_tensor_scale=fused"])
