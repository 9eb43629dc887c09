"""Products and their gradients: as other libraries compute them, by closed forms, and under torch's transforms."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product as combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from mxsweep.formats.training import LayerFormats, OperandFormat, ProductFormats
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.hadamard import SignedHadamard, matrix
from mxsweep.numerics.rescaled import quantize_rescaled
from mxsweep.training import quantizing
from mxsweep.training.products import linear
from mxsweep.training.quantizing import Quantizer
from mxsweep.training.roles import RoleObserver

VECTORS = Path(__file__).parent.parent / "data" / "training_vectors.safetensors"
NVFP4 = {"block_size": 16, "scale": "e4m3", "tensor_scale": True, "rounding": "even"}


def read_vectors() -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    with safe_open(VECTORS, "pt") as file:
        return {name: file.get_tensor(name) for name in list(file.keys())}, json.loads(file.metadata()["cases"])


TENSORS, CASES = read_vectors()


def name_of(case: dict[str, Any]) -> str:
    return "-".join([case["inputs"]["x"], *(str(value) for value in list(case["options"].values())[:3])])


def operand(element: str, **more: Any) -> OperandFormat:
    beside = {name: more.pop(name) for name in ("prescale",) if name in more}
    return OperandFormat(MXFormat(element, **{"block_size": 16, **more}), **beside)


def both(element: str, hadamard: int = 0, **more: Any) -> ProductFormats:
    return ProductFormats(operand(element, **more), operand(element, **more), hadamard)


def alike(element: str, **more: Any) -> LayerFormats:
    return LayerFormats(*[both(element, **more)] * 3)


def answers(x: Tensor, weight: Tensor, bias: Tensor | None, g: Tensor, quantizer: Quantizer) -> dict[str, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    bias = None if bias is None else bias.clone().requires_grad_()
    y = linear(x, weight, bias, quantizer)
    y.backward(g)
    found = {"y": y.detach(), "dx": x.grad, "dw": weight.grad}
    return found if bias is None else found | {"db": bias.grad}


def assert_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == found[name].dtype and torch.equal(found[name], value), name


def of_case(case: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple({name: TENSORS[key] for name, key in case[which].items()} for which in ("inputs", "outputs"))


def tensors(shape: tuple[int, ...] = (3, 32, 48), outputs: int = 64, dtype: Any = torch.float32) -> list[Tensor]:
    """Return x, W, b and g, with heavy tails."""
    generator = torch.Generator().manual_seed(7)
    shapes = (shape, (outputs, shape[-1]), (outputs,), (*shape[:-1], outputs))
    drawn = [torch.randn(s, generator=generator) * torch.randn(s, generator=generator).mul(0.7).exp() for s in shapes]
    return [t.to(dtype) for t in drawn]


def of_microxcaling(case: dict[str, Any]) -> Quantizer:
    """What computes as the library did: its formats by its names of the operands."""
    options = case["options"]

    def of(name: str) -> OperandFormat:
        return operand(options[name], block_size=options["block_size"], rounding=options["round"])

    formats = LayerFormats(
        ProductFormats(of("a_elem_format"), of("w_elem_format")),
        ProductFormats(of("a_elem_format_bp_os"), of("w_elem_format_bp")),
        ProductFormats(of("a_elem_format_bp_ex"), of("a_elem_format_bp")),
    )
    return Quantizer(formats)


def of_torchao(case: dict[str, Any]) -> Quantizer:
    options = case["options"]
    of_all = both(options["element"], rounding="even", scale_rounding=options["scale_rounding"])
    formats = LayerFormats(of_all, of_all, ProductFormats() if options["exact_wgrad"] else of_all)
    return Quantizer(formats, arithmetic="exact")


def of_library(case: dict[str, Any], quantizer: Quantizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the quantizer's products are of a case's inputs, and what was recorded."""
    inputs, outputs = of_case(case)
    bias = inputs.get("bias") if "db" in outputs else None
    return answers(inputs["x"], inputs["weight"], bias, inputs["g"], quantizer), outputs


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] == "microxcaling"], ids=name_of)
def test_microxcaling_bit_for_bit(case: dict[str, Any]) -> None:
    assert_bits(*of_library(case, of_microxcaling(case)))


@pytest.mark.parametrize("case", [case for case in CASES if case["kind"] == "torchao"], ids=name_of)
def test_torchao_bit_for_bit(case: dict[str, Any]) -> None:
    assert_bits(*of_library(case, of_torchao(case)))


@pytest.mark.parametrize(("kind", "quantizer"), [("microxcaling", of_microxcaling), ("torchao", of_torchao)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_others_answered_is_of_no_other_format(kind: str, quantizer: Any, dtype: str) -> None:
    """Of each operand another element, block, rounding or scale rounding gives another answer in some recorded case."""
    changes = {
        "none": lambda fmt: None,
        "element": lambda fmt: replace(fmt, element="fp5_e2m2"),
        "half a block": lambda fmt: replace(fmt, block_size=fmt.block_size // 2),
        "rounding": lambda fmt: replace(fmt, rounding="nearest" if fmt.rounding == "even" else "even"),
        "scale_rounding": lambda fmt: replace(
            fmt, scale_rounding="floor" if fmt.scale_rounding == "rceil" else "rceil"
        ),
    }
    unseen = set(combinations(("fprop", "dgrad", "wgrad"), ("first", "second"), changes))
    for case in (case for case in CASES if case["kind"] == kind and case["inputs"]["x"].endswith(dtype)):
        of_case = quantizer(case)
        for product, side, change in sorted(unseen):
            of_product = getattr(of_case.formats, product)
            if (before := getattr(of_product, side)) is None:
                continue
            made = changes[change](before.fmt)
            other = replace(of_product, **{side: None if made is None else OperandFormat(made)})
            found, outputs = of_library(case, replace(of_case, formats=replace(of_case.formats, **{product: other})))
            if any(not torch.equal(found[name], value) for name, value in outputs.items()):
                unseen.remove((product, side, change))
    assert not unseen


def test_nvfp4_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16, tiles of 16 x 16, a tensor's scale and the rotation of wgrad, as TransformerEngine has them.

    It multiplies by a rounded reciprocal where a quotient is rounded here; at an exact tie that can fall elsewhere.
    """
    (case,) = (case for case in CASES if case["kind"] == "nvfp4")
    _, golden = of_case(case)
    signs = case["options"]["signs"]
    rotation = SignedHadamard(len(signs), sum(1 << row for row, sign in enumerate(signs) if sign < 0))
    monkeypatch.setattr(quantizing, "_signed_hadamard", lambda *_: rotation)
    row, tile = operand("fp4_e2m1", **NVFP4), operand("fp4_e2m1", **NVFP4 | {"block_size": (16, 16)})
    formats = LayerFormats(ProductFormats(row, tile), ProductFormats(row, tile), ProductFormats(row, row, hadamard=16))
    quantizer = Quantizer(formats, whole_tensors=True)
    sources = {"input": golden["x"], "weight": golden["weight"], "grad": golden["g"]}
    made, differing = {}, 0
    for name in (name for name in golden if "." in name):
        source = sources[name.partition(".")[2]]
        made[name] = quantizer.make(name, source)
        elsewhere = made[name] != golden[name]
        wanted = quantizer._rotated(name, source)[elsewhere]
        assert torch.equal((made[name][elsewhere] - wanted).abs(), (golden[name][elsewhere] - wanted).abs()), name
        differing += int(elsewhere.sum())
    assert differing <= 1
    found = answers(golden["x"], golden["weight"], None, golden["g"], quantizer)
    expected = {
        "y": F.linear(made["fprop.input"], made["fprop.weight"]),
        "dx": made["dgrad.grad"] @ made["dgrad.weight"],
        "dw": made["wgrad.grad"].T @ made["wgrad.input"],
    }
    assert_bits(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_microxcaling_itself(dtype: torch.dtype) -> None:
    """Where the library is installed, on values whose sums are rounded, too."""
    layers, specs = pytest.importorskip("mx.linear"), pytest.importorskip("mx.specs")
    x, weight, bias, g = tensors(dtype=dtype)
    options = next(case for case in CASES if case["kind"] == "microxcaling")["options"]
    spec = specs.MxSpecs()
    for name, value in (options | {"scale_bits": 8, "custom_cuda": False, "bfloat": 0, "fp": 0}).items():
        spec[name] = value
    layer = layers.Linear(48, 64, mx_specs=spec).to(dtype)
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    x_there = x.clone().requires_grad_()
    y = layer(x_there)
    y.backward(g)
    formats = LayerFormats(
        ProductFormats(operand("fp8_e4m3"), operand("fp6_e3m2")),
        ProductFormats(operand("int8"), operand("fp4_e2m1")),
        ProductFormats(operand("fp6_e2m3"), operand("fp8_e5m2")),
    )
    expected = {"y": y.detach(), "dx": x_there.grad, "dw": layer.weight.grad, "db": layer.bias.grad}
    assert_bits(answers(x, weight, bias, g, Quantizer(formats)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 32, 48), (32, 48)], ids=str)
def test_plain_formats_are_a_linear_layer_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias, g = tensors(shape, dtype=dtype)
    layer = torch.nn.Linear(48, 64, dtype=dtype)
    layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
    x_there = x.clone().requires_grad_()
    y = layer(x_there)
    y.backward(g)
    expected = {"y": y.detach(), "dx": x_there.grad, "dw": layer.weight.grad, "db": layer.bias.grad}
    assert_bits(answers(x, weight, bias, g, Quantizer(LayerFormats())), expected)


def test_each_product_by_itself() -> None:
    """One format in one operand leaves the other answers as they are."""
    x, weight, bias, g = tensors()
    plain = answers(x, weight, bias, g, Quantizer(LayerFormats()))
    fmt = operand("fp4_e2m1")
    for product, changed in (("fprop", "y"), ("dgrad", "dx"), ("wgrad", "dw")):
        for formats in (ProductFormats(fmt), ProductFormats(None, fmt)):
            found = answers(x, weight, bias, g, Quantizer(replace(LayerFormats(), **{product: formats})))
            assert not torch.equal(found.pop(changed), plain[changed])
            for name, value in found.items():
                torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-5)


def test_layouts_take_columns_along_the_sum() -> None:
    x, weight, _, g = tensors()
    tile, across = MXFormat("fp4_e2m1", (8, 16)), MXFormat("fp4_e2m1", (16, 1))
    along = replace(tile, block_size=(16, 8))
    formats = LayerFormats(
        ProductFormats(OperandFormat(across), OperandFormat(tile)),
        ProductFormats(OperandFormat(tile), OperandFormat(tile)),
        ProductFormats(OperandFormat(across), OperandFormat(tile)),
    )
    expected = {
        "y": F.linear(quantize(x, MXFormat("fp4_e2m1", 16), axis=-2), quantize(weight, tile)),
        "dx": quantize(g, tile) @ quantize(weight, along),
        "dw": quantize(g, MXFormat("fp4_e2m1", 16), axis=-1).flatten(0, 1).T @ quantize(x, along).flatten(0, 1),
    }
    assert_bits(answers(x, weight, None, g, Quantizer(formats)), expected)


def test_blocks_of_sequences_are_those_of_the_sequences_one_after_the_other() -> None:
    x, weight, _, g = tensors()
    together = answers(x, weight, None, g, Quantizer(alike("fp4_e2m1")))
    flat = answers(x.flatten(0, 1), weight, None, g.flatten(0, 1), Quantizer(alike("fp4_e2m1")))
    assert_bits({name: value.view(together[name].shape) for name, value in flat.items()}, together)


def test_backward_from_what_fprop_quantized() -> None:
    x, weight, _, g = tensors()
    formats = LayerFormats(both("fp4_e2m1", hadamard=16), both("fp6_e2m3"), both("fp6_e2m3"))
    quantizer = Quantizer(formats, backward="requantized")
    found = answers(x, weight, None, g, quantizer)
    rotation = quantizer._rotated("fprop.input", torch.eye(48))
    x_mx, weight_mx = (quantize(t @ rotation, MXFormat("fp4_e2m1", 16)) for t in (x, weight))
    torch.testing.assert_close(found["y"], F.linear(x_mx, weight_mx))
    x_back, weight_back = x_mx @ rotation.T, weight_mx @ rotation.T
    backward = answers(x_back, weight_back, None, g, Quantizer(replace(formats, fprop=ProductFormats())))
    for name in ("dx", "dw"):
        torch.testing.assert_close(found[name], backward[name], rtol=0.02, atol=0.02)


def test_rotated_operands_are_those_of_an_orthogonal_matrix() -> None:
    x, weight, _, g = tensors()
    fine = replace(alike("fp16_e5m10"), wgrad=both("fp16_e5m10", hadamard=16), dgrad=both("fp16_e5m10", hadamard=32))
    plain = answers(x, weight, None, g, Quantizer(LayerFormats()))
    for name, value in answers(x, weight, None, g, Quantizer(fine)).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-2, atol=0.1)
    quantizer = Quantizer(replace(fine, wgrad=replace(fine.wgrad, first=None)))
    rotation = quantizer.make("wgrad.grad", torch.eye(32))
    torch.testing.assert_close(rotation[:16, :16].T @ rotation[:16, :16], torch.eye(16))
    assert torch.equal(rotation[16:, :16], torch.zeros(16, 16))
    assert torch.equal(rotation[:16, :16].abs(), matrix(16).abs())


def test_signs_are_fixed_or_by_step() -> None:
    x, weight, _, g = tensors()
    quantizer = Quantizer(LayerFormats(wgrad=both("fp4_e2m1", hadamard=16)), name="a")
    first = answers(x, weight, None, g, quantizer)["dw"]
    assert torch.equal(answers(x, weight, None, g, replace(quantizer, step=1, name="b"))["dw"], first)
    by_step = [answers(x, weight, None, g, replace(quantizer, step=n, signs="step"))["dw"] for n in range(2)]
    assert not torch.equal(*by_step)
    assert not torch.equal(answers(x, weight, None, g, replace(quantizer, seed=1))["dw"], first)


def test_products_are_divided_by_prescales() -> None:
    x, weight, _, g = tensors()
    formats = alike("fp4_e2m1", prescale=0.75)
    fmt = operand("fp4_e2m1").fmt
    x_mx, weight_mx = (quantize_rescaled(t, fmt, prescale=0.75) for t in (x, weight))
    found = answers(x, weight, None, g, Quantizer(formats))
    torch.testing.assert_close(found["y"], F.linear(x_mx, weight_mx) * 16 / 9)
    over = replace(formats, fprop=both("fp4_e2m1", four_over_six=True, **NVFP4), dgrad=ProductFormats())
    weight_mx = quantize(weight, over.fprop.second.fmt)
    expected = F.linear(quantize(x, over.fprop.first.fmt, tensor_dims=(-1,)), weight_mx)
    requantized = answers(x, weight, None, g, Quantizer(over, backward="requantized"))
    assert torch.equal(requantized["y"], expected)
    assert torch.equal(requantized["dx"], g @ weight_mx)


@pytest.mark.parametrize("shape", [(4, 32, 48), (4, 3, 32, 48)], ids=["linear", "experts"])
def test_numbers_are_by_example(shape: tuple[int, ...]) -> None:
    """However a batch is split, every operand of every example is the same."""
    quantizer = Quantizer(alike("fp4_e2m1", rounding="stochastic"), name="a", step=3)
    x = tensors(shape)[0]
    for name in ("fprop.input", "dgrad.grad", "wgrad.grad", "wgrad.input"):
        whole = quantizer.make(name, x)
        parts = [replace(quantizer, first_example=first).make(name, x[first : first + 2]) for first in (0, 2)]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(replace(quantizer, name="b").make(name, x), whole)
        assert not torch.equal(replace(quantizer, step=4).make(name, x), whole)
        equal = x[:1].expand(x.shape)
        assert not torch.equal(*quantizer.make(name, equal)[:2])


def test_scales_of_tensors_do_not_depend_on_the_batch() -> None:
    x = tensors()[0]
    quantizer = Quantizer(alike("fp4_e2m1", **NVFP4))
    for name in ("fprop.input", "dgrad.grad", "wgrad.grad", "wgrad.input"):
        whole = quantizer.make(name, x)
        assert torch.equal(torch.cat([quantizer.make(name, part) for part in x.split(1)]), whole)
    evaluated = quantize(x, operand("fp4_e2m1", **NVFP4).fmt, tensor_dims=(-1,))
    assert torch.equal(quantizer.make("fprop.input", x), evaluated)


def test_experts_are_their_own_layers() -> None:
    x, weight, bias, g = tensors((2, 3, 32, 48))
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(3, 64, 48, generator=generator), torch.randn(3, 64, generator=generator)
    quantizer = Quantizer(alike("fp4_e2m1", **NVFP4))
    together = answers(x, weight, bias, g, quantizer)
    for expert in range(3):
        alone = answers(x[:, expert], weight[expert], bias[expert], g[:, expert], quantizer)
        for name, value in alone.items():
            of_expert = together[name][:, expert] if name in ("y", "dx") else together[name][expert]
            torch.testing.assert_close(of_expert, value, rtol=1e-5, atol=1e-5)


def test_functional_transforms() -> None:
    x, weight, bias, g = tensors()
    quantizer = Quantizer(alike("fp4_e2m1", rounding="stochastic"), name="a")

    def loss(weight: Tensor, bias: Tensor, x: Tensor, g: Tensor) -> Tensor:
        return (linear(x, weight, bias, quantizer) * g).sum()

    whole = answers(x, weight, bias, g, quantizer)
    gradients = torch.func.grad(loss, (0, 1, 2))(weight, bias, x, g)
    assert_bits(dict(zip(("dw", "db", "dx"), gradients, strict=True)), {n: whole[n] for n in ("dw", "db", "dx")})
    each = torch.func.vmap(torch.func.grad(loss, (0, 2)), in_dims=(None, None, 0, 0))(
        weight, bias, x.unsqueeze(1), g.unsqueeze(1)
    )
    assert torch.equal(each[1].flatten(0, 1), whole["dx"])
    torch.testing.assert_close(each[0].sum(0), whole["dw"], rtol=1e-5, atol=1e-5)
    mapped = torch.func.vmap(lambda w: linear(x, w, None, quantizer))(torch.stack([weight, weight * 2]))
    assert torch.equal(mapped[0], linear(x, weight, None, quantizer))


def test_gradients_have_no_gradients() -> None:
    x, weight, _, _ = tensors()
    x.requires_grad_(), weight.requires_grad_()
    (dx,) = torch.autograd.grad(linear(x, weight, None, Quantizer(alike("int8"))).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gradients of quantized products have no gradients"):
        dx.sum().backward()


def test_only_what_is_needed_is_computed_and_saved() -> None:
    x, weight, bias, g = tensors()
    seen: list[Tensor] = []

    class Names(RoleObserver):
        def operand(self, module: str, name: str, *rest: Any, **more: Any) -> None:
            made.append(name)

        def gradient(self, module: str, gradient: str, exact: Tensor, computed: Tensor) -> None:
            made.append(gradient)

    for of_x, of_weight in combinations((True, False), (True, False)):
        made: list[str] = []
        seen.clear()
        x.requires_grad_(of_x), weight.requires_grad_(of_weight)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
            y = linear(x, weight, bias, Quantizer(alike("int8"), observer=Names()))
        if y.requires_grad:
            y.backward(g)
        assert len(seen) == of_weight + of_x
        assert all(any(t.data_ptr() == own.data_ptr() for own in (x, weight)) for t in seen)
        expected = ["fprop.input", "fprop.weight"]
        expected += ["dgrad.grad", "dgrad.weight", "dX"] * of_x + ["wgrad.grad", "wgrad.input", "dW"] * of_weight
        assert sorted(made) == sorted(expected)


def test_observers_are_told_what_was_quantized() -> None:
    x, weight, _, g = tensors()
    observer = RoleObserver()
    formats = replace(alike("fp4_e2m1", prescale=0.75), wgrad=both("fp4_e2m1", block_size=(8, 16), hadamard=16))
    answers(x, weight, None, g, Quantizer(formats, name="model.layers.2.mlp.up_proj", observer=observer))
    rows = {row["operand"]: row for row in observer.rows(5)}
    assert rows.keys() == {*(name for name, _ in formats.operands()), "dX", "dW"}
    assert all(8 < row["snr_db"] < 30 and 0.9 < row["cosine"] < 1 for row in rows.values())


def test_equal_formats_of_operands_are_one_object() -> None:
    """So that what is kept for a format is found without comparing fields."""
    first, second = (OperandFormat(MXFormat("fp4_e2m1", 16, rounding="even")) for _ in range(2))
    assert first.fmt is second.fmt
    assert OperandFormat(MXFormat("fp4_e2m1", 16)).fmt is not first.fmt


@pytest.mark.parametrize("made_ahead", [False, True])
def test_dtypes(made_ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, g = tensors()
    quantizer = Quantizer(alike("fp4_e2m1"))
    with pytest.raises(TypeError, match=r"bfloat16 does not go with a weight of torch\.float32"):
        linear(x.bfloat16(), weight, bias, quantizer)
    x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    monkeypatch.setattr(Quantizer, "makes_both", made_ahead)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, weight, bias, quantizer)
        assert torch.is_autocast_enabled("cpu")
        y.backward(g.bfloat16())
    expected = answers(*(t.detach().bfloat16() for t in (x, weight, bias, g)), quantizer)
    assert_bits(
        {"y": y.detach(), "dx": x.grad, "dw": weight.grad, "db": bias.grad},
        {name: value if name == "y" else value.float() for name, value in expected.items()},
    )


@pytest.mark.parametrize("shape", [(3, 32, 48), (2, 3, 32, 48)], ids=["linear", "experts"])
def test_operands_that_are_made_ahead_are_the_same(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where one reading makes an operand of fprop and one of a backward product."""
    x, weight, bias, g = tensors(shape)
    if len(shape) > 3:
        weight, bias = weight.expand(3, 64, 48).contiguous(), bias.expand(3, 64).contiguous()
    formats = LayerFormats(
        both("fp4_e2m1"), both("fp4_e2m1", rounding="stochastic"), both("fp4_e2m1", rounding="stochastic", hadamard=16)
    )
    for one in (formats, replace(formats, wgrad=ProductFormats()), replace(formats, fprop=ProductFormats())):
        expected = answers(x, weight, bias, g, Quantizer(one))
        with monkeypatch.context() as patch:
            patch.setattr(Quantizer, "makes_both", True)
            assert_bits(answers(x, weight, bias, g, Quantizer(one)), expected)
