"""Experts, which lie in parameters of three dimensions: as a loop over experts that is written out here has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.mixtures import ARCHITECTURES, ATTENTION, SIZES, build
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, HunYuanMoEV1Config, PreTrainedModel
from transformers.integrations.moe import use_experts_implementation

from mxsweep import LinearFormats, Recipe, compose, quantize_model
from mxsweep.calibrate.weights import solve_without_data, solver
from mxsweep.files.checkpoints import model_folder
from mxsweep.formats.recipe import LINEAR_MATMULS, Rotation
from mxsweep.measure.sensitivity import parts_of
from mxsweep.measure.weight_errors import inspect_weights
from mxsweep.model import offload
from mxsweep.model.decoder import block_around, decoder_blocks
from mxsweep.model.expert_matrices import expert_matrices
from mxsweep.model.experts import MXExperts
from mxsweep.model.footprint import footprint
from mxsweep.model.linear import InputQuantizer, MXLinear
from mxsweep.model.meta import meta_model, recipe_problem
from mxsweep.model.observer import TensorObserver
from mxsweep.model.operands import ROUTER, Operand, find_operands
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import left_out, observed
from mxsweep.numerics import MXFormat, decode, quantize

WEIGHT, INPUT = MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3")
FORMATS = {
    "w4a6": LinearFormats(WEIGHT, INPUT),
    "weights": LinearFormats(WEIGHT),
    "inputs": LinearFormats(None, INPUT),
    "nvfp4": LinearFormats(*[MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)] * 2),
}
TOKENS = torch.arange(1, 25).view(2, 12)


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor = TOKENS) -> Tensor:
    return model(tokens, use_cache=False).logits


def changed(x: Tensor, fmt: MXFormat | None) -> Tensor:
    return x if fmt is None else quantize(x, fmt, axis=-1, tensor_dims=(-1,))


def rounded(weight: Tensor, fmt: MXFormat | None) -> Tensor:
    return weight if fmt is None else quantize(weight.contiguous(), fmt, axis=-1)


def loop(experts: Any, formats: LinearFormats) -> Callable[..., Tensor]:
    """Return what experts answer, written out, with weights and inputs quantized."""
    transposed = "GptOss" in type(experts).__name__

    def matrix(stored: Tensor, expert: int) -> Tensor:
        return stored[expert].T if transposed else stored[expert]

    def forward(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(4):
            token, place = torch.where(index == expert)
            if not len(token):
                continue
            both, down = matrix(experts.gate_up_proj, expert), matrix(experts.down_proj, expert)
            gate, up = (both[::2], both[1::2]) if transposed else both.chunk(2)
            read = changed(x[token], formats.activation)
            g, u = F.linear(read, rounded(gate, formats.weight)), F.linear(read, rounded(up, formats.weight))
            if transposed:
                g, u = g + experts.gate_up_proj_bias[expert][::2], u + experts.gate_up_proj_bias[expert][1::2]
                g, u = g.clamp(max=experts.limit), u.clamp(-experts.limit, experts.limit)
                middle = (u + 1) * (g * torch.sigmoid(g * experts.alpha))
            else:
                middle = experts.act_fn(g) * u
            answer = F.linear(changed(middle, formats.activation), rounded(down, formats.weight))
            if transposed:
                answer = answer + experts.down_proj_bias[expert]
            out.index_add_(0, token, answer * weights[token, place, None])
        return out

    return forward


@contextmanager
def reference(model: PreTrainedModel, formats: LinearFormats) -> Iterator[None]:
    """Quantize by hand what a recipe quantizes: experts by the loop, linear layers of the blocks by hooks."""
    blocks, undo = decoder_blocks(model), []
    for name, module in model.named_modules():
        if block_around(name, blocks) is None:
            continue
        if isinstance(module, nn.Linear) and not name.endswith(("mlp.gate", "mlp.router")):
            undo.append((module.weight, module.weight.data))
            module.weight.data = rounded(module.weight.data, formats.weight)
            module.register_forward_pre_hook(lambda _, args: (changed(args[0], formats.activation),))
        elif name.endswith(".experts"):
            module.forward = loop(module, formats)  # type: ignore[assignment]
    yield
    for parameter, values in undo:
        parameter.data = values


@pytest.mark.parametrize("formats", list(FORMATS))
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_experts_are_quantized_as_by_hand(name: str, formats: str) -> None:
    model, by_hand = build(name), build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    unquantized = logits(model)
    with quantize_model(model, Recipe(FORMATS[formats])):
        ours = logits(model)
    with reference(by_hand, FORMATS[formats]):
        expected = logits(by_hand)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert (ours - unquantized).abs().max() > 1e-2
    assert torch.equal(logits(model), unquantized)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_stand_in_computes_what_experts_do(name: str) -> None:
    """To the noise of adding up in another order: with inputs of 24 bits that are left in their format."""
    model = build(name)
    (experts, *_) = [module for module in model.modules() if expert_matrices(module)]
    operands = [operand for operand in find_operands(model).values() if operand.module is experts]
    drawn = torch.Generator().manual_seed(0)
    x, index = torch.randn(9, 64, generator=drawn), torch.randint(0, 4, (9, 2), generator=drawn)
    weights = torch.rand(9, 2, generator=drawn)
    expected = experts(x, index, weights)
    recipe = Recipe(modules=((operands[0].name, FORMATS["weights"]),))
    with quantize_model(model, recipe):
        stand_in = model.get_submodule(operands[0].module_name)
        assert isinstance(stand_in, MXExperts)
        with left_out(model, operands[:1]):
            torch.testing.assert_close(stand_in(x, index, weights), expected, rtol=1e-5, atol=1e-5)
            nobody = torch.full_like(index, 4)  # a router's number for "no expert"
            assert not stand_in(x, nobody, weights).any()
        touched = (stand_in(x, index, weights) - expected).abs().amax(dim=1) > 1e-4
    assert torch.equal(touched, (index == 0).any(dim=1))
    assert model.get_submodule(operands[0].module_name) is experts


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_each_matrix_of_each_expert_is_a_view(name: str) -> None:
    model = build(name)
    operands = [operand for operand in find_operands(model).values() if operand.expert is not None]
    modules = {operand.module for operand in operands}
    assert len(operands) == len(modules) * 4 * 3
    width = operands[0].shape[0]
    for operand in operands:
        assert operand.expert is not None
        assert operand.role == operand.expert.role and operand.is_linear and not operand.why_not_replaceable
        assert operand.shape == ((64, width) if operand.role == "down" else (width, 64))
        assert operand.place.part == operand.kind == f"experts.{operand.role}_proj"
    for module in modules:  # nothing is in two matrices, and nothing in none
        for matrix in expert_matrices(module):
            matrix.of(module.get_parameter(matrix.parameter).detach()).add_(1000)
        for parameter in ("gate_up_proj", "down_proj"):
            values = module.get_parameter(parameter)
            assert bool(((values > 900) & (values < 1100)).all())


def test_gate_and_up_lie_where_the_architecture_has_them() -> None:
    for name in ("mixtral", "gpt_oss"):
        model = build(name)
        operands, both = find_operands(model), model.model.layers[1].mlp.experts.gate_up_proj[2]
        gate, up = (operands[f"model.layers.1.mlp.experts.2.{role}_proj"].weight for role in ("gate", "up"))
        halves = (both.T[::2], both.T[1::2]) if name == "gpt_oss" else both.chunk(2)
        assert torch.equal(gate, halves[0]) and torch.equal(up, halves[1])


MIXED = Recipe(
    LinearFormats(WEIGHT, INPUT),
    modules=(
        ("*.experts.1.*", LinearFormats()),
        ("*.experts.2.up_proj", LinearFormats(MXFormat("int8"), MXFormat("int8"))),
        ("*.layers.1.*.experts.3.down_proj", LinearFormats(None, MXFormat("int8"))),
    ),
)


@pytest.mark.parametrize(
    "recipe", [Recipe(FORMATS["w4a6"]), MIXED, Recipe(modules=(("*.experts.0.*", FORMATS["w4a6"]),))]
)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_plan_agrees_with_the_run_to_the_byte(name: str, recipe: Recipe, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    on_meta = meta_model(str(tmp_path), attention=ATTENTION.get(name, "sdpa"))
    assert on_meta is not None
    planned = footprint(on_meta, recipe)
    own = {operand.name: operand for operand in find_operands(model).values() if operand.block is not None}
    with quantize_model(model, recipe) as report:
        copies = sum(buffer.nbytes for buffer_name, buffer in model.named_buffers() if buffer_name.endswith("_mx"))
    assert planned.bits_per_weight == report.bits_per_weight and planned.warnings == tuple(report.warnings)
    assert planned.stored_bytes == report.parameter_bytes
    assert planned.simulated_bytes == sum(parameter.nbytes for parameter in model.parameters()) + copies
    formats = {name: recipe.formats_of(name, own[name].role != ROUTER).weight for name in own}
    bits = sum(fmt.stored_bits(own[name].shape) - 32 * own[name].size for name, fmt in formats.items() if fmt)
    assert report.stored.bits == 32 * sum(p.numel() for p in model.parameters()) + bits
    kept = sum(own[name].size for name, fmt in formats.items() if not fmt)
    held = {id(operand.parameter) for operand in own.values()}
    blocks = {id(p) for block in decoder_blocks(model).values() for p in block.parameters()}
    others = [p for p in model.parameters() if id(p) in blocks - held and p.ndim > 1]  # routers, biases of experts
    assert report.stored.block_weights_kept == kept + sum(p.numel() for p in others)


def test_formats_of_single_experts_and_projections() -> None:
    """Against the same matrices changed one by one, each expert read by a token of its own."""
    model = build("mixtral")
    operands = find_operands(model)
    with quantize_model(model, MIXED):
        stand_in = model.model.layers[1].mlp.experts
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
        answers = stand_in(x, torch.arange(4)[:, None], torch.ones(4, 1))
    for expert in range(4):
        own: dict[str, tuple[Operand, LinearFormats]] = {}
        for role in ("gate", "up", "down"):
            name = f"model.layers.1.mlp.experts.{expert}.{role}_proj"
            own[role] = operands[name], MIXED.formats_of(name, True)

        def product(role: str, x: Tensor, own: dict[str, tuple[Operand, LinearFormats]] = own) -> Tensor:
            operand, formats = own[role]
            return F.linear(changed(x, formats.activation), rounded(operand.weight, formats.weight))

        row = x[expert : expert + 1]
        expected = product("down", F.silu(product("gate", row)) * product("up", row))
        torch.testing.assert_close(answers[expert : expert + 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("matmuls", [LINEAR_MATMULS, ("up",), ("down",)])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_rotation_of_experts_cancels_where_almost_nothing_is_rounded(name: str, matmuls: tuple[str, ...]) -> None:
    """Of ``up`` alone, too, which is read from the same parameter as ``gate``."""
    model = build(name)
    experts: Any = model.model.layers[0].mlp.experts
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    index, weights = torch.arange(18).view(9, 2) % 4, torch.ones(9, 2)
    expected = experts(x, index, weights)
    with quantize_model(model, Recipe(LinearFormats(None, MXFormat("fp16_e7m8")), rotation=Rotation(matmuls, 16))):
        stand_in: Any = model.model.layers[0].mlp.experts
        torch.testing.assert_close(
            stand_in(x, index, weights), expected, rtol=0, atol=0.005 * float(expected.detach().abs().max())
        )
        copies = {buffer_name.removesuffix("_mx") for buffer_name, _ in stand_in.named_buffers()}
        assert copies == {
            {"up": "gate_up_proj", "gate": "gate_up_proj", "down": "down_proj"}.get(m) for m in matmuls
        } - {None}
        for parameter in copies:
            assert not torch.equal(stand_in.get_buffer(f"{parameter}_mx"), experts.get_parameter(parameter))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_result_does_not_depend_on_the_batch(name: str) -> None:
    model = build(name)
    with quantize_model(model, Recipe(FORMATS["nvfp4"])):
        together = logits(model)
        alone = torch.cat([logits(model, TOKENS[:1]), logits(model, TOKENS[1:])])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_stochastic_rounding_repeats_under_a_seed() -> None:
    stochastic = MXFormat("fp4_e2m1", rounding="stochastic")
    model = build("qwen3_moe")
    results = []
    for seed in (0, 0, 1):
        with quantize_model(model, Recipe(LinearFormats(stochastic, stochastic), seed=seed)):
            results.append(logits(model))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def configured(*words: str) -> Any:
    return compose(list(words))


def test_clip_chooses_weights_of_experts() -> None:
    model, recipe = build("gpt_oss"), Recipe(FORMATS["weights"])
    config = configured("model=tiny", "format=mxfp4", "ptq=clip", "ptq.clip_loss=weight")
    weights = solve_without_data(model, recipe, solver(config.ptq))
    name = "model.layers.1.mlp.experts.3.down_proj"
    assert weights.keys() >= {operand.name for operand in find_operands(model).values() if operand.expert}
    own = find_operands(model)[name].weight
    assert (decode(weights[name]) - own).square().sum() < (rounded(own, WEIGHT) - own).square().sum()
    with quantize_model(model, recipe, prepared=Prepared(weights)) as report:
        stored = model.model.layers[1].mlp.experts.get_buffer("down_proj_mx")
        assert torch.equal(stored[3].T, decode(weights[name]))
    assert all(layer.prepared for layer in report.layers)


def test_parts_of_a_model_and_leaving_them_out() -> None:
    model, recipe = build("mixtral"), MIXED
    parts = {part.name: part for part in parts_of(model, Recipe(FORMATS["w4a6"]), "kind")}
    assert len(parts["experts.gate_proj"].modules) == 2 * 4
    by_module = {part.name: part for part in parts_of(model, recipe, "module")}
    assert list(by_module["model.layers.1.mlp.experts.*.down_proj"].modules) == [
        f"model.layers.1.mlp.experts.{expert}.down_proj" for expert in (0, 2, 3)
    ]
    assert len(by_module) == 2 * (4 + 3)
    operands = find_operands(model)
    with quantize_model(model, recipe):
        before = logits(model)
        every = [operand for operand in operands.values() if operand.expert and operand.expert.expert != 1]
        with left_out(model, every):
            without = logits(model)
        assert torch.equal(logits(model), before)
    with quantize_model(model, Recipe(recipe.linear, modules=(("*.experts.*", LinearFormats()),))):
        torch.testing.assert_close(logits(model), without, rtol=1e-5, atol=1e-5)


def test_an_inspection_has_a_row_for_each_role_of_a_layers_experts(tmp_path: Path) -> None:
    model = build("mixtral")
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder("embedded")).save_pretrained(tmp_path)
    config = configured("model=hf", f"model.path={tmp_path}", "model.dtype=float32", "format=mxfp4", "model.device=cpu")
    inspected = inspect_weights("mxfp4", config)
    rows = {row["module"]: row for row in inspected.rows()}
    assert len(rows) == 2 * (4 + 3)
    of_format = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 4 * 3 * 96 * 64)  # q, o; k, v; experts
    routers = 2 * 4 * 64
    assert inspected.bits_per_weight == (of_format * 4.25 + routers * 32) / (of_format + routers)
    assert inspected.bits_per_weight == footprint(model, config.recipe).bits_per_weight  # as a dry run shows it
    row, signal, noise = rows["model.layers.1.mlp.experts.*.down_proj"], 0.0, 0.0
    for expert in range(4):
        weight = model.model.layers[1].mlp.experts.down_proj[expert].detach()
        signal += float(weight.double().square().sum())
        noise += float((weight - quantize(weight, WEIGHT, axis=-1)).double().square().sum())
    assert (row["signal"], row["noise"]) == (pytest.approx(signal), pytest.approx(noise))
    assert row["elements"] == 4 * 64 * 96 and (row["layer"], row["part"]) == (1, "experts.down_proj")


def test_padding_does_not_enter_the_statistics_of_inputs() -> None:
    model, recipe = build("mixtral"), Recipe(FORMATS["w4a6"])
    real = torch.arange(12)  # of the second sequence all is padding
    measured = []
    with quantize_model(model, recipe) as report:
        for tokens, shape in ((TOKENS[:1], (1, 12)), (TOKENS, (2, 12))):
            observer = TensorObserver(recipe.arithmetic)
            with observed(model, observer), observer.batch(shape, real):
                logits(model, tokens)
            measured.append({item.module: item for item in observer.statistics(1, report.places)})
    alone, padded = measured
    assert alone.keys() == padded.keys()
    for expert_input, rows in (("0.gate_proj", 12), ("0.down_proj", 24)):
        name = f"model.layers.1.mlp.experts.{expert_input}"
        assert alone[name].tokens == padded[name].tokens == rows
        assert alone[name].statistics.elements == padded[name].statistics.elements
        assert alone[name].statistics.noise == pytest.approx(padded[name].statistics.noise, rel=1e-3)


def test_originals_without_room_leave_once_their_last_matrix_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gpt_oss")
    before = logits(model)
    sent: list[int] = []
    leave = offload.OffloadedWeights.send_to_host

    def send(self: offload.OffloadedWeights, parameter: nn.Parameter) -> None:
        sent.append(id(parameter))
        leave(self, parameter)

    monkeypatch.setattr(offload.OffloadedWeights, "send_to_host", send)
    monkeypatch.setattr(offload, "_memory", lambda device: (0.0, 1e6))
    with quantize_model(model, Recipe(FORMATS["w4a6"])) as report:
        experts = [
            layer.mlp.experts.get_parameter(f"{kind}_proj")
            for layer in model.model.layers
            for kind in ("gate_up", "down")
        ]
        assert [sent.count(id(parameter)) for parameter in experts] == [1] * 4
        linear = [module.weight for module in model.modules() if isinstance(module, MXLinear)]
        assert report.offloaded_bytes == sum(parameter.nbytes for parameter in (*experts, *linear))
    assert torch.equal(logits(model), before)


def test_experts_that_do_not_declare_their_layout_are_counted_as_they_are() -> None:
    model = build("mixtral")
    experts: Any = model.model.layers[0].mlp.experts
    model.set_experts_implementation("eager")  # the class's own forward, which does not ask
    del experts.is_transposed
    names = [name for name in find_operands(model) if ".experts." in name]
    assert names and all(name.startswith("model.layers.1.") for name in names)
    with quantize_model(model, Recipe(FORMATS["w4a6"])) as report:
        assert model.model.layers[0].mlp.experts is experts
    routers = sum(p.numel() for name, p in model.named_parameters() if name.endswith("gate.weight"))
    assert report.stored.block_weights_kept == experts.gate_up_proj.numel() + experts.down_proj.numel() + routers


@pytest.mark.parametrize(
    "patterns", [["*.experts.1.*"], ["*.experts.*.gate_proj", "*.experts.*.up_proj"], ["*.experts.*"]]
)
def test_experts_that_patterns_leave_are_not_warned_of(patterns: list[str]) -> None:
    recipe = Recipe(FORMATS["w4a6"], modules=tuple((pattern, LinearFormats()) for pattern in patterns))
    planned = footprint(build("mixtral", "meta"), recipe)
    assert planned.warnings == () and planned.bits_per_weight is not None and planned.bits_per_weight > 10


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "phimoe"])
def test_a_router_of_a_class_of_its_own_stays_and_naming_it_is_refused(architecture: str) -> None:
    model = build(architecture, "meta")
    assert recipe_problem(model, Recipe(FORMATS["w4a6"])) is None
    name = "router" if architecture == "gpt_oss" else "gate"
    kind = type(model.get_submodule(f"model.layers.1.mlp.{name}")).__name__
    problem = recipe_problem(model, Recipe(FORMATS["w4a6"], modules=((f"*.mlp.{name}", FORMATS["w4a6"]),)))
    assert problem is not None and f"mlp.{name} is a router of experts of a class of its own, {kind}, which" in problem
    way_out = (f"*.mlp.{name}", LinearFormats())
    assert f"modules={{*.mlp.{name}: none}}" in problem
    assert recipe_problem(model, Recipe(FORMATS["w4a6"], modules=(way_out,))) is None


def test_a_router_that_subclasses_a_linear_layer_and_computes_more_is_refused() -> None:
    model = build("phimoe", "meta")
    assert recipe_problem(model, Recipe(FORMATS["w4a6"])) is None
    problem = recipe_problem(model, Recipe(modules=(("*.router", FORMATS["w4a6"]),)))
    assert problem is not None and "mlp.router is a PhimoeTopKRouter, for which there is no MX layer" in problem


def test_a_router_that_is_a_linear_layer_stays_unless_a_pattern_names_it() -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(HunYuanMoEV1Config(**SIZES, num_experts=4, moe_topk=2, head_dim=16))
    model = model.float().eval()
    router = model.model.layers[0].mlp.gate.wg
    with torch.no_grad(), quantize_model(model, Recipe(FORMATS["w4a6"])):
        assert model.model.layers[0].mlp.gate.wg is router
    with torch.no_grad(), quantize_model(model, Recipe(modules=(("*.mlp.gate.wg", FORMATS["w4a6"]),))):
        answered: list[Tensor] = []
        stand_in = model.model.layers[0].mlp.gate.wg
        handle = stand_in.register_forward_hook(lambda _, args, out: answered.extend((args[0], out)))
        logits(model)
        handle.remove()
    x, out = answered
    expected = F.linear(changed(x, INPUT), rounded(router.weight.detach(), WEIGHT))
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(out, F.linear(x, router.weight.detach()))


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize(
    "declared",
    [
        {"has_gate": False},
        {"is_transposed": True},
        {"is_transposed": True, "has_bias": True, "is_concatenated": False},
        {"has_post_expert_norm": True, "has_bias": True},
    ],
    ids=["no gate", "transposed", "as GPT-OSS", "biases and a norm"],
)
def test_any_class_that_declares_its_layout_is_reached(declared: dict[str, bool], implementation: str) -> None:
    """Experts of no model, whose own forward is written down here."""
    torch.manual_seed(0)
    made = made_experts(**declared)
    experts = made(SimpleNamespace(_experts_implementation=implementation))
    x, index, weights = torch.randn(9, 64), torch.arange(18).view(9, 2) % 4, torch.rand(9, 2)
    expected = experts(x, index, weights)
    assert len(expert_matrices(experts)) == 4 * (3 if declared.get("has_gate", True) else 2)
    stand_in = MXExperts(experts, InputQuantizer(Recipe()))
    torch.testing.assert_close(stand_in(x, index, weights), expected, rtol=1e-5, atol=1e-5)
    if not experts.has_post_expert_norm:  # which earlier versions of transformers do not declare
        del experts.has_post_expert_norm, experts._is_expert_parallel
        torch.testing.assert_close(stand_in(x, index, weights), expected, rtol=1e-5, atol=1e-5)
    last = expert_matrices(experts)[-1]
    stand_in.put("down", last, rounded(last.of(experts.down_proj.detach()), WEIGHT), INPUT, None)
    moved = (stand_in(x, index, weights) - expected).abs().amax(dim=1) > 1e-4
    assert torch.equal(moved, (index == 3).any(dim=1))


def made_experts(has_gate: bool = True, **declared: bool) -> Callable[[Any], Any]:
    transposed, concatenated = declared.get("is_transposed", False), declared.get("is_concatenated", True)

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts = 4
            self.first = "gate_up_proj" if has_gate else "up_proj"
            for name, rows, columns in ((self.first, 64 if has_gate else 32, 64), ("down_proj", 64, 32)):
                shape = (4, columns, rows) if transposed else (4, rows, columns)
                self.register_parameter(name, nn.Parameter(torch.randn(shape) / 8, requires_grad=False))
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(4, rows), requires_grad=False))
            self.act_fn = nn.GELU()
            self.post_expert_norm = nn.LayerNorm(64)

        def _apply_gate(self, both: Tensor) -> Tensor:
            gate, up = both.chunk(2, dim=-1) if concatenated else (both[..., ::2], both[..., 1::2])
            return self.act_fn(gate) * (up + 1)

        def product(self, name: str, expert: int, x: Tensor) -> Tensor:
            weight = self.get_parameter(name)[expert]
            bias = self.get_parameter(f"{name}_bias")[expert] if declared.get("has_bias") else 0
            return F.linear(x, weight.T if transposed else weight) + bias

        def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            out = torch.zeros_like(hidden_states)
            for token, (numbers, shares) in enumerate(zip(top_k_index.tolist(), top_k_weights, strict=True)):
                for expert, share in zip(numbers, shares, strict=True):
                    middle = self.product(self.first, expert, hidden_states[token : token + 1])
                    answer = self.product("down_proj", expert, (self._apply_gate if has_gate else self.act_fn)(middle))
                    if declared.get("has_post_expert_norm"):
                        answer = self.post_expert_norm(answer)
                    out[token] += share * answer[0]
            return out

    result: Callable[[Any], Any] = use_experts_implementation(Experts, has_gate=has_gate, **declared)
    return result
