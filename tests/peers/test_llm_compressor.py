"""A model that llm-compressor quantizes from end to end, and the formats and scales that give its weights."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mxsweep
from mxsweep.numerics import MXFormat, quantize
from peers.rows import mx, nvfp4

VERSION = "0.14.0"
MODEL = Path(mxsweep.__file__).parent / "assets" / "tiny"
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # under one scale of the tensor
SCHEMES = {
    "MXFP4A16": mx("fp4_e2m1", "even"),
    "MXFP8A16": mx("fp8_e4m3", "even1"),
    "NVFP4A16": nvfp4("compressed_tensors"),
}


def why_not() -> str:
    try:
        installed = version("llmcompressor")
    except PackageNotFoundError:
        return (
            f"llmcompressor is not installed (pip install --no-deps llmcompressor=={VERSION}, beside the extra peers)"
        )
    return "" if installed == VERSION else f"llmcompressor {installed} is installed, {VERSION} is compared"


pytestmark = [pytest.mark.peers, pytest.mark.skipif(bool(why_not()), reason=why_not())]


def largest(before: dict[str, Tensor], name: str) -> Tensor:
    """Return the largest magnitude, float32, of the weights that share a scale with this one."""
    block, _, layer = name.rpartition(".")
    names = next((group for group in TOGETHER if layer in group), (layer,))
    return torch.stack([before[f"{block}.{one}.weight"].abs().amax().float() for one in names]).amax()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_whole_model_has_its_weights(scheme: str, dtype: torch.dtype) -> None:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
    fmt, compared, with_own_scales = MXFormat.parse(SCHEMES[scheme]), 0, 0
    for name, layer in model.named_modules():
        if getattr(layer, "quantization_scheme", None) is None:
            continue
        weight, arguments = before[f"{name}.weight"], layer.quantization_scheme.weights
        over = getattr(layer, "weight_global_scale", None)
        zero = getattr(layer, "weight_zero_point", torch.zeros(1))
        theirs = fake_quantize(weight, layer.weight_scale, zero, arguments, global_scale=over).to(dtype)
        assert torch.equal(
            theirs, quantize(weight, fmt, tensor_amax=largest(before, name) if fmt.tensor_scale else None)
        )
        compared += weight.numel()
        with_own_scales += int((theirs != quantize(weight, fmt)).sum())
    assert compared == 442_368
    assert (with_own_scales > compared / 4) is fmt.tensor_scale  # so much does it change that scales are shared
