"""What the observer says of operands and gradients: sums by hand, and against torch in float64."""

import math

import pytest
import torch

from mxsweep.files.training_columns import ROLE_COLUMNS
from mxsweep.formats.training import OperandFormat
from mxsweep.model.operands import Place
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.rescaled import quantize_rescaled
from mxsweep.training.roles import RoleObserver

# Four blocks of two: maxima 2^10, 6 (saturates nothing), 7.9 (saturates), 0.
BLOCKS = torch.tensor([[1024.0, 1.0, 6.0, 0.1], [7.9, -7.0, 0.0, 0.0]])
PLAIN = OperandFormat(MXFormat("fp4_e2m1", 2))
NAME = "model.layers.3.mlp.down_proj"


def observed(x: torch.Tensor, fmt: OperandFormat, axis: int = -1, generator: int = 0) -> dict:
    quantized = quantize(x, fmt.fmt, axis, generator=generator)
    if fmt.prescale != 1:
        quantized = quantize_rescaled(x, fmt.fmt, axis, prescale=fmt.prescale, generator=generator) / fmt.prescale
    observer = RoleObserver()
    observer.operand(NAME, "dgrad.grad", x, quantized, fmt, axis)
    (row,) = observer.rows(7)
    return row


def test_an_operand_by_hand() -> None:
    row = observed(BLOCKS, PLAIN)
    y = torch.tensor([[1024.0, 0.0, 6.0, 0.0], [6.0, -6.0, 0.0, 0.0]]).double()
    x = BLOCKS.double()
    assert list(row) == list(ROLE_COLUMNS)
    assert (row["step"], row["module"], row["layer"], row["role"]) == (7, NAME, 3, "down_proj")
    assert (row["operand"], row["format"]) == ("dgrad.grad", str(PLAIN))
    assert (row["underflow"], row["saturation"], row["clamped"]) == (2 / 6, 2 / 8, 0)
    assert row["slope"] == pytest.approx(float((x * y).sum() / x.square().sum()))
    assert row["cosine"] == pytest.approx(float(torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0)))
    assert row["snr_db"] == pytest.approx(10 * math.log10(float(x.square().sum() / (x - y).square().sum())))


def test_blocks_lie_along_the_axis_that_was_named() -> None:
    columns = BLOCKS.T.contiguous()
    assert observed(columns, PLAIN, 0)["underflow"] == 2 / 6
    assert observed(columns, PLAIN, 1)["underflow"] == 1 / 6


def test_a_scale_that_is_clamped_counts_once() -> None:
    assert observed(BLOCKS, OperandFormat(MXFormat("fp4_e2m1", 2, scale_bits=4)))["clamped"] == 1 / 4


def test_with_the_prescale_nothing_saturates() -> None:
    """Three quarters of the largest value of a block, 7.9 at most of a scale of 1, stay below 6; of 5, too, whose three
    quarters would have another scale by themselves.
    """
    prescaled = OperandFormat(MXFormat("fp4_e2m1", 2), prescale=0.75)
    assert observed(BLOCKS, PLAIN)["saturation"] > 0
    assert observed(BLOCKS, prescaled)["saturation"] == 0
    assert observed(torch.tensor([[5.0, 1.0]]), prescaled)["saturation"] == 0


def test_a_scale_over_each_token_clamps_no_block_of_a_small_one() -> None:
    """Under one scale for both rows the second's blocks would want less than e4m3 holds."""
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1.0], [2.0**-20]])
    fmt = OperandFormat(MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True))
    shares = []
    for dims in (None, (-1,)):
        observer = RoleObserver()
        observer.operand(NAME, "fprop.input", x, quantize(x, fmt.fmt, tensor_dims=dims), fmt, tensor_dims=dims)
        shares.append(observer.rows(0)[0]["clamped"])
    assert shares == [0.5, 0.0]


def test_micro_batches_of_a_step_are_taken_together() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    whole, parts = RoleObserver(), RoleObserver()
    fmt = OperandFormat(MXFormat("fp4_e2m1", 32))
    whole.operand(NAME, "fprop.input", x, quantize(x, fmt.fmt), fmt)
    for part in x.split(1):
        parts.operand(NAME, "fprop.input", part, quantize(part, fmt.fmt), fmt)
    assert whole.rows(1)[0] == pytest.approx(parts.rows(1)[0])


def test_a_gradient_has_no_blocks() -> None:
    x = torch.tensor([3.0, 4.0])
    observer = RoleObserver({NAME: Place(3, "down_proj", "down")})
    observer.gradient(NAME, "dW", x, torch.tensor([3.0, 0.0]))
    (row,) = observer.rows(0)
    assert (row["operand"], row["format"], row["role"]) == ("dW", "", "down")
    assert row["slope"] == pytest.approx(9 / 25) and row["cosine"] == pytest.approx(3 / 5)
    assert row["snr_db"] == pytest.approx(10 * math.log10(25 / 16))
    assert all(math.isnan(row[name]) for name in ("underflow", "saturation", "clamped"))
    with pytest.raises(ValueError, match="'dY' is no gradient; allowed: dX, dW"):
        observer.gradient(NAME, "dY", x, x)


def test_a_tensor_of_zeros_has_no_ratios() -> None:
    row = observed(torch.zeros(2, 4), PLAIN)
    assert all(math.isnan(row[name]) for name in ("cosine", "slope", "underflow")) and row["saturation"] == 0


def of_heavy_tails(element: str, scale_rounding: str, rounding: str) -> dict:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(256, 256, generator=drawn) * torch.randn(256, 256, generator=drawn).mul(0.5).exp()
    fmt = MXFormat(element, 32, scale_rounding=scale_rounding, rounding=rounding)
    return observed(x, OperandFormat(fmt), generator=3)


def test_gradients_lose_what_one_batch_of_a_small_llama_lost() -> None:
    """Its output gradients: floor 15.0 dB (slope .93), even 15.1 (.96), ceil 10.9; stochastic slopes .950, .981, .994;
    E3M0 8.1 (.72) with floor, 11.9 with even; INT4 11.3 with floor, 6.2 with ceil.
    """
    nearest = {how: of_heavy_tails("fp4_e2m1", how, "nearest") for how in ("floor", "even", "ceil")}
    drawn = {how: of_heavy_tails("fp4_e2m1", how, "stochastic") for how in ("floor", "even", "ceil")}
    assert nearest["ceil"]["snr_db"] < nearest["floor"]["snr_db"] < nearest["even"]["snr_db"]
    assert nearest["floor"]["slope"] < nearest["even"]["slope"]
    assert 0.93 < drawn["floor"]["slope"] < drawn["even"]["slope"] < drawn["ceil"]["slope"] < 1.005
    steps = {how: of_heavy_tails("fp4_e3m0", how, "nearest") for how in ("floor", "even")}
    assert steps["floor"]["slope"] < 0.9 and steps["floor"]["snr_db"] < steps["even"]["snr_db"] - 2
    whole = {how: of_heavy_tails("int4", how, "nearest")["snr_db"] for how in ("floor", "ceil")}
    assert whole["ceil"] < whole["floor"]
