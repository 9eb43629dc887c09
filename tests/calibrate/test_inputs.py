"""Per-tensor scales of inputs that are fixed: measured on calibration data, or given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mixtures import build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedModel

from mxsweep import LinearFormats, Recipe, compose, quantize_model, run
from mxsweep.calibrate.inputs import measure_input_maxima
from mxsweep.formats.recipe import STATIC, Rotation
from mxsweep.model.linear import MXLinear
from mxsweep.model.observer import TensorObserver
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import observed
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError

NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
DYNAMIC_RECIPE = Recipe(LinearFormats(NVFP4, NVFP4), arithmetic="exact")
RECIPE = replace(DYNAMIC_RECIPE, activation_scale=STATIC)
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
TOKENS = torch.arange(1, 49).view(4, 12)


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name not in ("llama", "phi3"):
        return build(name)
    return AutoModelForCausalLM.from_config((LlamaConfig if name == "llama" else Phi3Config)(**SIZES)).float().eval()


def reading(model: PreTrainedModel, tokens: Tensor = TOKENS, size: int = 4) -> Any:
    def read() -> None:
        for batch in tokens.split(size):
            model(input_ids=batch, use_cache=False)

    return read


def inputs_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return what each linear layer of the unquantized model reads, by hooks of torch's own."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].flatten(0, -2)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        reading(model)()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_a_maximum_is_the_largest_that_a_layer_reads_unquantized(name: str, rotated: bool) -> None:
    model = make(name)
    recipe = replace(RECIPE, rotation=Rotation(("q", "k", "v", "down"), 16) if rotated else None)
    maxima, inputs = measure_input_maxima(model, recipe, reading(model)), inputs_of(model)
    sites = find_sites(model, recipe)
    assert {site.input_name for site in sites} == maxima.keys() and len(maxima) == 8  # four inputs of two layers
    for site in sites:
        x = inputs[site.operand.module_name]
        expected = (x if site.rotation_block is None else hadamard(x, 16)).abs().amax()
        torch.testing.assert_close(maxima[site.input_name], expected, rtol=1e-5 if rotated else 0, atol=0)


def test_experts_of_a_module_have_one_maximum_of_what_any_of_them_reads() -> None:
    model = make("mixtral")
    maxima = measure_input_maxima(model, RECIPE, reading(model))
    down = [name for name in maxima if name.endswith("experts.*.down_proj")]
    assert len(down) == model.config.num_hidden_layers
    names = {site.name: site.input_name for site in find_sites(model, RECIPE) if ".experts." in site.name}
    assert len(set(names.values())) == 2 * model.config.num_hidden_layers
    prepared = Prepared(input_maxima=maxima)
    with torch.no_grad(), quantize_model(model, RECIPE, prepared=prepared):
        whole = model(input_ids=TOKENS, use_cache=False).logits
    assert whole.isfinite().all()


def test_maxima_do_not_depend_on_how_the_data_are_split_into_batches() -> None:
    model = make("llama")
    whole, single = (measure_input_maxima(model, RECIPE, reading(model, size=size)) for size in (4, 1))
    assert whole.keys() == single.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], single[name])


def quantized_inputs(model: PreTrainedModel, recipe: Recipe, maxima: dict[str, Tensor], tokens: Tensor) -> Tensor:
    with torch.no_grad(), quantize_model(model, recipe, prepared=Prepared(input_maxima=maxima)):
        seen: list[Tensor] = []
        layer = model.get_submodule("model.layers.0.self_attn.k_proj")
        assert isinstance(layer, MXLinear)
        layer.taps["model.layers.0.self_attn.k_proj"] = seen.append
        reading(model, tokens, 2)()
    return torch.cat(seen).flatten(0, -2)


def test_every_token_is_quantized_under_the_scale_of_the_layer() -> None:
    model = make("llama")
    maxima = measure_input_maxima(model, RECIPE, reading(model))
    x = inputs_of(model)["model.layers.0.self_attn.k_proj"]
    maximum = maxima["model.layers.0.self_attn.q_proj"]
    expected = quantize(x, NVFP4, arithmetic="exact", tensor_amax=maximum)
    assert torch.equal(quantized_inputs(model, RECIPE, maxima, TOKENS), expected)
    given = replace(RECIPE, activation_scale=2688.0)  # a scale of one: g = 2688 / 2688
    expected = quantize(x, replace(NVFP4, tensor_scale=False), arithmetic="exact")
    assert torch.equal(quantized_inputs(model, given, {}, TOKENS), expected)
    assert not torch.equal(quantized_inputs(model, DYNAMIC_RECIPE, {}, TOKENS), expected)


def test_what_is_larger_than_the_calibrated_range_saturates_and_is_counted() -> None:
    model = make("llama")
    low = replace(RECIPE, activation_scale=0.01)
    x = inputs_of(model)["model.layers.0.self_attn.k_proj"]
    assert float(x.abs().amax()) > 0.1
    y = quantized_inputs(model, low, {}, TOKENS)
    assert float(y.abs().amax()) == pytest.approx(0.01)
    observer = TensorObserver("exact")
    batch = observer.batch((4, 12), torch.arange(48))
    with torch.no_grad(), quantize_model(model, low) as report, observed(model, observer), batch:
        model(input_ids=TOKENS, use_cache=False)
    statistics = {one.module: one.statistics for one in observer.statistics(4, report.places)}
    saturated = statistics["model.layers.0.self_attn.q_proj"].elements_saturated
    assert saturated == int((x.abs() > 0.01).sum())


def test_a_maximum_that_is_missing_is_said() -> None:
    missing = r"prepared\.input_maxima: there is none of model\.layers\.0\.self_attn\.q_proj"
    with pytest.raises(ValueError, match=missing), quantize_model(make("llama"), RECIPE):
        pass


def test_a_run_calibrates_its_inputs_and_finds_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    few = ["limit=4", "model.device=cpu", "calibration.samples=4", "calibration.length=32", "format=nvfp4"]
    words = [*few, "format.activation_scale=static"]
    config = compose(words)
    assert config.needs_calibration and not compose(few).needs_calibration
    assert config.config_hash not in (compose(few).config_hash, compose([*words, "calibration.samples=5"]).config_hash)
    first, again, other = run(config), run(config), run(compose(few))
    assert first["error"] is None and first["metrics"] == again["metrics"] != other["metrics"]
    assert first["remedies"]["inputs"]["cached"] is False and again["remedies"]["inputs"]["cached"] is True
    assert first["config"]["format"]["activation_scale"] == "static"
    solved = run(compose([*words, "ptq=gptq"]))
    assert solved["error"] is None and {"inputs", "ptq"} <= solved["remedies"].keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("format=mxfp4 format.activation_scale=static", "'static' is of activations with a per-tensor scale"),
        ("format=mxfp4 format.activation_scale=3", "3 is of activations with a per-tensor scale"),
        ("format=nvfp4 format.activation_scale=0", "format.activation_scale: 0 is not allowed"),
        ("format=nvfp4 format.activation_scale=often", "allowed: dynamic, static, a number above 0"),
    ],
)
def test_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(words.split())
    assert message in str(refused.value)


def test_by_default_nothing_changes() -> None:
    said = compose(["format=nvfp4", "format.activation_scale=dynamic"])
    assert said.config_hash == compose(["format=nvfp4"]).config_hash
    assert "activation_scale" not in said.as_dict()["format"] and "activation_scale" not in repr(said.recipe)
