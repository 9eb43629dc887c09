"""Experts solved for on the tokens that reach each, against loops over experts that are written out here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.decoded import decoded
from helpers.hessian_loss import hessian_loss
from helpers.mixtures import build
from helpers.warned import assert_warned_everywhere
from torch import Tensor, nn
from transformers import AutoTokenizer

from mxsweep import compose, run
from mxsweep.calibrate import stages
from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.sequential import ExpertTokens, SolvedWeights, solve_weights
from mxsweep.calibrate.weight_remedy import _account_for_experts
from mxsweep.calibrate.workbench import Workbench
from mxsweep.files.checkpoints import model_folder
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation
from mxsweep.forward.batches import unpadded_batches
from mxsweep.model.experts import MXExperts
from mxsweep.model.operands import Operand, find_operands
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import Encoded, MXFormat, decode, encode, quantize
from mxsweep.solvers.block_scales import BlockScales
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq

pytestmark = pytest.mark.usefixtures("own_cache")

WEIGHT, INPUT = MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3")
RECIPE = Recipe(LinearFormats(WEIGHT, INPUT), arithmetic="exact")
NAMES = ["mixtral", "qwen3_moe", "gpt_oss"]


def batches_of(lengths: list[int]) -> list[Tensor]:
    drawn = np.random.default_rng(0)
    return unpadded_batches([drawn.integers(1, 97, length) for length in lengths], torch.device("cpu"))


BATCHES = batches_of([24] * 6 + [17] * 3)


class Asked:
    """A solver that does what another does, and remembers what it was asked."""

    def __init__(self, solve: Callable[[Tensor, Tensor, MXFormat], Encoded] | None = None) -> None:
        self._solve = solve or (lambda weight, _, fmt: encode(weight, fmt))
        self.weights: list[Tensor] = []
        self.hessians: list[Tensor] = []

    def __call__(self, weight: Tensor, hessian: Tensor | None, fmt: MXFormat) -> Encoded:
        assert hessian is not None
        self.weights.append(weight.clone())
        self.hessians.append(hessian.clone())
        return self._solve(weight, hessian, fmt)

    def hessian_of(self, operand: Operand) -> Tensor:
        """Return what the solver was given for an operand: the one whose rows are among the weights."""
        own = operand.weight
        for weight, hessian in zip(self.weights, self.hessians, strict=True):
            if weight.shape[1] == own.shape[1] and any(torch.equal(part, own) for part in weight.split(len(own))):
                return hessian
        raise AssertionError(operand.name)


def by_gptq(weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Encoded:
    scales = search_scales(weight, fmt)
    return scales.encode_chosen(gptq(weight, hessian, fmt, scales), fmt)


def equal_weights(one: SolvedWeights, other: SolvedWeights) -> bool:
    values, others = decoded(one.weights), decoded(other.weights)
    return all(torch.equal(values[name], others[name]) for name in others)


def solve(
    name: str, recipe: Recipe = RECIPE, solver: Any = None, batches: list[Tensor] = BATCHES, key: str | None = None
) -> tuple[SolvedWeights, Any]:
    solver = solver or Asked()
    artefact = None if key is None else Artefact({"key": key})
    return solve_weights(build(name), recipe, Prepared(), batches, solver, artefact), solver


Rows = dict[tuple[str, int], list[Tensor]]


def loop(experts: Any, rows: Rows) -> Callable[..., Tensor]:
    """Return what experts answer, written out, with inputs quantized and noted by parameter and expert."""
    transposed = "GptOss" in type(experts).__name__

    def matrix(stored: Tensor, expert: int) -> Tensor:
        return stored[expert].T if transposed else stored[expert]

    def forward(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(4):
            token, place = torch.where(index == expert)
            read = quantize(x[token], INPUT, arithmetic="exact")
            both = F.linear(read, matrix(experts.gate_up_proj, expert))
            if transposed:
                both = both + experts.gate_up_proj_bias[expert]
                gate, up = both[:, ::2].clamp(max=experts.limit), both[:, 1::2].clamp(-experts.limit, experts.limit)
                middle = (up + 1) * (gate * torch.sigmoid(gate * experts.alpha))
            else:
                gate, up = both.chunk(2, dim=1)
                middle = experts.act_fn(gate) * up
            middle = quantize(middle, INPUT, arithmetic="exact")
            rows["gate_up", expert].append(read)
            rows["down", expert].append(middle)
            answer = F.linear(middle, matrix(experts.down_proj, expert))
            if transposed:
                answer = answer + experts.down_proj_bias[expert]
            out.index_add_(0, token, answer * weights[token, place, None])
        return out

    return forward


@torch.no_grad()
def inputs_by_hand(name: str, weights: dict[str, Encoded], batches: list[Tensor]) -> dict[tuple[str, int], Tensor]:
    """Return what each matrix of each expert of each layer multiplies where the weights have been solved for."""
    model = build(name)
    operands = find_operands(model)
    rows: dict[str, Rows] = {}
    for operand_name, weight in weights.items():
        operands[operand_name].weight.copy_(decode(weight))
        module = operands[operand_name].module
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (quantize(args[0], INPUT, arithmetic="exact"),))
    for module_name, module in model.named_modules():
        if module_name.endswith(".experts"):
            module.forward = loop(module, rows.setdefault(module_name, defaultdict(list)))  # type: ignore[assignment]
    for batch in batches:
        model(batch, use_cache=False)
    return {
        (f"{module_name}.{expert}", parameter): torch.cat(parts)
        for module_name, of_module in rows.items()
        for (parameter, expert), parts in of_module.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_expert_is_solved_on_the_tokens_that_reach_it_in_the_finished_model(name: str) -> None:
    solved, asked = solve(name)
    operands = {name: operand for name, operand in find_operands(build(name)).items() if operand.expert is not None}
    assert len(operands) == 2 * 4 * 3 and solved.weights.keys() >= operands.keys()
    rows = inputs_by_hand(name, solved.weights, BATCHES)
    for operand_name, operand in operands.items():
        expert, _, projection = operand_name.rpartition(".")
        x = rows[expert, "down" if projection == "down_proj" else "gate_up"].double()
        assert len(x) >= x.shape[1] / 4
        wanted = (2 * x.T @ x / len(x)).float()
        torch.testing.assert_close(asked.hessian_of(operand), wanted, rtol=1e-3, atol=1e-5, msg=operand_name)
    every = [len(x) for (_, parameter), x in rows.items() if parameter == "down"]
    assert sum(every) == 2 * 2 * sum(batch.numel() for batch in BATCHES)  # layers, experts a token
    assert solved.experts is not None and solved.experts.fewest == min(every)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_gptq_of_an_expert_is_gptq_on_its_tokens_and_lowers_the_error(name: str) -> None:
    solved, asked = solve(name, solver=Asked(by_gptq))
    for operand in find_operands(build(name)).values():
        if operand.expert is None or operand.layer != 1:
            continue
        weight, hessian, found = (
            operand.weight.contiguous(),
            asked.hessian_of(operand),
            decode(solved.weights[operand.name]),
        )
        nearest = BlockScales.of(weight, WEIGHT).quantize(weight, WEIGHT)
        assert hessian_loss(weight, found, hessian) < 0.9 * hessian_loss(weight, nearest, hessian)
        # Rows do not sway each other, but in how sums are rounded, which can tip an element.
        assert (found != decode(by_gptq(weight, hessian, WEIGHT))).float().mean() < 0.01
    model = build(name)
    tokens = BATCHES[0]
    with torch.no_grad():
        plain = model(tokens).logits
        with quantize_model(model, RECIPE):
            rounded = (model(tokens).logits - plain).square().mean()
        with quantize_model(model, RECIPE, prepared=Prepared(weights=solved.weights)):
            calibrated = (model(tokens).logits - plain).square().mean()
        assert calibrated < rounded
        assert torch.equal(model(tokens).logits, plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_as_it_was(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    solve_weights(model, replace(RECIPE, rotation=Rotation(("gate", "down"), 32)), Prepared(), BATCHES, Asked())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("recipe", ["plain", "up rotated", "formats"])
def test_few_hessians_at_a_time_give_the_same(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {
        "plain": RECIPE,
        "up rotated": replace(RECIPE, rotation=Rotation(("up",), 32)),
        "formats": replace(
            RECIPE,
            modules=(
                ("*.experts.1.*", LinearFormats()),
                ("*.experts.2.up_proj", LinearFormats(MXFormat("int8"), INPUT)),
                ("*.experts.3.down_proj", LinearFormats(None, INPUT)),
            ),
        ),
    }
    whole, asked = solve("mixtral", recipes[recipe])
    monkeypatch.setattr(stages, "HESSIAN_BYTES", 2 * 64 * 64 * 4)
    parted, again = solve("mixtral", recipes[recipe])
    assert whole.weights.keys() == parted.weights.keys()
    assert equal_weights(parted, whole)
    assert len(asked.hessians) == len(again.hessians) and whole.experts == parted.experts
    assert all(torch.equal(one, other) for one, other in zip(asked.hessians, again.hessians, strict=True))
    expert = "model.layers.0.mlp.experts"
    solved = {name for name in whole.weights if name.startswith(expert)}
    missing = {f"{expert}.1.gate_proj", f"{expert}.1.up_proj", f"{expert}.1.down_proj", f"{expert}.3.down_proj"}
    assert len(solved) == (8 if recipe == "formats" else 12) and (recipe != "formats" or not missing & solved)


def test_the_split_into_batches_does_not_matter() -> None:
    together, asked = solve("qwen3_moe")
    alone, again = solve("qwen3_moe", batches=[row for batch in BATCHES for row in batch.split(1)])
    assert together.experts == alone.experts
    for one, other in zip(asked.hessians, again.hessians, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert equal_weights(alone, together)


@pytest.mark.parametrize("length", [9, 40])  # of 18 or 80 pairs with four experts, none has 96, some fewer than 24
def test_experts_that_few_tokens_reach_are_rounded_and_counted(length: int) -> None:
    lengths = [length]
    solved, asked = solve("mixtral", solver=Asked(by_gptq), batches=batches_of(lengths))
    rows = inputs_by_hand("mixtral", solved.weights, batches_of(lengths))
    counts = {expert: len(x) for (expert, parameter), x in rows.items() if parameter == "down"}
    assert 0 in counts.values() or length == 40, "the case must hold an expert that no token reaches"
    assert min(counts.values()) < 24 and (max(counts.values()) >= 24) == (length == 40), "the case must hold both"
    operands = find_operands(build("mixtral"))
    for expert, count in counts.items():
        for role in ("gate", "up", "down"):
            operand = operands[f"{expert}.{role}_proj"]
            weight, channels = operand.weight.contiguous(), operand.shape[1]
            if count < channels / 4:
                assert torch.equal(asked.hessian_of(operand), torch.eye(channels))
                on_searched_scales = search_scales(weight, WEIGHT).quantize(weight, WEIGHT)
                assert torch.equal(decode(solved.weights[operand.name]), on_searched_scales)
    assert solved.experts == ExpertTokens(
        experts=8,
        unreached=sum(count == 0 for count in counts.values()),
        rounded=sum(count < 96 / 4 for count in counts.values()),
        few=8,
        fewest=min((count for count in counts.values() if count >= 96 / 4), default=None),
    )


@pytest.mark.parametrize(
    ("counted", "logged", "said"),
    [
        (ExpertTokens(8, 1, 3, 8, 30), "5 experts were calibrated on the tokens that reach each, 30 at the least",
         "1 of them none. The 3 with fewer than 25% of that were rounded to nearest on the scales of least weight "
         "error, the others calibrated on what they got. More"),
        (ExpertTokens(8, 0, 0, 2, 30), "8 experts were calibrated on the tokens that reach each, 30 at the least",
         "0 of them none. All were calibrated on what they got. More"),
        (ExpertTokens(8, 8, 8, 8, None), None, "8 of them none. The 8 with"),
    ],
)  # fmt: skip
def test_what_is_said_of_experts(
    counted: ExpertTokens, logged: str | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench = Workbench(build("mixtral"), compose(["format=mxfp4"]), lambda *_: None)
    _account_for_experts(bench, counted)
    assert [record.message for record in caplog.records if record.levelname == "INFO"] == [logged] * bool(logged)
    (warning,) = bench.result.warnings
    assert said in warning


def test_an_interrupted_calibration_goes_on_and_comes_to_the_same() -> None:
    whole, _ = solve("gpt_oss", key="whole")
    first = len(solve("gpt_oss")[1].hessians) // 2

    class Stopped(Asked):
        def __call__(self, *args: Any) -> Tensor:
            if len(self.hessians) == first + 5:  # among the experts of the second block
                raise KeyboardInterrupt
            return super().__call__(*args)

    with pytest.raises(KeyboardInterrupt):
        solve("gpt_oss", solver=Stopped(), key="stopped")
    rest, asked = solve("gpt_oss", key="stopped")
    assert rest.blocks_kept == 1 and len(asked.hessians) == first
    again, asked = solve("gpt_oss", key="stopped")
    assert again.blocks_kept == 2 and not asked.hessians
    for other in (rest, again):
        assert other.experts == whole.experts and other.weights.keys() == whole.weights.keys()
        assert equal_weights(other, whole)


def test_a_block_that_did_not_fit_in_memory_is_solved_anew() -> None:
    """With the error raised late, when matrices of experts were replaced in place."""
    whole, _ = solve("mixtral")

    class OutOnce(Asked):
        out = False

        def __call__(self, weight: Tensor, hessian: Tensor | None, fmt: MXFormat) -> Encoded:
            if len(self.hessians) == 7 and not self.out:
                self.out = True
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(weight, hessian, fmt)

    halved, asked = solve("mixtral", solver=OutOnce())
    assert asked.out
    assert halved.experts == whole.experts
    assert equal_weights(halved, whole)


def test_a_run_counts_experts_and_warns_of_those_that_few_tokens_reach(tmp_path: Path) -> None:
    folder = tmp_path / "mixtral"
    tokenizer = AutoTokenizer.from_pretrained(model_folder("embedded"))
    model = build("mixtral")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = [
        "model=hf", f"model.path={folder}", "model.device=cpu", "format=mxfp4", "limit=2", "ptq=gptq",
        "calibration=stories", "calibration.samples=3", "calibration.length=16",
    ]  # fmt: skip
    done = run(compose(words), tmp_path / "run")
    assert done["status"] == "done", done["error"]
    counted = done["remedies"]["ptq"]
    assert counted["experts"] == 8 and counted["layers"] == 8 * 3 + 2 * 4
    few, rounded, unreached = (counted[f"experts_{name}"] for name in ("few", "rounded", "unreached"))
    assert 8 == few >= rounded >= unreached
    warning = done["warnings"][0]
    assert warning.startswith(
        f"ptq.method: 8 of 8 experts got fewer calibration tokens than they have channels, {unreached} of them none. "
        f"The {rounded} with fewer than 25% of that were rounded"
    )
    assert "calibration.samples (3 here)" in warning
    assert_warned_everywhere(tmp_path / "run", warning)
    again = run(compose(words), tmp_path / "again")
    said = {"cached": False, "seconds": 0, "kept_seconds": 0}
    assert again["remedies"]["ptq"] | said == counted | said
    assert again["remedies"]["ptq"]["cached"] and again["warnings"] == done["warnings"]
    searched = run(compose([*words, "rotation=search", "rotation.judge=ptq", "rotation.matmuls=[down]"]))
    assert searched["status"] == "done", searched["error"]
    assert len(searched["remedies"]["search"]["steps"]) == 1


def test_taps_are_told_what_is_multiplied() -> None:
    model = build("mixtral")
    told: list[Any] = []
    with torch.no_grad(), quantize_model(model, RECIPE):
        experts: Any = model.model.layers[0].mlp.experts
        assert isinstance(experts, MXExperts)
        experts.tap = lambda parameter, products: told.append((parameter, [names for names, _ in products]))
        experts(torch.randn(3, 64), torch.tensor([[0], [2], [2]]), torch.ones(3, 1))
    prefix = "model.layers.0.mlp.experts"
    assert told == [
        ("gate_up_proj", [(f"{prefix}.{expert}.gate_proj", f"{prefix}.{expert}.up_proj") for expert in (0, 2)]),
        ("down_proj", [(f"{prefix}.{expert}.down_proj",) for expert in (0, 2)]),
    ]
