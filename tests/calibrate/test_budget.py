"""`ptq.budget`: the solver against brute force, what is measured and counted, and the recipe that can be rerun."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.mixtures import build

from mxsweep.calibrate.budget import Choice, choose_formats, counted_modules, measure_costs, spend
from mxsweep.calibrate.budget_recipe import recipe_yaml
from mxsweep.config.candidates import resolve_candidates
from mxsweep.config.format_config import FormatConfig
from mxsweep.config.overrides import prepare
from mxsweep.config.run_config import RunConfig
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.forward.sequence_loss import Divergence
from mxsweep.model.load import load_model
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import MXFormat
from mxsweep.sweeps.impossible import why_impossible
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError


def both(element: str) -> LinearFormats:
    return LinearFormats(MXFormat(element), MXFormat(element))


CANDIDATES = {"mxfp4": both("fp4_e2m1"), "mxfp6_e2m3": both("fp6_e2m3"), "mxfp8_e4m3": both("fp8_e4m3")}
AUTO = dict.fromkeys(("block_size", "scale", "tensor_scale"), "auto")


def calibration(model: Any, sequences: int = 4, length: int = 48) -> Any:
    """Random tokens: what the sequences hold is another test's."""
    generator = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    return SimpleNamespace(sequences=tuple(generator.integers(0, vocabulary, length) for _ in range(sequences)))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model("embedded", device="cpu").model


def brute_force(sizes: Any, cost: Any, budget: float, fixed: tuple[int, int]) -> tuple[float, int] | None:
    """The least (cost, bits) over every choice that keeps the budget."""
    weights = fixed[1] + sum(math.prod(shape) for shape in sizes.values())
    best = None
    for names in itertools.product(CANDIDATES, repeat=len(sizes)):
        pairs = list(zip(sizes, names, strict=True))
        bits = fixed[0] + sum(CANDIDATES[n].weight.stored_bits(sizes[m]) for m, n in pairs)  # type: ignore[union-attr]
        if bits <= budget * weights:
            found = (math.fsum(cost[m][n] for m, n in pairs), bits)
            best = found if best is None else min(best, found)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_the_solver_finds_what_brute_force_finds(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {f"m{i}": (rng.choice([8, 24, 64]), rng.choice([32, 40, 256])) for i in range(rng.randint(1, 6))}
    # Whole costs make ties; tiny and huge ones try the tolerances.
    unit = rng.choice([1.0, 1e-7, 1e5])
    draw = (lambda: rng.randint(0, 3)) if seed % 2 else rng.random
    cost = {module: {name: unit * draw() for name in CANDIDATES} for module in sizes}
    fixed = rng.choice([(0, 0), (8 * 500, 500)])
    budget = rng.choice([4.3, 4.5, 5.25, 6.0, 7.7, 9.0])
    expected = brute_force(sizes, cost, budget, fixed)
    if expected is None:
        with pytest.raises(ConfigError, match=r"^ptq\.budget: "):
            choose_formats(sizes, CANDIDATES, cost, budget, fixed=fixed)
        return
    choice = choose_formats(sizes, CANDIDATES, cost, budget, fixed=fixed)
    weights = fixed[1] + sum(math.prod(shape) for shape in sizes.values())
    assert choice.predicted_loss == pytest.approx(expected[0], rel=1e-9, abs=1e-9 * unit)
    assert round(choice.bits_per_weight * weights) == expected[1]
    assert choice == choose_formats(sizes, CANDIDATES, cost, budget, fixed=fixed)
    assert list(choice.formats) == list(sizes)


def test_a_large_instance_is_no_worse_than_a_greedy_answer_and_within_the_linear_bound() -> None:
    """224 modules: by weak duality, min over choices of cost + price * (bits - budget) is a lower bound."""
    rng = random.Random(0)
    shapes = [(2048, 2048), (512, 2048), (8192, 2048), (2048, 8192)]
    sizes = {f"m{i}": shapes[i % 4] for i in range(224)}
    cost: dict[str, dict[str, float]] = {}
    for module in sizes:
        worst = 10 ** rng.uniform(-6, -2)
        cost[module] = {"mxfp4": worst, "mxfp6_e2m3": worst / 20, "mxfp8_e4m3": worst / 50}
    bits = {m: {n: f.weight.stored_bits(s) for n, f in CANDIDATES.items() if f.weight} for m, s in sizes.items()}
    capacity = 4.5 * sum(math.prod(shape) for shape in sizes.values())
    choice = choose_formats(sizes, CANDIDATES, cost, 4.5)
    assert sum(bits[m][n] for m, n in choice.formats.items()) <= capacity

    def dual(price: float) -> float:
        return sum(min(cost[m][n] + price * bits[m][n] for n in CANDIDATES) for m in sizes) - price * capacity

    bound = max(dual(10**exponent) for exponent in np.linspace(-13, -6, 2000))
    assert bound <= choice.predicted_loss <= bound * 1.01


def test_equal_losses_are_had_with_the_fewest_bits() -> None:
    sizes = {"a": (4, 64), "b": (4, 64)}
    choice = choose_formats(sizes, CANDIDATES, {m: dict.fromkeys(CANDIDATES, 0.25) for m in sizes}, 9)
    assert choice.formats == {"a": "mxfp4", "b": "mxfp4"} and choice.bits_per_weight == 4.25


def test_a_budget_that_is_met_exactly() -> None:
    sizes = {"a": (4, 64), "b": (4, 64)}
    cost = {"a": {"mxfp4": 2.0, "mxfp6_e2m3": 1.0, "mxfp8_e4m3": 1.0}, "b": dict.fromkeys(CANDIDATES, 0.0)}
    assert choose_formats(sizes, CANDIDATES, cost, 5.25).formats == {"a": "mxfp6_e2m3", "b": "mxfp4"}
    assert choose_formats(sizes, CANDIDATES, cost, 5.2499).formats == {"a": "mxfp4", "b": "mxfp4"}


def test_what_cannot_be_chosen() -> None:
    sizes = {"a": (3, 33)}  # two scales a row: 4 + 16 / 33
    cost = {"a": dict.fromkeys(CANDIDATES, 1.0)}
    message = r"^ptq\.budget: 4\.25 bits a weight cannot be kept .* from 4\.4849, which .* to 8\.4849, the most$"
    with pytest.raises(ConfigError, match=message):
        choose_formats(sizes, CANDIDATES, cost, 4.25)
    assert choose_formats(sizes, CANDIDATES, cost, 4.4849).formats == {"a": "mxfp4"}
    broken = {"a": {"mxfp4": math.nan, "mxfp6_e2m3": math.inf, "mxfp8_e4m3": 3.0}}
    assert choose_formats(sizes, CANDIDATES, broken, 9).formats == {"a": "mxfp8_e4m3"}
    with pytest.raises(ConfigError, match=r"^ptq\.formats: .* a leave the model with finite predictions"):
        choose_formats(sizes, CANDIDATES, {"a": dict.fromkeys(CANDIDATES, math.nan)}, 9)


def test_what_a_name_means() -> None:
    run = FormatConfig("fp4_e2m1", "fp6_e2m3", 64, "e5m3", False)
    found = resolve_candidates(["mxfp4", "nvfp4", "mxfp4_e2m1", "int8"], run, AUTO)
    assert found == {
        "mxfp4": FormatConfig("fp4_e2m1", "fp4_e2m1", 32, "e8m0", False),
        "nvfp4": FormatConfig("fp4_e2m1", "fp4_e2m1", 16, "e4m3", True),
        "mxfp4_e2m1": FormatConfig("fp4_e2m1", "fp6_e2m3", 64, "e5m3", False),
        "int8": FormatConfig("int8", "fp6_e2m3", 64, "e5m3", False),
    }
    explicit = resolve_candidates(["nvfp4"], run, AUTO | {"block_size": 128})
    assert (explicit["nvfp4"].block_size, explicit["nvfp4"].scale) == (128, "e4m3")
    with pytest.raises(ConfigError, match=r"^ptq\.formats: 'none' leaves weights as they are"):
        resolve_candidates(["mxfp4", "none"], run, AUTO)
    with pytest.raises(ConfigError, match=r"^ptq\.formats: 'mxfp4' stands there twice"):
        resolve_candidates(["mxfp4", "mxfp4"], run, AUTO)


def test_each_cost_is_that_of_one_module_alone(tiny: Any) -> None:
    tokens = calibration(tiny)
    divergence = Divergence(tiny, tokens.sequences)
    kept_patterns = tuple((f"model.layers.{i}.*", LinearFormats()) for i in (1, 2))
    recipe = Recipe(linear=both("int4"), key=MXFormat("fp4_e2m1"), modules=kept_patterns)
    told: list[Any] = []
    first = {"model.layers.0.self_attn.q_proj": {"mxfp4": 123.0}}
    two = {name: CANDIDATES[name] for name in ("mxfp4", "mxfp8_e4m3")}
    saved: list[int] = []
    costs = measure_costs(
        tiny, recipe, two, divergence, lambda *a: told.append(a), known=first, keep=lambda c: saved.append(len(c))
    )
    assert set(costs) == {name for name, _ in tiny.named_modules() if "layers.0" in name and name.endswith("_proj")}
    assert told == [(n, 7) for n in range(1, 8)] and saved == list(range(1, 8))
    assert costs["model.layers.0.self_attn.q_proj"]["mxfp4"] == 123.0  # known, and not measured again
    assert first == {"model.layers.0.self_attn.q_proj": {"mxfp4": 123.0}}
    down = "model.layers.0.mlp.down_proj"
    with quantize_model(tiny, Recipe(modules=((down, both("fp4_e2m1")),))):
        assert costs[down]["mxfp4"] == divergence()
    assert all(0 < of["mxfp8_e4m3"] < of["mxfp4"] for of in costs.values())
    assert divergence() == 0  # the model is as it was


def test_a_choice_keeps_its_budget_as_the_record_counts_it(tiny: Any) -> None:
    recipe = Recipe(linear=both("fp4_e2m1"), modules=(("lm_head", LinearFormats(MXFormat("int8"))),))
    tokens = calibration(tiny)
    told: list[Any] = []
    solved, choice, account = spend(tiny, recipe, CANDIDATES, 5.0, tokens.sequences, lambda *a: told.append(a))
    with quantize_model(tiny, solved) as report:
        assert report.bits_per_weight == pytest.approx(choice.bits_per_weight, rel=1e-12)
    assert 4.9 < choice.bits_per_weight <= 5.0
    assert len(choice.formats) == 21 and "lm_head" not in choice.formats
    assert {layer.name: layer.weight for layer in report.layers}["lm_head"] == MXFormat("int8")
    assert account["bits_per_weight"] == choice.bits_per_weight
    assert sum(account["counts"].values()) == 21 and set(account["costs"]) == set(choice.formats)
    assert account["predicted_kl_nats"] == pytest.approx(
        sum(account["costs"][module][name] for module, name in choice.formats.items())
    )
    assert told[-1] == (21, 21)
    # With the costs known, another budget needs no measurement.
    known = account["costs"]
    again = spend(tiny, recipe, CANDIDATES, 5.0, tokens.sequences, lambda *a: told.append(a), known=known)
    assert again == (solved, choice, account) and len(told) == 21
    _, other, _ = spend(tiny, recipe, CANDIDATES, 6.0, tokens.sequences, known=known)
    assert other.predicted_loss < choice.predicted_loss


def test_more_bits_predict_and_leave_less_loss(tiny: Any) -> None:
    tokens = calibration(tiny)
    divergence = Divergence(tiny, tokens.sequences)
    sizes, fixed = counted_modules(tiny, Recipe(), CANDIDATES)
    assert fixed == (0, 0) and len(sizes) == 21
    costs = measure_costs(tiny, Recipe(), CANDIDATES, divergence)
    predicted, found = [], []
    for budget in (4.5, 5.0, 6.5):  # an embedded model's rows are short of a block: mxfp4 takes a little over 4.25
        choice = choose_formats(sizes, CANDIDATES, costs, budget)
        predicted.append(choice.predicted_loss)
        modules = tuple((module, CANDIDATES[name]) for module, name in choice.formats.items())
        with quantize_model(tiny, Recipe(modules=modules)):
            found.append(divergence())
    assert predicted == sorted(predicted, reverse=True) and found == sorted(found, reverse=True)


def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_measured(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("mxsweep.forward.sequence_loss.Divergence.__init__", never)
    with pytest.raises(ConfigError, match=r"^ptq\.budget: 3 bits"):
        spend(tiny, Recipe(), CANDIDATES, 3.0, calibration(tiny).sequences)
    with pytest.raises(ConfigError, match=r"^ptq\.budget: modules leaves no linear layer"):
        spend(tiny, Recipe(modules=(("*", LinearFormats()),)), CANDIDATES, 5.0, calibration(tiny).sequences)


def composed(folder: Path, *words: str) -> RunConfig:
    overrides, _ = prepare(["experiment=mixed", *words], folder)
    (run,) = plan(overrides, False, folder).runs
    assert run.config is not None, run.error
    return run.config


def test_the_recipe_can_be_rerun(tmp_path: Path) -> None:
    formats = {
        "model.layers.0.self_attn.q_proj": "mxfp4",
        "model.layers.0.mlp.down_proj": "mxfp8_e4m3",
        "model.layers.1.mlp.down_proj": "fp6_e2m3",
        "model.layers.2.mlp.down_proj": "nvfp4",
    }
    choice = Choice(formats, 0.01234, 5.125, 5.25)
    fixed = {
        "lm_head": FormatConfig("int8", "none", (2, 16), "e5m3", False),
        "model.layers.1.self_attn.*": FormatConfig("none", "none", 32, "e8m0", False),
    }
    words = ["format=w4a6", "ptq.budget=5.25", "ptq.formats=[mxfp4]", "block_size=16", "model.path=a b"]
    text = recipe_yaml(choice, fixed=fixed, overrides=words)
    assert text.startswith("# @package _global_\n# A format for each module, chosen for at most 5.25 bits a weight")
    assert (
        "\n# 5.1250: mxfp4 in 1, mxfp8_e4m3 in 1, fp6_e2m3 in 1, nvfp4 in 1 modules.\n# Predicted loss: 0.01234" in text
    )
    assert "--config-dir FOLDER experiment=NAME format=w4a6 block_size=16 'model.path=a b'\n" in text
    assert list(yaml.safe_load(text)["modules"]) == [*formats, *fixed]  # of patterns that match, the last decides
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mixed.yaml").write_text(text)
    for words, block in (([], "auto"), (["format=nvfp4"], "auto"), (["format=mxint8", "block_size=16"], 16)):
        config = composed(tmp_path, *words)
        explicit = AUTO | {"block_size": block}
        assert config.modules == fixed | {
            module: resolve_candidates([name], config.format, explicit)[name] for module, name in formats.items()
        }
    # As an element, with the run's format of inputs, block size and scale; an option with its own.
    recipe = composed(tmp_path, "format=w4a6", "block_size=16").recipe
    assert recipe.formats_of("model.layers.0.mlp.down_proj", True) == LinearFormats(
        MXFormat("fp8_e4m3", 16), MXFormat("fp8_e4m3", 16)
    )
    assert recipe.formats_of("model.layers.1.mlp.down_proj", True) == LinearFormats(
        MXFormat("fp6_e2m3", 16), MXFormat("fp6_e2m3", 16)
    )
    assert recipe.formats_of("lm_head", False) == LinearFormats(MXFormat("int8", (2, 16), "e5m3"))
    assert recipe.formats_of("model.layers.1.self_attn.k_proj", True) == LinearFormats()


def mixture() -> tuple[Any, Recipe, dict[str, LinearFormats]]:
    """Return a mixture of experts, of which one has a format of its own, and candidates."""
    kept = (("*.experts.1.*", both("int8")), ("*.layers.1.self_attn.*", LinearFormats()))
    return build("mixtral"), Recipe(both("fp4_e2m1"), modules=kept), dict(list(CANDIDATES.items())[:2])


def test_the_experts_of_a_layer_are_one_choice_a_role_and_measured_together() -> None:
    model, recipe, candidates = mixture()
    sizes, _ = counted_modules(model, recipe, candidates)
    prefix = "model.layers.0.mlp.experts"
    groups = {f"model.layers.{layer}.mlp.experts.*.{role}_proj" for layer in (0, 1) for role in ("gate", "up", "down")}
    attention = {f"model.layers.0.self_attn.{role}_proj" for role in "qkvo"}
    assert sizes.keys() == groups | attention
    assert sizes[f"{prefix}.*.down_proj"] == (3, 64, 96) and sizes[f"{prefix}.*.up_proj"] == (3, 96, 64)
    divergence = Divergence(model, calibration(model, 2, 24).sequences)
    costs = measure_costs(model, recipe, candidates, divergence)
    assert costs.keys() == sizes.keys()
    one_by_one = tuple((f"{prefix}.{expert}.down_proj", both("fp4_e2m1")) for expert in (0, 2, 3))
    with quantize_model(model, Recipe(modules=one_by_one)):
        assert costs[f"{prefix}.*.down_proj"]["mxfp4"] == divergence()
    assert divergence() == 0


def test_a_budget_is_of_what_the_record_counts_whatever_stays_as_it_is(tmp_path: Path) -> None:
    model, recipe, candidates = mixture()
    sequences = calibration(model, 2, 24).sequences
    # Routers and the attention of a layer stay as they are, in 32 bits.
    message = r"mxfp6_e2m3 and \d+\.\d+ for the \d\d\.\d% not chosen for; allowed: from \S+, which is the least"
    with pytest.raises(ConfigError, match=message) as refused:
        spend(model, recipe, candidates, 4.5, sequences)
    least = float(str(refused.value).partition("from ")[2].partition(",")[0])
    for budget in (least, least + 0.5):
        solved, choice, account = spend(model, recipe, candidates, budget, sequences)
        with quantize_model(model, solved) as report:
            assert report.bits_per_weight == pytest.approx(choice.bits_per_weight, rel=1e-12)
            assert report.bits_per_weight <= budget
        assert account["bits_per_weight"] == choice.bits_per_weight
        formats = {layer.name: layer.weight for layer in report.layers}
        assert formats["model.layers.0.mlp.experts.1.up_proj"] == MXFormat("int8")
        assert "model.layers.1.self_attn.q_proj" not in formats
        for group, name in choice.formats.items():
            for expert in "023":
                assert formats[group.replace("*", expert)] == candidates[name].weight
    assert set(choice.formats.values()) == set(candidates)
    # The file that is left means the same.
    fixed = {"*.experts.1.*": FormatConfig("int8", "int8", 32, "e8m0", False)}
    fixed["*.layers.1.self_attn.*"] = FormatConfig("none", "none", 32, "e8m0", False)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mixed.yaml").write_text(recipe_yaml(choice, fixed=fixed))
    again = composed(tmp_path, "format=mxfp4").recipe
    with quantize_model(model, again) as report:
        assert {layer.name: layer.weight for layer in report.layers} == formats


def test_a_budget_that_the_shapes_rule_out_is_refused_when_planned(tmp_path: Path) -> None:
    build("mixtral").save_pretrained(tmp_path)
    words = ["model=hf", f"model.path={tmp_path}", "format=mxfp4", "calibration=stories", "ptq.formats=[mxfp4]"]

    def why(*more: str) -> str | None:
        (run,) = plan(prepare([*words, *more])[0], False).runs
        return why_impossible(run)

    refusal = why("ptq.budget=4.25")
    assert refusal is not None and refusal.startswith("ptq.budget: 4.25 bits a weight cannot be kept")
    matrices, router = 4 * 3 * 96 * 64 + 2 * 64 * 64 + 2 * 64 * 32, 4 * 64
    least = math.ceil((4.25 * matrices + 32 * router) / (matrices + router) * 1e4) / 1e4
    assert f"and 32 for the {router / (matrices + router):.1%} not chosen for; allowed: from {least}," in refusal
    assert why(f"ptq.budget={least}") is None


def test_the_costs_need_no_gradients(tiny: Any) -> None:
    divergence = Divergence(tiny, calibration(tiny, 1).sequences)
    assert not any(tensor.requires_grad for tensor in divergence._unquantized)
    assert torch.is_grad_enabled()
