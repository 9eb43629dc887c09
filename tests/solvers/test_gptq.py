"""GPTQ against closed forms, brute force, and the published algorithm written out in float64."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.adversarial import assert_same_bits
from helpers.hessian_loss import hessian_loss
from helpers.kernel_host import HostKernels
from helpers.solved_formats import FORMATS
from torch import Tensor

from mxsweep.numerics import MXFormat, decode, quantize
from mxsweep.numerics.kernels import gptq_cuda
from mxsweep.numerics.kernels.compile import compile_source
from mxsweep.solvers import gptq as module
from mxsweep.solvers.block_scales import BlockScales
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq

LAZY_FORMATS = [FORMATS[6], *FORMATS[11:]]
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=True)
RULES = [
    replace(NVFP4, scale_rule="torchao"),
    replace(NVFP4, scale_rule="auto_round", rounding="ties_to_zero"),
    replace(NVFP4, scale_rule="quark", tensor_scale=False, four_over_six=True),
]


def problem(rows: int = 12, columns: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the Hessian of correlated inputs of different size."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator) * torch.linspace(2, 0.05, columns)
    x = torch.randn(4 * columns, columns, generator=generator) @ mixed.T
    return torch.randn(rows, columns, generator=generator) * 0.1, 2 * x.T @ x / len(x)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_its_codes_stand_for_its_values(fmt: MXFormat) -> None:
    for seed in range(3):
        w, hessian = problem(seed=seed)
        w[0] *= 1e-3
        w[1, 3:20] = 0.0
        for scales in (BlockScales.of(w, fmt), search_scales(w, fmt, hessian.diagonal())):
            values = gptq(w, hessian, fmt, scales)
            encoded = scales.encode_chosen(values, fmt)
            assert encoded.format == fmt
            assert_same_bits(decode(encoded), values)


def test_a_block_without_a_scale_has_none_in_codes() -> None:
    w, hessian = problem()
    w[2, 9] = torch.nan
    fmt = MXFormat("fp4_e2m1", 8)
    scales = BlockScales.of(w, fmt)
    values = gptq(w, hessian, fmt, scales)
    encoded = scales.encode_chosen(values, fmt)
    assert values.isnan().sum() == 8 and (encoded.scales == 255).sum() == 1 and encoded.scales[2, 1] == 255
    assert_same_bits(decode(encoded), values)


# --- The published algorithm -----------------------------------------------------------------------------------------


def reference(w: Tensor, hessian: Tensor, fmt: MXFormat, variant: str, damping: float = 0.01) -> Tensor:
    """Algorithm 1 of arXiv 2210.17323 in float64, in four ways.

    "whole": a block is quantized as a whole when it is reached, and each column's error goes to later blocks as if the
    others beside it had none. "exact": the same, but what later blocks get makes up best for all of a block's errors.
    "frozen": column by column, with the scales of `w`. "ordered": and by descending diagonal.
    """
    length = fmt.block_size
    assert isinstance(length, int)
    scales = BlockScales.of(w, fmt)
    h = hessian.double()
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    order = h.diagonal().argsort(descending=True) if variant == "ordered" else torch.arange(len(h))
    u = torch.linalg.cholesky(torch.linalg.inv(h[order][:, order]), upper=True)
    v, q = w.double()[:, order], torch.zeros_like(w)[:, order].double()
    for start in range(0, len(h), length):
        block = slice(start, start + length)
        if variant in ("whole", "exact"):
            q[:, block] = quantize(v[:, block].float(), fmt, arithmetic="exact").double()
            error = v[:, block] - q[:, block]
            # With U's part of the block as it is, its errors make up for each other; with its diagonal, none does.
            own = u[block, block] if variant == "exact" else u.diagonal()[block].diag()
            v[:, block.stop :] -= torch.linalg.solve(own, error, left=False) @ u[block, block.stop :]
            continue
        for j in range(start, start + length):
            column = BlockScales(scales.stored[:, order[[j]] // scales.length], None, 1)
            q[:, j] = column.quantize(v[:, [j]].float(), fmt)[:, 0].double()
            v[:, j + 1 :] -= torch.outer((v[:, j] - q[:, j]) / u[j, j], u[j, j + 1 :])
    answer = torch.empty_like(w)
    answer[:, order] = q.float()
    return answer


@pytest.fixture(scope="module")
def toy() -> tuple[Tensor, Tensor]:
    """The problem that the losses below are known for."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    columns = 512
    mixed = torch.randn(columns, columns) * torch.exp(torch.linspace(0, -4, columns))
    x = torch.randn(4096, columns) @ mixed.T * 0.1 + 0.3 * torch.randn(4096, columns)
    x[:, torch.randperm(columns)[:8]] *= 8
    w = 0.02 * torch.randn(256, columns)
    torch.set_rng_state(state)
    return w, 2 * x.T @ x / 4096


# Relative losses, in thousandths.
KNOWN = {
    "int4": {"rtn": 14.7, "whole": 6.29, "exact": 6.02, "frozen": 5.68, "ordered": 4.16},
    "fp4_e2m1": {"rtn": 13.4, "whole": 5.64, "exact": 5.41, "frozen": 5.17, "ordered": 3.81},
}


@pytest.mark.parametrize("element", KNOWN)
def test_the_known_losses_and_no_worse_than_the_least(toy: tuple[Tensor, Tensor], element: str) -> None:
    w, hessian = toy
    fmt = MXFormat(element, 32, rounding="even")
    answers = {"rtn": quantize(w, fmt, arithmetic="exact")}
    answers |= {variant: reference(w, hessian, fmt, variant) for variant in ("whole", "exact", "frozen", "ordered")}
    losses = {name: 1e3 * hessian_loss(w, q, hessian) for name, q in answers.items()}
    for name, known in KNOWN[element].items():
        assert losses[name] == pytest.approx(known, abs=0.05 if name == "rtn" else 0.011), name
    assert list(losses.values()) == sorted(losses.values(), reverse=True)
    plain, searched = BlockScales.of(w, fmt), search_scales(w, fmt, hessian.diagonal())
    ours = 1e3 * hessian_loss(w, gptq(w, hessian, fmt, plain), hessian)
    best = 1e3 * hessian_loss(w, gptq(w, hessian, fmt, searched), hessian)
    assert best < 0.95 * ours < 0.95 * losses["ordered"]


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("element", KNOWN)
def test_without_sweeps_it_is_the_published_algorithm(
    toy: tuple[Tensor, Tensor], element: str, act_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEPS", 0)
    w, hessian = toy
    fmt = MXFormat(element, 32, rounding="even")
    published = reference(w, hessian, fmt, "ordered" if act_order else "frozen")
    ours = gptq(w, hessian, fmt, BlockScales.of(w, fmt), act_order=act_order)
    # Float32 against float64: a tie now and then goes the other way, and its row with it.
    assert (ours == published).float().mean() > 0.99
    losses = [hessian_loss(w, q, hessian) for q in (ours, published)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_every_sweep_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    w, hessian = problem(32, 96)
    fmt = MXFormat("fp4_e2m1", 16, rounding="even")
    scales, losses = BlockScales.of(w, fmt), []
    for sweeps in range(4):
        monkeypatch.setattr(module, "SWEEPS", sweeps)
        damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96)
        losses.append(hessian_loss(w, gptq(w, hessian, fmt, scales), damped))
    assert losses == sorted(losses, reverse=True) and losses[3] < losses[1] < losses[0]


# --- Closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_diagonal_hessian_means_rounding_to_nearest(fmt: MXFormat) -> None:
    w, _ = problem()
    scales = search_scales(w, fmt)
    answer = gptq(w, torch.diag(torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.1), fmt, scales)
    assert torch.equal(answer, scales.quantize(w, fmt))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_element_is_on_its_blocks_grid(fmt: MXFormat) -> None:
    w, hessian = problem()
    scales = search_scales(w, fmt, hessian.diagonal())
    answer = gptq(w, hessian, fmt, scales)
    blocks = torch.arange(40) // scales.length
    midpoint = 0.0 if scales.midpoint is None else scales.midpoint[:, blocks].double()
    codes = (answer.double() - midpoint) / scales.applied(fmt).read[:, blocks].double()
    values = torch.tensor(fmt.element_format.values(), dtype=torch.float64)
    distance = (codes[..., None] - values).abs().amin(-1)
    assert distance.max() < 1e-5  # float32's products and sums
    if fmt.symmetric and fmt.scale == "e8m0":
        assert distance.max() == 0


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_it_is_better_than_rounding_to_nearest(fmt: MXFormat) -> None:
    w, hessian = problem()
    scales = BlockScales.of(w, fmt)
    losses = [hessian_loss(w, q, hessian) for q in (scales.quantize(w, fmt), gptq(w, hessian, fmt, scales))]
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize("seed", range(8))
def test_of_two_columns_the_last_makes_up_best_for_the_first(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: q_0 is rounded from w_0; of all codes q_1 is the one of least loss."""
    monkeypatch.setattr(module, "SWEEPS", 0)
    w, hessian = problem(16, 2, seed)
    fmt = MXFormat("int4", 2, rounding="even")
    scales = BlockScales.of(w, fmt)
    q = gptq(w, hessian, fmt, scales, damping=0.0, act_order=False)
    assert torch.equal(q[:, 0], scales.quantize(w, fmt)[:, 0])
    codes = torch.tensor(fmt.element_format.values())
    trials = torch.stack((q[:, :1].expand(-1, len(codes)), codes * scales.stored), dim=-1)
    error = (trials - w[:, None]).double()
    assert torch.equal(q[:, 1], trials[range(16), ((error @ hessian.double()) * error).sum(-1).argmin(1), 1])


@pytest.mark.parametrize("seed", range(8))
def test_no_single_code_is_better_after_enough_sweeps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coordinate descent ends where every code is the best of all, the others given."""
    monkeypatch.setattr(module, "SWEEPS", 20)
    w, hessian = problem(8, 3, seed)
    fmt = MXFormat("int3", 4, scale="fp32", rounding="even")
    scales = search_scales(w, fmt, hessian.diagonal())
    q = gptq(w, hessian, fmt, scales, damping=0.0)
    codes = torch.tensor(fmt.element_format.values())

    def losses(trials: Tensor) -> Tensor:
        error = (trials - w[:, None]).double()
        return ((error @ hessian.double()) * error).sum(-1)

    ours = losses(q[:, None])
    for column in range(3):
        trials = q[:, None].repeat(1, len(codes), 1)
        trials[:, :, column] = codes * scales.stored
        assert (losses(trials) >= ours * (1 - 1e-5)).all()


def test_rows_do_not_influence_each_other() -> None:
    w, hessian = problem(12)
    fmt = MXFormat("fp4_e2m1", 8)
    together = gptq(w, hessian, fmt, BlockScales.of(w, fmt))
    apart = [gptq(rows, hessian, fmt, BlockScales.of(rows, fmt)) for rows in (w[:5], w[5:])]
    assert (together == torch.cat(apart)).float().mean() > 0.99  # products of other shapes may sum in another order


@pytest.mark.parametrize("fmt", LAZY_FORMATS, ids=str)
def test_groups_of_columns_are_only_faster(fmt: MXFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    w, hessian = problem(24, 100)
    scales = BlockScales.of(w, fmt)
    monkeypatch.setattr(module, "GROUP", 1000)
    at_once = gptq(w, hessian, fmt, scales)
    monkeypatch.setattr(module, "GROUP", 16)
    in_groups = gptq(w, hessian, fmt, scales)
    assert (at_once == in_groups).float().mean() > 0.98
    losses = [hessian_loss(w, q, hessian) for q in (at_once, in_groups)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


# --- Hessians that are not as they should be -------------------------------------------------------------------------


def test_dead_columns_are_rounded_to_nearest_and_have_no_say() -> None:
    w, hessian = problem()
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[0, 7, 39]] = True
    hessian[dead], hessian[:, dead] = 0.0, 0.0
    fmt = MXFormat("int4", 8)
    scales = BlockScales.of(w, fmt)
    q = gptq(w, hessian, fmt, scales)
    assert torch.equal(q[:, dead], scales.quantize(w, fmt)[:, dead])
    other = torch.where(dead, 0.05 * w.flip(0), w)
    assert torch.equal(gptq(other, hessian, fmt, scales)[:, ~dead], q[:, ~dead])
    assert torch.equal(gptq(w, torch.zeros(40, 40), fmt, scales), scales.quantize(w, fmt))


def test_much_damping_is_rounding_to_nearest() -> None:
    w, hessian = problem()
    fmt = MXFormat("int4", 8)
    scales = BlockScales.of(w, fmt)
    assert torch.equal(gptq(w, hessian, fmt, scales, damping=1e6), scales.quantize(w, fmt))
    assert not torch.equal(gptq(w, hessian, fmt, scales, damping=0.01), scales.quantize(w, fmt))


def test_damping_is_raised_where_it_must_be(caplog: pytest.LogCaptureFixture) -> None:
    w, _ = problem()
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    singular, fmt = 2 * x.T @ x / 3, MXFormat("int4", 8)
    scales = BlockScales.of(w, fmt)
    assert gptq(w, singular, fmt, scales, damping=0.01).isfinite().all()
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        q = gptq(w, singular, fmt, scales, damping=0.0)
    assert "has no Cholesky factor with damping 0, and was damped by 1e-05" in caplog.text
    assert hessian_loss(w, q, singular) < 0.5 * hessian_loss(w, scales.quantize(w, fmt), singular)
    with pytest.raises(ValueError, match=r"^hessian: has no Cholesky factor, even with a damping of 10; allowed: "):
        gptq(w, -singular - torch.eye(40), fmt, scales)


def test_a_block_without_a_scale_is_nan_and_leaves_the_others_alone() -> None:
    w, hessian = problem()
    w[2, 9] = torch.inf
    fmt = MXFormat("int4", 8)
    q = gptq(w, hessian, fmt, BlockScales.of(w, fmt))
    assert q[2, 8:16].isnan().all()
    assert q.isnan().sum() == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w": torch.zeros(4)}, r"^w: torch.float32 of shape \(4,\) is not allowed; allowed: a float32 matrix"),
        ({"w": torch.zeros(4, 8).double()}, r"^w: torch.float64 of shape \(4, 8\)"),
        ({"hessian": torch.eye(7)}, r"^hessian: torch.float32 of shape \(7, 7\) .* of shape \(8, 8\)$"),
        ({"hessian": torch.eye(8).half()}, r"^hessian: torch.float16"),
        ({"hessian": torch.full((8, 8), torch.nan)}, r"^hessian: holds NaN or Inf"),
        ({"damping": -0.1}, r"^damping: -0.1 is not allowed; allowed: a number of at least 0$"),
        ({"damping": float("nan")}, r"^damping: nan is not allowed"),
        (
            {"fmt": MXFormat("int4", 8, rounding="stochastic")},
            r"^rounding: 'stochastic' .* nearest, even, floor, ties_to_zero$",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_by_name(arguments: dict[str, object], message: str) -> None:
    w, fmt = torch.ones(4, 8), MXFormat("int4", 8)
    given = {"w": w, "hessian": torch.eye(8), "fmt": fmt, "scales": BlockScales.of(w, fmt), "damping": 0.01} | arguments
    with pytest.raises(ValueError, match=message):
        gptq(**given)  # type: ignore[arg-type]


def test_the_loss_by_hand() -> None:
    w, q = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    hessian = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    assert hessian_loss(w, q, hessian) == 4 / (2 + 2 * 2 + 16)
    assert hessian_loss(w, w, hessian) == 0


# --- The kernel's arithmetic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [*LAZY_FORMATS, *RULES], ids=str)
def test_the_kernel_on_the_host_is_the_torch_path(
    fmt: MXFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, hessian = problem(2 * gptq_cuda.THREADS + 2, 300)  # of which the last thread block has two rows
    scales = search_scales(w, fmt, hessian.diagonal())
    expected = gptq(w, hessian, fmt, scales)
    host = HostKernels(gptq_cuda.columns_source(replace(fmt, block_size=0)), tmp_path, gptq_cuda.THREADS)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    monkeypatch.setattr(gptq_cuda, "_kernels", lambda *_: host)
    monkeypatch.setattr(module, "_has_kernel", lambda _: True)
    round_columns = gptq_cuda.round_columns

    def checked(fmt: MXFormat, values: Tensor, before: Tensor, ratios: Tensor, *others: Tensor | None) -> None:
        assert all(each.is_contiguous() for each in (values, before, *others) if each is not None)
        round_columns(fmt, values, before, ratios, *others)

    monkeypatch.setattr(gptq_cuda, "round_columns", checked)
    ours = gptq(w, hessian, fmt, scales)
    assert torch.equal(gptq(w, torch.eye(300), fmt, scales), scales.quantize(w, fmt))
    assert (ours == expected).float().mean() > 0.98
    assert hessian_loss(w, ours, hessian) == pytest.approx(hessian_loss(w, expected, hessian), rel=0.01)
    assert host.launched


@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_100"])
def test_the_kernel_compiles(arch: str) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed (pip install 'mxsweep[cuda]')")
    for fmt in LAZY_FORMATS[:3]:
        code = compile_source(gptq_cuda.columns_source(replace(fmt, block_size=0)), arch).code
        assert code[:4] == b"\x7fELF" and b"gptq_columns" in code
