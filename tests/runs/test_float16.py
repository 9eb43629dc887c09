"""A block of zeros in float16: left at zeros by default, and where native arithmetic is asked for, explained."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mxsweep import compose, run
from mxsweep.files.checkpoints import model_folder


@pytest.mark.parametrize("arithmetic", ["auto", "native"])
def test_a_block_of_zeros(arithmetic: str, tmp_path: Path) -> None:
    embedded = model_folder("embedded")
    assert embedded is not None
    shutil.copytree(embedded, tmp_path / "m")
    weights = load_file(embedded / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, :32] = 0
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    words = ["model=hf", f"model.path={tmp_path / 'm'}", "model.device=cpu", "model.dtype=float16", "task=story"]
    record = run(compose([*words, "limit=4", "format=mxfp8_e4m3", f"arithmetic={arithmetic}"]), tmp_path / "run")
    assert record["status"] == "done"
    explained = [text for text in record["warnings"] if "arithmetic=exact" in text]
    if arithmetic == "auto":
        assert record["config"]["arithmetic"] == "exact"
        assert math.isfinite(record["metrics"]["story"]["perplexity"]) and not record["warnings"]
    else:
        assert math.isnan(record["metrics"]["story"]["perplexity"])
        (text,) = explained
        assert text == (
            "arithmetic: native arithmetic in float16 makes NaN of a block of zeros (as after a ReLU); "
            "arithmetic=exact or model.dtype=bfloat16 leaves it at zeros"
        )
