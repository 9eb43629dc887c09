"""Weights solved for layer by layer: what each is solved with, what is kept on disk, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.decoded import decoded
from helpers.token_reader import token_reader
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.sequential import SolvedWeights, solve_weights
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation
from mxsweep.forward.batches import unpadded_batches
from mxsweep.model.linear import MXLinear
from mxsweep.model.load import load_model
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import Encoded, MXFormat, decode, encode
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import silent

pytestmark = pytest.mark.usefixtures("own_cache")

FP4, INT4 = MXFormat("fp4_e2m1"), MXFormat("int4")
RECIPE = Recipe(linear=LinearFormats(FP4, MXFormat("fp6_e2m3")), key=FP4, value=FP4, arithmetic="exact")
BLOCKS, LAYERS = 3, 21  # of the embedded model


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    rng = np.random.default_rng(0)
    lengths = [24] * 6 + [17] * 3
    return unpadded_batches([rng.integers(2, 100, length) for length in lengths], torch.device("cpu"))


class Rounding:
    """A solver that rounds, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, MXFormat]] = []

    def __call__(self, weight: Tensor, hessian: Tensor, fmt: MXFormat) -> Encoded:
        self.asked.append((weight.clone(), hessian.clone(), fmt))
        return encode(weight, fmt)


def solve(
    recipe: Recipe, batches: list[Tensor], solver: Any = None, key: str = "test", told: Any = None
) -> tuple[SolvedWeights, Any]:
    model = load_model("embedded", device="cpu").model
    solver = solver or Rounding()
    told = told or silent
    return solve_weights(model, recipe, Prepared(), batches, solver, Artefact({"key": key}), told), solver


def hessians_of(recipe: Recipe, weights: dict[str, Encoded], batches: list[Tensor]) -> dict[str, Tensor]:
    """2 x^T x / tokens of what every layer multiplies in the finished model."""
    model = load_model("embedded", device="cpu").model
    seen: dict[str, list[Tensor]] = {}
    with torch.no_grad(), quantize_model(model, recipe, prepared=Prepared(weights=weights)):
        for name, module in model.named_modules():
            if isinstance(module, MXLinear):
                module.taps[name] = seen.setdefault(name, []).append
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    rows = {name: torch.cat([x.flatten(0, -2) for x in xs]).double() for name, xs in seen.items()}
    return {name: (2 * x.T @ x / len(x)).float() for name, x in rows.items()}


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
def test_each_weight_is_solved_on_the_inputs_of_the_finished_model(rotated: bool, batches: list[Tensor]) -> None:
    # What comes later in the pass does not change what a layer reads, so what it reads in the finished model is what it
    # must have been solved with.
    recipe = replace(RECIPE, rotation=Rotation(("q", "down"), 32) if rotated else None)
    attention = [("q_proj",), ("k_proj", "v_proj")] if rotated else [("q_proj", "k_proj", "v_proj")]
    groups = [*attention, ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    solved, solver = solve(recipe, batches)
    assert len(solved.weights) == LAYERS
    wanted = hessians_of(recipe, solved.weights, batches)
    for name in solved.weights:
        block, kind = int(name.split(".")[2]), name.split(".")[-1]
        group = next(index for index, names in enumerate(groups) if kind in names)
        _, hessian, _ = solver.asked[block * len(groups) + group]
        torch.testing.assert_close(hessian, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_layers_that_read_one_tensor_are_solved_together(batches: list[Tensor]) -> None:
    _, solver = solve(RECIPE, batches)
    rows = [len(weight) for weight, _, _ in solver.asked]
    hidden, kv, mlp = 128, 64, 256
    assert rows == [hidden + 2 * kv, hidden, 2 * mlp, hidden] * BLOCKS
    _, solver = solve(replace(RECIPE, rotation=Rotation(("q",), 0)), batches, key="rotated")
    assert [len(weight) for weight, _, _ in solver.asked][:3] == [hidden, 2 * kv, hidden]


def test_formats_and_per_tensor_scales_are_kept_apart(batches: list[Tensor]) -> None:
    mixed = replace(RECIPE, modules=(("*.k_proj", LinearFormats(INT4, FP4)), ("*.up_proj", LinearFormats())))
    solved, solver = solve(mixed, batches)
    assert {fmt for _, _, fmt in solver.asked} == {FP4, INT4}
    assert not any(name.endswith("up_proj") for name in solved.weights)
    nvfp4 = MXFormat("fp4_e2m1", block_size=16, scale="e4m3", tensor_scale=True)
    _, solver = solve(Recipe(linear=LinearFormats(nvfp4, nvfp4), arithmetic="exact"), batches, key="nvfp4")
    assert len(solver.asked) == LAYERS  # one by one: each has a scale of its own


def test_finished_blocks_are_not_solved_again(batches: list[Tensor]) -> None:
    whole, _ = solve(RECIPE, batches, key="whole")
    assert (whole.blocks, whole.blocks_kept) == (BLOCKS, 0)

    class Stopped(Rounding):
        def __call__(self, *args: Any) -> Tensor:
            if len(self.asked) == 6:  # in the second block
                raise KeyboardInterrupt
            return super().__call__(*args)

    with pytest.raises(KeyboardInterrupt):
        solve(RECIPE, batches, Stopped(), key="stopped")
    told: list[tuple[int, int]] = []
    rest, solver = solve(RECIPE, batches, key="stopped", told=lambda *progress: told.append(progress[:2]))
    assert rest.blocks_kept == 1
    assert len(solver.asked) == 8
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert rest.weights.keys() == whole.weights.keys()
    assert all(torch.equal(weight, decode(whole.weights[name])) for name, weight in decoded(rest.weights).items())
    again, solver = solve(RECIPE, batches, key="stopped")
    assert again.blocks_kept == BLOCKS
    assert solver.asked == []


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotary_embeddings_do_not_remember_other_batches(rope: str) -> None:
    """Frequencies that depend on length, by two batches in either order, and by each alone in a model of its own."""
    parameters: dict[str, Any] = {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0}
    if rope == "longrope":
        parameters |= {"original_max_position_embeddings": 16, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=16,
        max_position_embeddings=16 if rope == "dynamic" else 64, rope_parameters=parameters, initializer_range=0.3,
    )  # fmt: skip

    def hessians(*batches: Tensor) -> list[Tensor]:
        torch.manual_seed(0)
        solver = Rounding()
        solve_weights(LlamaForCausalLM(config).eval(), RECIPE, Prepared(), batches, solver)
        return [hessian for _, hessian, _ in solver.asked]

    drawn = np.random.default_rng(0)
    long, short = (torch.from_numpy(drawn.integers(1, 97, (1, length))) for length in (40, 12))
    one, other = hessians(long, short), hessians(short, long)
    each = [(40 * a + 12 * b) / 52 for a, b in zip(hessians(long), hessians(short), strict=True)]
    for of_one, of_other, of_each in zip(one, other, each, strict=True):
        torch.testing.assert_close(of_one, of_other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(of_one, of_each, rtol=1e-4, atol=1e-4)


def test_a_model_without_blocks_is_refused(batches: list[Tensor]) -> None:
    with pytest.raises(ConfigError, match="no decoder blocks"):
        solve_weights(
            token_reader(torch.nn.Linear(1, 2)),
            RECIPE,
            Prepared(),
            batches,
            Rounding(),
            Artefact({"key": "bare"}),
        )
