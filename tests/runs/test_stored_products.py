"""Under a runtime's rules the inputs of a packed checkpoint's layers are held against what it stores of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mxsweep import compose
from mxsweep.config import run_parts
from mxsweep.config.stored_weights import stored_formats
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.meta import meta_model
from mxsweep.runs.stored_products import refuse_plain_products
from mxsweep.terminal.errors import ConfigError


def packed(folder: Path, formats: dict[str, str], target: str = "compressed-tensors") -> str:
    """Return the path of the embedded model as if it were packed, its layers of these endings in these formats."""
    embedded = model_folder("embedded")
    assert embedded is not None
    shutil.copytree(embedded, folder)
    names = {f"model.layers.{layer}.{end}": one for layer in range(3) for end, one in formats.items()}
    layers = {name: {"weight": fmt, "activation": None} for name, fmt in names.items()}
    manifest = {"target": target, "weights": layers, "dtype": "float32", "run_id": "x"}
    (folder / "export.json").write_text(json.dumps(manifest))
    return str(folder)


NVFP4 = "fp4_e2m1-b16-e4m3-tensor"
GIVEN = "nvfp4 format.activation_scale=2688"
INPUTS = {
    "mxfp4": "fp4_e2m1, block_size: 32, scale: e8m0, tensor_scale: false",
    "nvfp4": "fp4_e2m1, block_size: 16, scale: e4m3, tensor_scale: true",
}


@pytest.mark.parametrize("runtime", ["vllm", "llm_compressor"])
@pytest.mark.parametrize(
    ("stored", "inputs"),
    [
        (NVFP4, "mxfp4"),
        ("fp4_e2m1-b16-e8m0", "mxfp4"),
        ("fp4_e2m1-b16x16-e8m0", "mxfp4"),
        ("fp4_e2m1-b16-e4m3", "mxfp4"),
        ("fp4_e2m1-b32-e8m0-asym", "mxfp4"),
        ("fp4_e2m1-b32-e8m0", "nvfp4"),
        ("fp4_e2m1-b16-e5m3", "nvfp4"),
    ],
)
def test_blocks_and_scales_that_are_stored_are_held_too(tmp_path: Path, runtime: str, stored: str, inputs: str) -> None:
    words = ["model=hf", f"model.path={packed(tmp_path / 'packed', {'mlp.down_proj': stored})}", f"runtime={runtime}"]
    plain = [*words, "format=none"]
    assert compose(plain).recipe.is_baseline
    with pytest.raises(ConfigError, match=f"format: weights stored as {stored}.* is no product that runtime={runtime}"):
        compose([*words, f"format={inputs}", "format.weight=none"])
    of_module = f"modules={{'*.down_proj': {{weight: none, activation: {INPUTS[inputs]}}}}}"
    with pytest.raises(ConfigError, match=r"modules\[\*.down_proj\]: weights stored as"):
        compose([*plain, of_module])


@pytest.mark.parametrize(
    ("runtime", "target", "stored", "inputs"),
    [
        ("vllm", "compressed-tensors", "fp4_e2m1-b32-e8m0-scale_even-round_even", "mxfp4"),
        ("vllm", "quark", "fp4_e2m1-b32-e8m0-sb6", "w4a6"),  # scale_bits that chose scales, which are stored in 8
        ("llm_compressor", "compressed-tensors", "fp6_e2m3-b32-e8m0", "mxfp8_e4m3"),
        ("vllm", "quark", "fp4_e2m1-b128-e8m0", "mxfp4"),
        ("vllm", "quark", "fp4_e2m1-b8x64-e8m0", "mxfp4"),
        ("vllm", "quark", "fp4_e2m1-b0-e8m0", "mxfp4"),
        ("vllm", "compressed-tensors", f"{NVFP4}-rule_vllm", GIVEN),
        ("llm_compressor", "compressed-tensors", f"{NVFP4}-4over6", GIVEN),
        ("vllm", "compressed-tensors", "fp4_e2m1-b16-e8m0", GIVEN),  # which are stored as NVFP4
        ("modelopt", "modelopt", "fp4_e2m1-b32-e4m3-tensor", GIVEN),
        ("torchao", "compressed-tensors", "fp4_e2m1-b16-e4m3", "nvfp4 tensor_scale=false"),
        ("auto_round", "auto-round", "fp4_e2m1-b16-e5m3-floor_none", "fp4_e2m1 scale=e5m3 block_size=16"),
        ("microxcaling", "quark", "fp4_e2m1-b64-e8m0-scale_even", "mxfp8_e5m2"),
        ("vllm", "of-another-version", "fp4_e2m1-b32-e8m0", "mxfp4"),
    ],
)
def test_what_a_runtime_computes_of_stored_weights_is_taken(
    tmp_path: Path, runtime: str, target: str, stored: str, inputs: str
) -> None:
    folder = packed(tmp_path / "packed", {"mlp.down_proj": stored}, target)
    words = ["model=hf", f"model.path={folder}", "model.dtype=float32", "format.weight=none"]
    config = compose([*words, f"runtime={runtime}", *f"format={inputs}".split()])
    assert config.recipe.linear.weight is None and config.recipe.linear.activation is not None


def test_what_is_stored_is_read_once_of_however_many_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packed(tmp_path / "packed", {"mlp.down_proj": NVFP4, "mlp.up_proj": NVFP4})
    asked: list[str] = []
    monkeypatch.setattr(run_parts, "stored_formats", lambda path: asked.append(path) or stored_formats(path))
    inputs = f"{{weight: none, activation: {INPUTS['nvfp4']}}}"
    modules = f"modules={{'*.down_proj': {inputs}, '*.up_proj': {inputs}}}"
    words = ["model=hf", f"model.path={folder}", "runtime=vllm", "format=none", "format.activation_scale=2688"]
    assert len(compose([*words, modules]).recipe.modules) == 2
    assert asked == [folder]


def test_weights_of_no_format_of_the_librarys_are_refused(tmp_path: Path) -> None:
    folder = packed(tmp_path / "packed", {"mlp.down_proj": NVFP4})
    words = ["runtime=microxcaling", "format=mxfp4", "format.weight=none", "model=hf", f"model.path={folder}"]
    with pytest.raises(ConfigError, match="stored weights: fp4_e2m1-b16-e4m3-tensor is nothing that runtime=micro"):
        compose(words)


@pytest.mark.parametrize("text", ["fp4_e2m1-b32-e9m0", "fp9", None])
def test_a_stored_format_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    folder = packed(tmp_path / "packed", {"mlp.down_proj": text})
    words = ["runtime=vllm", "format=mxfp4", "format.weight=none", "model=hf", f"model.path={folder}"]
    with pytest.raises(ConfigError, match=r"export.json: weights\[model.layers.0.mlp.down_proj\]: .*allowed"):
        compose(words)


def test_weights_that_are_stored_in_codes_need_no_format_of_their_own(tmp_path: Path) -> None:
    folder = packed(tmp_path / "packed", {"mlp.down_proj": "fp4_e2m1-b32-e8m0"})
    words = ["runtime=vllm", "format=mxfp4", "format.weight=none"]
    with pytest.raises(ConfigError, match="weights in none by inputs in fp4_e2m1"):
        compose(words)
    config = compose([*words, "model=hf", f"model.path={folder}"])
    weight, activation = config.recipe.linear.weight, config.recipe.linear.activation
    assert weight is None and str(activation) == "fp4_e2m1-b32-e8m0-scale_even-round_even"
    model = meta_model(folder)
    assert model is not None
    with pytest.raises(
        ConfigError, match=r"modules\[model.layers.0.self_attn.q_proj\]: weights in none by inputs in fp4"
    ):
        refuse_plain_products(model, config)
    alone = [
        *words,
        "model=hf",
        f"model.path={folder}",
        "modules={'*_attn.*': none, '*.gate_proj': none, '*.up_proj': none}",
    ]
    refuse_plain_products(model, compose(alone))


def test_inputs_are_held_against_what_is_stored(tmp_path: Path) -> None:
    folder = packed(tmp_path / "packed", {"mlp.down_proj": "fp8_e4m3-b32-e8m0", "mlp.up_proj": "fp6_e2m3-b32-e8m0"})
    words = ["runtime=vllm", "format=mxfp6_e2m3", "format.weight=none", "model=hf", f"model.path={folder}"]
    with pytest.raises(ConfigError, match="format: weights in fp8_e4m3 by inputs in fp6_e2m3 is no product"):
        compose(words)
    compose([*words, "modules={'*.down_proj': none}"])
    inputs = "{weight: none, activation: fp8_e4m3, block_size: 32, scale: e8m0, tensor_scale: false}"
    with pytest.raises(ConfigError, match=r"modules\[\*.down_proj\]: weights in fp8_e4m3 by inputs in fp8_e4m3"):
        compose([*words, f"modules={{'*.down_proj': {inputs}}}"])
