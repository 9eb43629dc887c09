"""Under a runtime's rules the inputs of a packed checkpoint's layers are held against what it stores of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mxsweep import compose
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.meta import meta_model
from mxsweep.runs.stored_products import refuse_plain_products
from mxsweep.terminal.errors import ConfigError


def packed(folder: Path, elements: dict[str, str]) -> str:
    """Return the path of the embedded model as if it were packed, its layers of these endings in these elements."""
    embedded = model_folder("embedded")
    assert embedded is not None
    shutil.copytree(embedded, folder)
    names = {f"model.layers.{layer}.{end}": one for layer in range(3) for end, one in elements.items()}
    layers = {name: {"weight": f"{element}-b32-e8m0", "activation": None} for name, element in names.items()}
    manifest = {"target": "quark", "weights": layers, "dtype": "float32", "run_id": "x"}
    (folder / "export.json").write_text(json.dumps(manifest))
    return str(folder)


def test_weights_that_are_stored_in_codes_need_no_format_of_their_own(tmp_path: Path) -> None:
    folder = packed(tmp_path / "packed", {"mlp.down_proj": "fp4_e2m1"})
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
    folder = packed(tmp_path / "packed", {"mlp.down_proj": "fp8_e4m3", "mlp.up_proj": "fp6_e2m3"})
    words = ["runtime=vllm", "format=mxfp6_e2m3", "format.weight=none", "model=hf", f"model.path={folder}"]
    with pytest.raises(ConfigError, match="format: weights in fp8_e4m3 by inputs in fp6_e2m3 is no product"):
        compose(words)
    compose([*words, "modules={'*.down_proj': none}"])
    inputs = "{weight: none, activation: fp8_e4m3, block_size: 32, scale: e8m0, tensor_scale: false}"
    with pytest.raises(ConfigError, match=r"modules\[\*.down_proj\]: weights in fp8_e4m3 by inputs in fp8_e4m3"):
        compose([*words, f"modules={{'*.down_proj': {inputs}}}"])
