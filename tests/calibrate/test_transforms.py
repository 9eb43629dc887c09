"""Inputs in a basis of their own: what it is worked out from, what it leaves as it was, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.input_formats import input_formats
from helpers.mixtures import build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedModel

from mxsweep import LinearFormats, Recipe, compose, load_model, quantize_model
from mxsweep.calibrate.prepare import _ClippedWeights
from mxsweep.calibrate.transforms import ROWS, Moments, calibrate_transforms, measure_transforms
from mxsweep.calibrate.workbench import Workbench
from mxsweep.formats.recipe import LINEAR_MATMULS, WUSH, Rotation
from mxsweep.model.footprint import footprint
from mxsweep.model.linear import MXLinear
from mxsweep.model.prepared import Prepared
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat, decode
from mxsweep.numerics.bases import BlockTransform
from mxsweep.numerics.wush import wush
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import silent

FP4, WIDE = MXFormat("fp4_e2m1", 16), MXFormat("int16", 16)
RECIPE = Recipe(LinearFormats(FP4, FP4), rotation=Rotation(LINEAR_MATMULS, 16, WUSH), arithmetic="exact")
# Quantization is a rounding error: the matrices are at work all the same.
WIDE_RECIPE = replace(RECIPE, linear=LinearFormats(WIDE, WIDE))
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
TOKENS = torch.arange(1, 49).view(4, 12)
LAYER = "model.layers.0.self_attn"


def make(name: str = "llama", dtype: torch.dtype = torch.float32, **more: Any) -> PreTrainedModel:
    """Return a tiny model; down reads 88 channels, which blocks of 16 do not divide."""
    torch.manual_seed(0)
    if name not in ("llama", "phi3"):
        return build(name)
    config = (LlamaConfig if name == "llama" else Phi3Config)(**SIZES, **more)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype)
    return model.eval()


def reading(model: PreTrainedModel, size: int = 4) -> Callable[[], None]:
    def read() -> None:
        for batch in TOKENS.split(size):
            model(input_ids=batch, use_cache=False)

    return read


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    answer: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return answer


def transforms_of(model: PreTrainedModel, recipe: Recipe = RECIPE) -> dict[str, BlockTransform]:
    return measure_transforms(model, recipe, reading(model))


def logits_under(model: PreTrainedModel, recipe: Recipe, transforms: dict[str, BlockTransform]) -> Tensor:
    with quantize_model(model, recipe, prepared=Prepared(input_transforms=transforms)):
        return logits(model)


def by_blocks(moment: Tensor, start: int, stop: int) -> Tensor:
    return moment[start:stop, start:stop][None]


def test_matrices_are_of_what_is_read_and_of_the_weights_that_read_it() -> None:
    model = make()
    found = transforms_of(model)
    assert len(found) == 2 * 4  # q, k and v read one input, gate and up another
    seen: dict[str, Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten(0, -2)))
        for name, layer in layers.items()
    ]
    logits(model)
    for hook in hooks:
        hook.remove()
    for reader, others, part in (("q_proj", ("k_proj", "v_proj"), "self_attn"), ("down_proj", (), "mlp")):
        names = [f"model.layers.1.{part}.{name}" for name in (reader, *others)]
        x = seen[names[0]].double()
        w = torch.cat([layers[name].weight.detach() for name in names]).double()
        inputs, weights = x.T @ x / len(x), w.T @ w / len(w)
        transform = found[f"{names[0]} rotated"]
        expected = torch.cat([wush(by_blocks(inputs, at, at + 16), by_blocks(weights, at, at + 16)) for at in (0, 16)])
        torch.testing.assert_close(transform.whole[:2], expected.float(), rtol=1e-4, atol=1e-4)
        if reader == "down_proj":
            assert transform.rest is not None and transform.whole.shape == (5, 16, 16)
            rest = wush(by_blocks(inputs, 80, 88), by_blocks(weights, 80, 88))[0]
            torch.testing.assert_close(transform.rest, rest.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["llama", "phi3", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen2_moe", "phimoe"]
)
def test_nothing_changes_without_quantization(name: str) -> None:
    model = make(name)
    plain, transforms = logits(model), transforms_of(model, WIDE_RECIPE)
    quantized = logits_under(model, WIDE_RECIPE, transforms)
    torch.testing.assert_close(quantized, plain, rtol=0, atol=2e-3 * float(plain.abs().max()))
    assert torch.equal(logits(model), plain)  # the model is as it was
    unrotated = replace(RECIPE, rotation=None)  # in another basis, in which rounding comes to something else
    assert not torch.equal(logits_under(model, RECIPE, transforms), logits_under(model, unrotated, {}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_16_bits_lose_no_more_than_their_own_rounding(dtype: torch.dtype) -> None:
    wide, model = make(), make(dtype=dtype)
    wide.load_state_dict(model.state_dict())
    exact, plain = logits(wide), logits(model).float()
    transformed = logits_under(model, WIDE_RECIPE, transforms_of(model)).float()
    rounding = float((plain - exact).square().mean().sqrt())
    assert 0 < float((transformed - exact).square().mean().sqrt()) < 3 * rounding


def test_channels_that_are_always_zero_leave_the_product_what_it_is() -> None:
    model = make()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[:16] = 0  # a whole block of what q, k and v read
            layer.input_layernorm.weight[20] = 0
            layer.mlp.up_proj.weight[80:] = 0  # the shorter last block of what down reads
            layer.mlp.down_proj.weight[:, :3] = 0  # and channels that nothing reads
            layer.self_attn.o_proj.weight[:] = 0
    plain = logits(model)
    quantized = logits_under(model, WIDE_RECIPE, transforms_of(model))
    torch.testing.assert_close(quantized, plain, rtol=0, atol=2e-3 * float(plain.abs().max()))


def test_tied_weights_and_a_layer_with_two_names_are_each_transformed_once() -> None:
    model = make(tie_word_embeddings=True)
    recipe = replace(WIDE_RECIPE, modules=(("lm_head", LinearFormats(WIDE, WIDE)),))
    model.model.layers[1].self_attn.q_proj = model.model.layers[0].self_attn.q_proj
    plain, transforms = logits(model), transforms_of(model, recipe)
    assert not any("lm_head" in name for name in transforms)
    quantized = logits_under(model, recipe, transforms)
    torch.testing.assert_close(quantized, plain, rtol=0, atol=2e-3 * float(plain.abs().max()))


def test_what_reads_one_input_shares_its_matrices_and_what_they_make_of_it() -> None:
    model = make()
    transforms = transforms_of(model)
    with quantize_model(model, RECIPE, prepared=Prepared(input_transforms=transforms)):
        layers = {name: module for name, module in model.named_modules() if isinstance(module, MXLinear)}
        bases = {name: input_formats(layer)[name].basis for name, layer in layers.items()}
        assert bases[f"{LAYER}.q_proj"] is bases[f"{LAYER}.k_proj"] is bases[f"{LAYER}.v_proj"]
        assert bases[f"{LAYER}.q_proj"] is not bases[f"{LAYER}.o_proj"]
        seen: dict[str, Tensor] = {}
        for name in ("q_proj", "v_proj"):
            layers[f"{LAYER}.{name}"].taps[f"{LAYER}.{name}"] = lambda x, name=name: seen.__setitem__(name, x)
        logits(model)
        assert seen["q_proj"] is seen["v_proj"]


def test_experts_of_a_module_share_the_matrices_of_each_step() -> None:
    model = make("mixtral")
    transforms = transforms_of(model)
    of_experts = [name for name in transforms if ".experts." in name]
    assert len(of_experts) == 2 * model.config.num_hidden_layers
    sites = [site for site in find_sites(model, RECIPE, transforms) if ".experts." in site.name]
    assert len({id(site.transform) for site in sites}) == len(of_experts) and len(sites) > 2 * len(of_experts)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_matrices_are_inverted_once_however_many_weights_read_an_input(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(name)
    transforms, inverse, inverted = transforms_of(model), torch.linalg.inv, []
    monkeypatch.setattr(torch.linalg, "inv", lambda matrices: inverted.append(matrices) or inverse(matrices))
    logits_under(model, RECIPE, transforms)
    assert len(inverted) == sum(2 if one.rest is not None else 1 for one in transforms.values())


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
def test_matrices_are_in_the_bytes_of_the_parameters_and_in_no_bits_a_weight(name: str) -> None:
    model = make(name)
    transforms = transforms_of(model)
    elements = sum(one.whole.numel() + (one.rest.numel() if one.rest is not None else 0) for one in transforms.values())
    with quantize_model(model, RECIPE, prepared=Prepared(input_transforms=transforms)) as report:
        pass
    rotated = replace(RECIPE, rotation=Rotation(LINEAR_MATMULS, 16))
    with quantize_model(model, rotated) as plain:
        pass
    assert report.parameter_bytes == plain.parameter_bytes + 4 * elements
    assert (report.bits_per_weight, report.bits_per_parameter) == (plain.bits_per_weight, plain.bits_per_parameter)
    assert f"{4 * elements / 1e6:,.1f} MB of them matrices of inputs)" in " ".join(report.lines())
    assert "matrices of inputs" not in " ".join(plain.lines())
    for recipe, found in ((RECIPE, report), (rotated, plain)):
        assert footprint(model, recipe).stored_bytes == found.parameter_bytes
    at_most = [footprint(model, recipe, budget=5.0).stored_bytes for recipe in (RECIPE, rotated)]
    assert at_most[0] == at_most[1] + 4 * elements


def test_a_search_judges_each_basis_by_weights_of_its_own() -> None:
    model = make()
    clipped = _ClippedWeights(model, Prepared(input_transforms=transforms_of(model)))
    rotations = (None, Rotation(LINEAR_MATMULS, 16), RECIPE.rotation)
    layer = f"{LAYER}.k_proj"
    found = [clipped.under(replace(RECIPE, rotation=rotation))[layer] for rotation in rotations]
    plain, rotated, own = (decode(one) for one in found)
    assert not (torch.equal(plain, own) or torch.equal(rotated, own) or torch.equal(plain, rotated))
    for rotation, known in zip((Rotation(("q",), 16), Rotation(("q", "k"), 16)), found, strict=False):
        assert clipped.under(replace(RECIPE, rotation=rotation))[layer] is known


def test_only_products_that_the_rotation_names_have_matrices() -> None:
    model = make()
    recipe = replace(RECIPE, rotation=Rotation(("k", "down"), 16, WUSH))
    transforms = transforms_of(model, recipe)
    assert {name.rpartition(".")[2] for name in transforms} == {"q_proj rotated", "down_proj rotated"}  # k reads q's
    with quantize_model(model, recipe, prepared=Prepared(input_transforms=transforms)) as report:
        layer = model.get_submodule(f"{LAYER}.k_proj")
        assert isinstance(layer, MXLinear) and input_formats(layer)[f"{LAYER}.k_proj"].basis is not None
        other = model.get_submodule(f"{LAYER}.q_proj")
        assert isinstance(other, MXLinear) and input_formats(other)[f"{LAYER}.q_proj"].basis is None
    assert report.as_dict()["products_rotated"] == 4


def test_nothing_is_worked_out_where_all_that_is_named_stays_as_it_is() -> None:
    words = [
        "format=mxfp4",
        "model.device=cpu",
        "rotation=wush",
        "rotation.matmuls=[down]",
        "modules={'*.down_proj': none}",
    ]
    config = compose([*words, "limit=2", "calibration.samples=1"])
    bench = Workbench(load_model("embedded", device="cpu").model, config, silent)
    calibrate_transforms(bench)
    assert not bench.result.prepared.input_transforms and not bench.result.account


def test_moments_do_not_depend_on_how_rows_come() -> None:
    rows = torch.randn(ROWS + 100, 40, generator=torch.Generator().manual_seed(0))
    whole, parts = Moments(40, 16), Moments(40, 16)
    whole.add(rows)
    for part in rows.split(1000):
        parts.add(part.view(1, *part.shape))
    for one, other in zip(whole.mean(), parts.mean(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    expected = rows.double().T @ rows.double() / len(rows)
    torch.testing.assert_close(whole.mean()[0][1], expected[16:32, 16:32], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.mean()[1][0], expected[32:, 32:], rtol=1e-12, atol=1e-12)


def test_what_cannot_be_worked_out_is_refused() -> None:
    model = make()
    unread = r"rotation: 'wush' cannot be worked out: the input of model.layers.0.self_attn.q_proj is read by no calibr"
    with pytest.raises(ConfigError, match=unread + r".*; allowed: none, hadamard, modules=\{model.*q_proj: none\}, or"):
        measure_transforms(model, RECIPE, lambda: None)
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight[3, 3] = torch.inf
    with pytest.raises(ConfigError, match="q_proj is multiplied by weights that are not finite; allowed: none, "):
        transforms_of(model)
    model = make()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[0] = torch.nan
    with pytest.raises(ConfigError, match="q_proj is not finite on the calibration tokens; allowed: none, hadamard"):
        transforms_of(model)


def test_sizes_that_float32_does_not_hold_are_refused() -> None:
    model = make()
    with torch.no_grad():
        model.model.layers[0].self_attn.v_proj.weight *= 1e38
        model.model.layers[0].input_layernorm.weight *= 1e-42
    with pytest.raises(ConfigError, match="q_proj and its weights are of sizes so far apart that float32 "):
        transforms_of(model)


def test_a_model_is_not_quantized_without_the_matrices() -> None:
    model = make()
    plain = logits(model)
    with (
        pytest.raises(ValueError, match=r"input_transforms: there is none of model.layers.0.self_attn.q_proj rotated"),
        quantize_model(model, RECIPE),
    ):
        pass
    assert torch.equal(logits(model), plain)
