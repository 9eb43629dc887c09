"""Smaller blocks that make tensors worse: where it is so, what goes with it, what reverses it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.made_runs import outcomes, put

from mxsweep.numerics import MXFormat, quantize
from mxsweep.results.groups import read_results
from mxsweep.study.group_study import study_groups

BASE = -np.random.default_rng(0).gamma(0.7, 2, 40)
FIGURES = {  # scale_rounding and block: SQNR in dB, elements of 1,000 that saturate and that become zero
    ("floor", 16): (18.5, 38, 100),
    ("floor", 32): (18.8, 20, 110),
    ("floor", 64): (18.9, 10, 120),
    ("even", 16): (19.6, 2, 140),
    ("even", 32): (19.2, 2, 150),
    ("even", 64): (18.9, 1, 160),
}


def figures(sqnr_db: float, saturated: int, flushed: int) -> dict[str, Any]:
    counts = {"elements": 1000, "blocks": 50, "clamped": 0, "saturated": saturated, "flushed": flushed}
    return {"sqnr_db": sqnr_db, **counts}


def put_sweep(top: Path, known: dict[tuple[str, int], tuple[float, int, int]], kind: str = "weight") -> None:
    put(top / "base", outcomes(BASE), format="none")
    for (rounding, size), each in known.items():
        samples = outcomes(BASE - 1 / size)  # each example loses the same, so that any difference is significant
        record = {"diagnostics": {"tensors": {kind: figures(*each)}}}
        put(top / f"{rounding}{size}", samples, scale_rounding=rounding, block_size=size, record=record)


def said(top: Path) -> list[str]:
    (study,) = study_groups(read_results(top))
    return [one.text for one in study.findings if one.kind == "error" and one.text.startswith("Smaller blocks")]


def test_what_reverses_it(tmp_path: Path) -> None:
    put_sweep(tmp_path, FIGURES)
    factor = np.exp(1 / 16 - 1 / 64)
    assert said(tmp_path) == [
        "Smaller blocks make weights worse with scale rounding floor: in blocks of 16 against 64, signal over error is "
        "18.5 against 18.9 dB, and 3.80% against 1.00% of the elements were cut to the largest value that their scale "
        f"allows; perplexity is {factor:.3f} times that in blocks of 64, with all that is quantized in such blocks (1 "
        "of 1 significant). Scale rounding even reverses it: signal over error is 19.6 against 18.9 dB, and 0.20% "
        "against 0.10% of the elements were cut to the largest value that their scale allows."
    ]


def test_where_nothing_reverses_it(tmp_path: Path) -> None:
    """No knob is named, nor a share that is smaller in small blocks."""
    floor = {key: (ratio, 10, zeros) for key, (ratio, _, zeros) in FIGURES.items() if key[0] == "floor"}
    put_sweep(tmp_path, floor, "activation")
    (text,) = said(tmp_path)
    assert text.startswith("Smaller blocks make activations (sampled) worse: in blocks of 16 against 64, signal over")
    assert "reverses" not in text and "cut" not in text and "zero" not in text


@pytest.mark.parametrize(
    "known",
    [
        {key: each for key, each in FIGURES.items() if key[0] == "even"},
        {("floor", 16): (18.8, 30, 100), ("floor", 64): (18.9, 10, 100)},
        {("floor", 16): (18.5, 38, 100)},
    ],
)
def test_what_is_better_or_next_to_nothing_is_not_said(tmp_path: Path, known: Any) -> None:
    put_sweep(tmp_path, known)
    assert said(tmp_path) == []


def test_a_second_difference_is_no_reversal(tmp_path: Path) -> None:
    """Of two knobs that differ, neither is known to do it."""
    put_sweep(tmp_path, {key: each for key, each in FIGURES.items() if key[0] == "floor"})
    for size in (16, 64):
        record = {"diagnostics": {"tensors": {"weight": figures(*FIGURES["even", size])}}}
        more = {"scale_rounding": "even", "scale_bits": 6, "block_size": size}
        put(tmp_path / f"both{size}", outcomes(BASE - 1 / size), record=record, **more)
    (text,) = said(tmp_path)
    assert "reverses" not in text


def test_the_arithmetic_that_goes_with_a_rounding_of_scales_is_named_beside_it(tmp_path: Path) -> None:
    """Without a GPU floor is computed in native arithmetic, and even in exact: both are said to differ."""
    put(tmp_path / "base", outcomes(BASE), format="none")
    for (rounding, size), each in FIGURES.items():
        more = {"scale_rounding": rounding, "arithmetic": "native" if rounding == "floor" else "exact"}
        record = {"diagnostics": {"tensors": {"weight": figures(*each)}}}
        put(tmp_path / f"{rounding}{size}", outcomes(BASE - 1 / size), block_size=size, record=record, **more)
    (text,) = said(tmp_path)
    assert text.startswith("Smaller blocks make weights worse with scale rounding floor, arithmetic native: in blocks")
    assert ". Scale rounding even, arithmetic exact reverses it: signal over error is 19.6 against 18.9 dB" in text


def test_it_is_so_of_normal_numbers() -> None:
    """Four bits under floor saturate more in smaller blocks, and lose signal by it; rounding scales to even, they gain.

    The sizes of the effect are those of the module's example, from the numerics themselves.
    """
    x = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    ratios, saturated = {}, {}
    for rounding in ("floor", "even"):
        for size in (16, 64):
            fmt = MXFormat(element="fp4_e2m1", block_size=size, scale_rounding=rounding)
            y = quantize(x, fmt, arithmetic="exact")
            ratios[rounding, size] = float(10 * torch.log10(x.square().sum() / (y - x).square().sum()))
            largest = x.reshape(256, -1, size).abs().amax(-1, keepdim=True)
            cut = y.reshape(256, -1, size).abs().amax(-1, keepdim=True) < largest * (1 - 1 / 8)
            saturated[rounding, size] = float(cut.float().mean()) / size
    assert ratios["floor", 16] < ratios["floor", 64] - 0.2 and ratios["even", 16] > ratios["even", 64]
    assert saturated["floor", 16] > 2 * saturated["floor", 64] > 0
