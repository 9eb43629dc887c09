"""Searched scales: against every scale that there is, and never worse than the format's own."""

import math

import pytest
import torch
from torch import Tensor

from mxsweep.numerics import ELEMENT_NAMES, MXFormat, parse_scale
from mxsweep.solvers import clip as module
from mxsweep.solvers.block_scales import BlockScales
from mxsweep.solvers.clip import search_scales

FORMATS = [
    *(MXFormat(element, 8, rounding="even") for element in ELEMENT_NAMES),
    *(MXFormat("fp4_e2m1", 16, scale) for scale in ("e5m3", "e4m3", "fp32")),
    MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True),
    MXFormat("int4", 32, "fp32", symmetric=False),
    MXFormat("int4", 16, symmetric=False, scale_rounding="even"),
    MXFormat("mint4", 8, symmetric=False),
    MXFormat("int3", (4, 8)),
    MXFormat("fp4_e2m1", (3, 7), "fp32", symmetric=False),
    MXFormat("int4", 0),
    MXFormat("fp6_e2m3", 24, rounding="floor"),
]


def weight(rows: int = 24, columns: int = 68) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator) * 2.0 ** torch.randint(-3, 4, (rows, 1), generator=generator)


def importances(columns: int = 68) -> Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(1)) ** 4


def block_errors(w: Tensor, q: Tensor, importance: Tensor, fmt: MXFormat) -> Tensor:
    """The weighted squared error of every block (of tiles, of every row in one), float64 (N, K)."""
    error = (w - q).double().square() * importance.double()
    length = (fmt.block_size or w.shape[1]) if isinstance(fmt.block_size, int) else fmt.block_size[1]
    errors = torch.stack([part.sum(1) for part in error.split(length, dim=1)], dim=1)
    if isinstance(fmt.block_size, tuple):
        errors = torch.stack([part.sum(0) for part in errors.split(fmt.block_size[0])])
    return errors


@pytest.mark.parametrize("weighted", [False, True], ids=["weight", "output"])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_no_block_is_worse_and_the_whole_is_better(fmt: MXFormat, weighted: bool) -> None:
    w = weight()
    importance = importances() if weighted else torch.ones(68)
    plain, searched = BlockScales.of(w, fmt), search_scales(w, fmt, importance if weighted else None)
    before, after = (block_errors(w, own.quantize(w, fmt), importance, fmt) for own in (plain, searched))
    assert (after <= before * (1 + 1e-5)).all()
    gains = 1 - after.sum() / before.sum()
    # Of eight bits, or of large blocks of a fine format, the largest element is all there is to clip.
    assert gains >= (0.01 if fmt.element_format.bits == 4 else 0)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.scale == "e8m0" and fmt.symmetric], ids=str)
def test_of_all_powers_of_two_the_best(fmt: MXFormat) -> None:
    w, importance = weight(), importances()
    searched = search_scales(w, fmt, importance)
    ours = block_errors(w, searched.quantize(w, fmt), importance, fmt)
    best = torch.full_like(ours, torch.inf)
    for exponent in range(-20, 12):
        trial = BlockScales(torch.full_like(searched.stored, 2.0**exponent), None, searched.length)
        best = torch.minimum(best, block_errors(w, trial.quantize(w, fmt), importance, fmt))
    # Where two columns are all that matters, a scale further away can be best; that is rare and gains little.
    assert (ours <= best * (1 + 1e-5)).double().mean() > 0.9
    assert ours.sum() < 1.01 * best.sum()


@pytest.mark.parametrize("name", ["e5m3", "e4m3"])
def test_of_all_small_floats_the_best(name: str) -> None:
    w, fmt = weight(), MXFormat("fp4_e2m1", 16, name, rounding="even")
    searched, scale = search_scales(w, fmt), parse_scale(name)
    ones = torch.ones(68)
    codes = [scale.decode(code) for code in range(1, 2**7 if name == "e4m3" else 2**8)]
    values = torch.tensor([value for value in codes if not math.isnan(value)])
    assert torch.isin(searched.stored, values).all()
    ours = block_errors(w, searched.quantize(w, fmt), ones, fmt)
    best = torch.full_like(ours, torch.inf)
    for value in values:
        trial = BlockScales(torch.full_like(searched.stored, float(value)), None, 16)
        best = torch.minimum(best, block_errors(w, trial.quantize(w, fmt), ones, fmt))
    assert (ours <= best * (1 + 1e-5)).double().mean() > 0.95
    assert ours.sum() < 1.005 * best.sum()


def test_by_hand() -> None:
    # int4 holds quarters up to 1.75 times the scale. 1.9 under scale 1 becomes 1.75, and the others are exact; under
    # scale 2 it becomes 2, and the quarters are rounded.
    w = torch.tensor([[1.9, 0.25, 0.75, -0.25]])
    fmt = MXFormat("int4", 4, scale_rounding="ceil")
    assert BlockScales.of(w, fmt).stored.item() == 2.0
    searched = search_scales(w, fmt)
    assert searched.stored.item() == 1.0
    assert torch.equal(searched.quantize(w, fmt), torch.tensor([[1.75, 0.25, 0.75, -0.25]]))
    # What nobody reads decides nothing, and what is all-important does.
    assert search_scales(w, fmt, torch.tensor([1e6, 1.0, 1.0, 1.0])).stored.item() == 2.0
    assert search_scales(w, fmt, torch.zeros(4)).stored.item() == 2.0


def test_equal_errors_leave_the_scale_as_it_is() -> None:
    w = torch.tensor([[1.0, -0.5, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    fmt = MXFormat("fp8_e4m3", 4)
    assert torch.equal(search_scales(w, fmt).stored, BlockScales.of(w, fmt).stored)


def test_midpoints_move_where_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    w, fmt = weight() + 0.3, MXFormat("int4", 16, "fp32", symmetric=False)
    moved = search_scales(w, fmt)
    monkeypatch.setattr(module, "MIDPOINT_STEPS", 0)
    held = search_scales(w, fmt)
    errors = [block_errors(w, own.quantize(w, fmt), torch.ones(68), fmt) for own in (moved, held)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all() and errors[0].sum() < 0.97 * errors[1].sum()
    assert moved.midpoint is not None
    assert torch.equal(moved.midpoint, moved.midpoint.bfloat16().float())  # as it is stored


@pytest.mark.parametrize("scale_bits", [2, 4])
def test_scales_stay_in_their_bits(scale_bits: int) -> None:
    w = weight() * 2.0 ** torch.arange(-12, 12)[:, None]
    fmt = MXFormat("int4", 16, scale_bits=scale_bits)
    limit = fmt.max_scale_exponent
    plain, searched = BlockScales.of(w, fmt), search_scales(w, fmt)
    found = searched.stored[~searched.stored.isnan()]
    assert (found.log2().abs() <= limit).all()
    # A block above the range is NaN; one that is not by far is saturated here instead.
    assert searched.stored.isnan().sum() < plain.stored.isnan().sum()
    wanted = w[:, :16].abs().amax(1).log2().floor()
    assert torch.equal(searched.stored[:, 0].isnan(), wanted > limit + 2)


def test_nan_and_inf_take_their_block() -> None:
    w = weight()
    w[0, 0], w[1, 20] = torch.nan, torch.inf
    for fmt in (MXFormat("int4", 16), MXFormat("int4", 16, "fp32", symmetric=False)):
        nan = search_scales(w, fmt).quantize(w, fmt).isnan()
        assert nan[0, :16].all() and nan[1, 16:32].all() and nan.sum() == 32


def test_tiles_share_a_scale() -> None:
    w, fmt = weight(10, 20), MXFormat("int3", (4, 8))
    scale = search_scales(w, fmt).stored
    assert scale.shape == (10, 3)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        assert (scale[rows] == scale[rows][:1]).all()


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    w, fmt = weight(), MXFormat("int4", 16, "fp32", symmetric=False)
    at_once = search_scales(w, fmt)
    monkeypatch.setattr("mxsweep.numerics.blocks._piece_limit", lambda device: 100)
    in_pieces = search_scales(w, fmt)
    assert torch.equal(at_once.stored, in_pieces.stored)
    assert at_once.midpoint is not None and in_pieces.midpoint is not None
    assert torch.equal(at_once.midpoint, in_pieces.midpoint)


@pytest.mark.parametrize(
    "importance", [torch.ones(7), torch.ones(2, 8), -torch.ones(8), torch.full((8,), torch.nan)], ids=str
)
def test_an_importance_that_cannot_be_is_refused(importance: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^importance: of shape .* allowed here: 8 finite numbers of at least 0$"):
        search_scales(torch.ones(2, 8), MXFormat("int4", 4), importance)
