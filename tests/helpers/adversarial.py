"""Inputs chosen to find a wrong bit: everything that a float32 can be, where the decisions are close."""

import torch

BLOCK = 64  # magnitudes that belong together extend over this many neighbours


def adversarial(count: int, seed: int, device: str = "cpu", finite: bool = False) -> torch.Tensor:
    """float32 [count]; `count` a multiple of 6 blocks or not, the rest is ordinary.

    In turn: any bit pattern (NaN and Inf among them, unless `finite`); halves and quarters of a format's steps, so that
    quotients are ties; these less or more by one ulp; powers of two with one ulp to either side; subnormals and zeros;
    normal numbers under a scale of their own for each block.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def integers(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (rows, BLOCK), generator=generator, device=device, dtype=torch.int64)

    rows = -(-count // (6 * BLOCK))
    any_bits = integers(-(2**31), 2**31).to(torch.int32).view(torch.float32)
    # Half the blocks of a moderate range of exponents, or none would be free of NaN and Inf.
    tame = (integers(0, 2**23) | integers(100, 150) << 23).to(torch.int32).view(torch.float32)
    any_bits = torch.where(integers(0, 2)[:, :1] == 0, tame, any_bits)
    if finite:
        any_bits = any_bits.nan_to_num(nan=1.0, posinf=3e38, neginf=-3e38).clamp(-1e30, 1e30)
    scale = 2.0 ** integers(-20, 21)[:, :1].float()
    ties = integers(-512, 513) / 64 * scale
    beside_ties = beside(ties, integers(-1, 2))
    powers = 2.0 ** integers(-8, 9).float() * scale * (integers(0, 2) * 2 - 1)
    small = (integers(0, 2**24) >> integers(0, 24)).to(torch.int32).view(torch.float32)
    normal = torch.randn(rows, BLOCK, generator=generator, device=device) * scale
    parts = [any_bits, ties, beside_ties, beside(powers, integers(-1, 2)), small, normal]
    return torch.stack(parts, dim=1).reshape(-1)[:count].contiguous()


def beside(x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """`x` some ulps further from zero, or nearer."""
    return torch.where(x == 0, x, (x.view(torch.int32) + steps.to(torch.int32)).view(torch.float32))


def assert_same_bits(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, NaN to NaN, the sign of zero included."""
    assert ours.dtype == expected.dtype and ours.shape == expected.shape
    integer = torch.int32 if ours.dtype == torch.float32 else torch.int16
    differ = (ours.contiguous().view(integer) != expected.contiguous().view(integer)) & ~(
        ours.isnan() & expected.isnan()
    )
    assert not differ.any(), (
        f"{int(differ.sum())} of {differ.numel()} differ, the first at {differ.nonzero()[0].tolist()}"
    )
