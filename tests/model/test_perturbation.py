"""Repeats with rounding-sized perturbations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.token_reader import token_reader
from torch import nn

from mxsweep import compose, run
from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.load import load_model
from mxsweep.model.perturbation import perturbed
from mxsweep.terminal.errors import ConfigError

QUANTIZED = ["format=w4a6", "kv_quant=fp4_e2m1", "limit=60", "model.device=cpu"]


def done(*words: str, folder: Path | None = None, progress: Callable[[int, int], object] | None = None) -> Any:
    record = run(compose(list(words)), folder, progress=progress)
    assert record["status"] == "done", record["error"]
    return record


class Block(nn.Module):
    """Hands on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Identity()])

    def forward(self, hidden_states: torch.Tensor, other: object = None) -> torch.Tensor:
        return hidden_states


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block()])

    def forward(self, x: torch.Tensor, by_name: bool = False) -> torch.Tensor:
        answer: torch.Tensor = self.layers[0](hidden_states=x) if by_name else self.layers[0](x, 1)
        return answer


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_value_moves_by_its_last_bit_or_not_at_all(dtype: torch.dtype, by_name: bool) -> None:
    model, x = token_reader(Model()), torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = x.clone()
    with perturbed(model, seed=1, repeat=1):
        y = model(x, by_name)
    assert y.dtype == dtype and torch.equal(x, kept)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    steps = (y.view(integer) - x.view(integer)).abs()
    assert steps.max() == 1
    # |u r| x is half a last bit of numbers just under a power of two, and less of those above, which mostly stay.
    assert 0.15 < float((steps > 0).float().mean()) < 0.45
    assert abs(float((y.double() - x.double()).sum() / x.double().abs().sum())) < torch.finfo(dtype).eps / 20
    assert torch.equal(model(x, by_name), x)  # and afterwards nothing is perturbed


def test_each_repeat_is_its_own_and_can_be_repeated() -> None:
    model, x = token_reader(Model()), torch.randn(4, 64)
    answers = []
    for seed, repeat in ((1, 1), (1, 1), (1, 2), (2, 1)):
        with perturbed(model, seed, repeat):
            answers.append(model(x))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2]) and not torch.equal(answers[0], answers[3])


def test_the_blocks_of_a_model() -> None:
    assert len(decoder_blocks(load_model("embedded", device="cpu").model)) == 3
    assert [type(block) for block in decoder_blocks(token_reader(Model())).values()] == [
        Block
    ]  # and not the list within it
    without = token_reader(nn.Linear(1, 2))
    with pytest.raises(ConfigError, match=r"^noise: Linear has no decoder blocks"), perturbed(without, 0, 1):
        pass


def test_what_a_run_leaves(tmp_path: Path) -> None:
    plain = done(*QUANTIZED, folder=tmp_path / "plain")
    noisy = done(*QUANTIZED, "noise=3", folder=tmp_path / "noisy")
    again = done(*QUANTIZED, "noise=2")
    assert noisy["metrics"] == plain["metrics"]
    samples, plain_samples = (pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("noisy", "plain"))
    assert samples.equals(plain_samples)
    assert noisy["noise"]["repeats"] == 3 and noisy["noise"]["seconds"] > 0
    assert set(noisy["noise"]["metrics"]["story"]) == {"acc", "perplexity"}
    values = noisy["noise"]["metrics"]["story"]["perplexity"]
    assert len(set(values)) == 3 and noisy["metrics"]["story"]["perplexity"] not in values
    assert again["noise"]["metrics"]["story"]["perplexity"] == values[:2]  # of the same seed

    table = pd.read_parquet(tmp_path / "noisy" / "noise.parquet")
    assert list(table.columns) == [*samples.columns, "repeat"]
    assert table["repeat"].value_counts().to_dict() == {1: 60, 2: 60, 3: 60}
    for number, rows in table.groupby("repeat"):
        assert rows["doc_hash"].tolist() == samples["doc_hash"].tolist()
        assert rows["acc"].mean() == pytest.approx(noisy["noise"]["metrics"]["story"]["acc"][number - 1])


def moved(folder: Path) -> Any:
    """How far each repeat's log-likelihoods are from the run's own."""
    samples, table = (pd.read_parquet(folder / f"{name}.parquet")["loglikelihood"] for name in ("samples", "noise"))
    return abs(table.to_numpy().reshape(-1, len(samples)) - samples.to_numpy())


def test_a_quantized_model_is_chaotic(tmp_path: Path) -> None:
    done(*QUANTIZED, "model.dtype=bfloat16", "noise=1", folder=tmp_path)
    assert moved(tmp_path).max() > 0.01


def test_unquantized_it_moves_next_to_nothing(tmp_path: Path) -> None:
    record = done("format=none", "limit=60", "model.device=cpu", "noise=2", folder=tmp_path)
    assert moved(tmp_path).shape == (2, 60) and 0 < moved(tmp_path).max() < 1e-4
    for value in record["noise"]["metrics"]["story"]["perplexity"]:
        assert value == pytest.approx(record["metrics"]["story"]["perplexity"], rel=1e-5)


def test_progress_counts_all_evaluations() -> None:
    told: list[tuple[int, int]] = []
    done(*QUANTIZED, "noise=2", "batch_tokens=400", progress=lambda *numbers: told.append(numbers))
    assert {total for _, total in told} == {180}
    assert [count for count, _ in told] == sorted({count for count, _ in told})
    assert told[-1] == (180, 180)


def test_times_are_those_of_the_first_evaluation() -> None:
    record = done(*QUANTIZED, "noise=4")
    assert record["noise"]["seconds"] > record["timing"]["eval_s"] / 2
    assert record["examples_per_sec"] == pytest.approx(60 / record["timing"]["eval_s"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("noise=-1", r"^noise: -1"),
        ("noise=1.5", r"^noise: 1\.5"),
        ("noise=101", r"^noise: 101 .*0 to 100 further evaluations"),
        ("noise=true", r"^noise: "),
        ("diagnostics=1", r"^diagnostics: 1 "),
        ("diagnostics=yes please", r"^diagnostics: "),
    ],
)
def test_values_that_are_not_allowed(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose([word])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_on_a_gpu(tmp_path: Path) -> None:
    words = [*QUANTIZED[:-1], "model.device=cuda", "noise=2"]
    first, second = done(*words, folder=tmp_path), done(*words)
    assert first["noise"]["metrics"] == second["noise"]["metrics"]
    assert len(set(first["noise"]["metrics"]["story"]["perplexity"])) == 2
