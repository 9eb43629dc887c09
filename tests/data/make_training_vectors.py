"""Records what other libraries compute for a linear layer and its gradients: training_vectors.safetensors.

Run it with microxcaling, a clone of pytorch/ao and its folder test/prototype/moe_training/nvfp4_training on PYTHONPATH:
`python tests/data/make_training_vectors.py`. The metadata of the file lists the cases.

Inputs are multiples of 1/16 below 16, and so is what formats make of them down to a smallest step, so that float32 sums
of their products are exact: in whichever order a machine adds, the answer is the same. Of such inputs elements of eight
bits keep so much that blocks and scales hardly show, so there are others for them: one of the three tensors spans many
powers of two, and the others are so sparse that no sum has more than two terms, which is rounded once in any order.
What NVFP4 makes of a tensor is recorded itself, and not what products make of that.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mx.linear import Linear
from mx.specs import MxSpecs
from nvfp4_reference import global_encode_scale, nvfp4_reference_quantize, reference_rht
from safetensors.torch import save_file
from torch import Tensor
from torchao.prototype.moe_training.mxfp8_linear import mx_mm
from torchao.prototype.mx_formats.config import (
    MXFP8Dim0CastKernelChoice,
    MXFP8Dim1CastKernelChoice,
    ScaleCalculationMode,
)
from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, unpack_uint4
from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

OUTPUT = Path(__file__).parent / "training_vectors.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INPUTS, OUTPUTS = 48, 32
SHAPES = {"sequences": (2, 32, INPUTS), "tokens": (32, INPUTS)}
# By microxcaling's names: those of fprop's weight and input, of dgrad's weight and wgrad's input, wgrad's gradient and
# dgrad's gradient.
MICROXCALING = (
    {"w_elem_format": "fp6_e3m2", "a_elem_format": "fp8_e4m3", "w_elem_format_bp": "fp4_e2m1",
     "a_elem_format_bp": "fp8_e5m2", "a_elem_format_bp_ex": "fp6_e2m3", "a_elem_format_bp_os": "int8",
     "block_size": 16, "round": "nearest"},
    {"w_elem_format": "fp4_e2m1", "a_elem_format": "fp4_e2m1", "w_elem_format_bp": "fp4_e2m1",
     "a_elem_format_bp": "fp4_e2m1", "a_elem_format_bp_ex": "fp4_e2m1", "a_elem_format_bp_os": "fp4_e2m1",
     "block_size": 32, "round": "even"},
)  # fmt: skip
TORCHAO = ("floor", "fp8_e4m3")  # with wgrad_with_hp
WIDE = {
    "float32": (("rceil", "fp8_e4m3"), ("even", "fp8_e5m2")),
    "bfloat16": (("rceil", "fp8_e4m3"), ("floor", "fp8_e4m3")),
}
POWERS = 40  # that a wide tensor spans; fp8_e5m2 spans 32
ELEMENTS = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
SIGNS = (1, -1, -1, 1, 1, 1, -1, 1, -1, 1, -1, -1, -1, 1, 1, 1)
LARGEST = 10.5  # 448 * 6 / 256: the scale of a tensor is a power of two


def on_grid(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    heavy = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()
    return ((heavy * 16).round() / 16).clamp(-LARGEST, LARGEST)


def wide_and_sparse(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A tensor that spans many powers of two, and one with two elements in each row, and at most two in each column."""
    drawn = torch.randn(2, rows, columns, generator=generator)
    powers = torch.rand(rows, columns, generator=generator) * -POWERS
    apart = (torch.arange(columns) - torch.arange(rows).unsqueeze(1)) % columns
    wide = (drawn[0] * powers.exp2()).bfloat16().float()  # so that some are halfway between two elements
    return wide, drawn[1] * ((apart == 0) | (apart == 5))


def answers(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, g: Tensor) -> dict[str, Tensor]:
    y.backward(g)
    found = {"y": y.detach(), "dx": x.grad, "dw": weight.grad}
    return found if bias is None else found | {"db": bias.grad}


def of_microxcaling(options: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor, g: Tensor) -> dict[str, Tensor]:
    specs = MxSpecs()
    fixed = {"scale_bits": 8, "shared_exp_method": "max", "custom_cuda": False, "bfloat": 0, "fp": 0}
    rounding = {name: options["round"] for name in specs if name.startswith("round")}
    for name, value in (options | fixed | rounding).items():
        specs[name] = value
    layer = Linear(INPUTS, OUTPUTS, mx_specs=specs).to(x.dtype)
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    x = x.clone().requires_grad_()
    return answers(layer(x), x, layer.weight, layer.bias, g)


def of_torchao(mode: str, element: str, exact_wgrad: bool, x: Tensor, weight: Tensor, g: Tensor) -> dict[str, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = mx_mm.apply(
        x, weight, *[ELEMENTS[element]] * 3, 16, KernelPreference.EMULATED, MXFP8Dim0CastKernelChoice.TRITON,
        MXFP8Dim1CastKernelChoice.TORCH, ScaleCalculationMode(mode), exact_wgrad,
    )  # fmt: skip
    return answers(y, x, weight, None, g)


def nvfp4(x: Tensor, block: str) -> Tensor:
    """What the tensor is read back as, in its dtype."""
    amax = x.float().abs().max()
    answer, g = nvfp4_reference_quantize(x, amax, block=block), global_encode_scale(amax)
    scales = (answer.block_scale.float() / g).repeat_interleave(answer.block_rows, 0).repeat_interleave(16, 1)
    return (f4_unpacked_to_f32(unpack_uint4(answer.codes)) * scales).to(x.dtype)


def of_nvfp4(x: Tensor, weight: Tensor, g: Tensor) -> dict[str, Tensor]:
    def along_tokens(t: Tensor) -> Tensor:  # the transform's first answer is the tensor's largest: a power of two again
        t = t.clone()
        t[:16, 0] = torch.tensor(SIGNS) * LARGEST / 2
        return t

    x, weight, g = along_tokens(x), weight.clone(), along_tokens(g)
    x[0, 1] = weight[0, 1] = g[0, 1] = LARGEST
    rotated = {name: reference_rht(t, SIGNS) for name, t in (("input", x), ("grad", g))}
    assert all(float(t.float().abs().max()) == 2 * LARGEST for t in rotated.values())
    found = {"x": x, "weight": weight, "g": g}
    found |= {"fprop.input": nvfp4(x, "1x16"), "fprop.weight": nvfp4(weight, "16x16"), "dgrad.grad": nvfp4(g, "1x16")}
    found["dgrad.weight"] = nvfp4(weight.T.contiguous(), "16x16").T.contiguous()
    return found | {f"wgrad.{name}": nvfp4(t, "1x16").T.contiguous() for name, t in rotated.items()}


def record_wide(tensors: dict[str, Tensor], record: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(20261130)
    shapes = {"x": (32, INPUTS), "weight": (OUTPUTS, INPUTS), "g": (32, OUTPUTS)}
    drawn = {name: wide_and_sparse(*shape, generator) for name, shape in shapes.items()}
    for dtype_name, dtype in DTYPES.items():
        of_dtype = {}
        for name, pair in drawn.items():
            for kind, tensor in zip(("wide", "sparse"), pair, strict=True):
                of_dtype[f"{name}.{kind}.{dtype_name}"] = tensor.to(dtype)
        tensors |= of_dtype
        for wide in shapes:
            inputs = {name: f"{name}.{'wide' if name == wide else 'sparse'}.{dtype_name}" for name in shapes}
            read = [of_dtype[inputs[name]] for name in ("x", "weight", "g")]
            for mode, element in WIDE[dtype_name]:
                named = {"wide": wide, "scale_rounding": mode, "element": element, "exact_wgrad": False}
                record("torchao", named, inputs, of_torchao(mode, element, False, *read))


def main() -> None:
    generator = torch.Generator().manual_seed(20261128)
    tensors: dict[str, Tensor] = {}
    cases = []

    def record(kind: str, options: dict[str, Any], inputs: dict[str, str], found: dict[str, Tensor]) -> None:
        outputs = {name: f"c{len(cases)}.{name}" for name in found}
        tensors.update({outputs[name]: tensor.contiguous() for name, tensor in found.items()})
        cases.append({"kind": kind, "options": options, "inputs": inputs, "outputs": outputs})

    for dtype_name, dtype in DTYPES.items():
        weight, bias = (on_grid(shape, generator).to(dtype) for shape in ((OUTPUTS, INPUTS), (OUTPUTS,)))
        tensors |= {f"weight.{dtype_name}": weight, f"bias.{dtype_name}": bias}
        for shape_name, shape in SHAPES.items():
            x, g = on_grid(shape, generator).to(dtype), on_grid((*shape[:-1], OUTPUTS), generator).to(dtype)
            tensors |= {f"x.{shape_name}.{dtype_name}": x, f"g.{shape_name}.{dtype_name}": g}
            inputs = {"x": f"x.{shape_name}.{dtype_name}", "g": f"g.{shape_name}.{dtype_name}"}
            inputs |= {"weight": f"weight.{dtype_name}", "bias": f"bias.{dtype_name}"}
            for options in MICROXCALING if shape_name == "sequences" else MICROXCALING[:1]:
                record("microxcaling", options, inputs, of_microxcaling(options, x, weight, bias, g))
            if shape_name == "sequences":
                named = {"scale_rounding": TORCHAO[0], "element": TORCHAO[1], "exact_wgrad": True}
                record("torchao", named, inputs, of_torchao(*TORCHAO, True, x, weight, g))
    record_wide(tensors, record)
    record("nvfp4", {"signs": SIGNS}, {}, of_nvfp4(x, weight, g))
    source = "microsoft/microxcaling mx.Linear; pytorch/ao mx_mm (emulated) and nvfp4_reference, on a CPU"
    save_file(tensors, OUTPUT, metadata={"cases": json.dumps(cases), "source": source})
    print(f"{OUTPUT}: {len(cases)} cases, {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
