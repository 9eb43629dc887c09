"""The table of peers: which format of mxsweep computes what a peer does, bit for bit, and where it does not.

A row's format gives the peer's values on every tensor of `helpers.tensor_kinds`, but for the blocks that its exceptions
name. Zeros are equal whatever their sign, a NaN is equal to a NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from helpers.tensor_kinds import tensors
from torch import Tensor

from mxsweep.numerics import MXFormat, encode, quantize
from peers import quantizers

VERSIONS = {
    "torchao": "0.18.0",
    "compressed-tensors": "0.20.0",
    "amd-quark": "0.13",
    "auto-round": "0.16.1",
    "nvidia-modelopt": "0.47.0",
    "gguf": "0.19.0",
}
RESTATED = {"vLLM": "055e47c"}  # peers that no CPU installs, whose definitions of that commit are restated
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Exemption:
    """Blocks in which a peer's values are others.

    Attributes:
        reason: as docs/peers.md says it.
        where: of a tensor and its format, which blocks: bool, one each, broadcastable to the tensor in blocks.
    """

    reason: str
    where: Callable[[Tensor, MXFormat], Tensor]


@dataclass(frozen=True)
class Row:
    """One thing that a peer computes.

    Attributes:
        peer: the name of its distribution.
        title: what it calls it.
        format: the text of mxsweep's format.
        run: the peer's own quantization, read back.
        exemptions: where it differs. Each of them must show on some tensor.
        native: dtypes in which `arithmetic="native"` is the peer's; it is "exact" in the others.
    """

    peer: str
    title: str
    format: str
    run: Callable[[Tensor], Tensor]
    exemptions: tuple[Exemption, ...] = ()
    native: tuple[torch.dtype, ...] = ()

    def ours(self, x: Tensor) -> Tensor:
        arithmetic = "native" if x.dtype in self.native else "exact"
        return quantize(x, MXFormat.parse(self.format), arithmetic=arithmetic)


@dataclass(frozen=True)
class Difference:
    """How many elements of a tensor differ, how many in blocks of each exemption, and how many in no such block."""

    kind: str
    differing: int
    exempted: tuple[int, ...]
    left: int


def why_not(peer: str) -> str | None:
    """Return why a peer cannot be compared here, or None."""
    if peer in RESTATED:
        return None
    try:
        installed = version(peer)
    except PackageNotFoundError:
        return f"{peer} is not installed (pip install -c constraints.txt -e '.[peers]')"
    return None if installed == VERSIONS[peer] else f"{peer} {installed} is installed, {VERSIONS[peer]} is compared"


def compare(row: Row, dtype: torch.dtype) -> Iterator[Difference]:
    """Yield the differences on every kind of tensor."""
    fmt = MXFormat.parse(row.format)
    assert isinstance(fmt.block_size, int)
    for kind, x in tensors(dtype).items():
        theirs, ours = row.run(x), row.ours(x)
        assert theirs.dtype == ours.dtype == dtype and theirs.shape == x.shape
        differs = ((ours != theirs) & ~(ours.isnan() & theirs.isnan())).unflatten(-1, (-1, fmt.block_size))
        masks = [exemption.where(x, fmt) for exemption in row.exemptions]
        left = differs & ~torch.stack(masks).any(0) if masks else differs
        counts = tuple(int((differs & mask).sum()) for mask in masks)
        yield Difference(kind, int(differs.sum()), counts, int(left.sum()))


def amax(x: Tensor, fmt: MXFormat) -> Tensor:
    """float32 [..., blocks, 1], NaN where a block has one."""
    assert isinstance(fmt.block_size, int)
    return x.float().unflatten(-1, (-1, fmt.block_size)).abs().amax(-1, keepdim=True)


def at_bottom(x: Tensor, fmt: MXFormat) -> Tensor:
    """The stored exponent is 0, as it is of a block of one element, the maximum."""
    return encode(amax(x, fmt), replace(fmt, block_size=1)).scales == 0


def rounds_beyond(x: Tensor, fmt: MXFormat) -> Tensor:
    bits = fmt.even_bits
    assert bits is not None
    a = amax(x, fmt)
    return a.isfinite() & (a.double() >= (2 - 2.0 ** -(bits + 1)) * 2.0**127)


def logarithm_is_whole(x: Tensor, fmt: MXFormat) -> Tensor:
    """float32's logarithm of the quotient is a whole number, and the quotient no power of two."""
    a = amax(x, fmt)
    quotient = a / torch.full_like(a, fmt.element_format.largest)
    logarithm = quotient.log2()
    return (logarithm == logarithm.floor()) & (quotient.frexp().mantissa != 0.5) & quotient.isfinite()


def logarithm_is_rounded_up(x: Tensor, fmt: MXFormat) -> Tensor:
    """float32's logarithm of the maximum is a whole number, and the maximum less than that power of two."""
    a = amax(x, fmt)
    with np.errstate(divide="ignore"):
        logarithm = torch.from_numpy(np.log2(a.numpy()))  # whose rounding is not torch's
    return (logarithm == logarithm.floor()) & (a.double() < logarithm.double().exp2())


def sixth_as_product(x: Tensor, fmt: MXFormat) -> Tensor:
    """The scale of a block of one element, the maximum, is another under the rule that multiplies."""
    alone = replace(fmt, block_size=1)
    a = amax(x, fmt)
    return encode(a, alone).scales != encode(a, replace(alone, scale_rule="auto_round")).scales


def no_tensor_scale(x: Tensor, fmt: MXFormat) -> Tensor:
    largest = fmt.element_format.largest * fmt.scale_format.largest
    a = amax(x, fmt).amax()
    return (a < largest * 2.0**-128) & (a > 0)


INF = Exemption("a block with an Inf: its scale is finite, its elements saturate", lambda x, fmt: amax(x, fmt).isinf())
NOT_FINITE = Exemption("a block with a NaN or an Inf, where it has numbers", lambda x, fmt: ~amax(x, fmt).isfinite())
BOTTOM = Exemption(
    "a scale of 2^-127, which it does not divide by what it multiplies by (2^-126, or 1 in RCEIL)", at_bottom
)
BEYOND = Exemption("a maximum that is rounded to 2^128", rounds_beyond)
BEYOND_OF_FP4 = Exemption("a maximum of at least 1.75·2^127", rounds_beyond)
LOGARITHM = Exemption(
    "a maximum so little above its largest value times 2^k that float32's logarithm rounds down", logarithm_is_whole
)
LOGARITHM_UP = Exemption("a maximum so little below 2^k that float32's logarithm rounds up", logarithm_is_rounded_up)
BELOW_NORMAL = Exemption(
    "a scale of 2^-127 or less, whose exponent wraps around",
    lambda x, fmt: encode(amax(x, fmt), replace(fmt, block_size=1)).scales == 0,
)
PRODUCT = Exemption(
    "a maximum whose sixth is rounded to another scale as the product with 1/6, which it takes", sixth_as_product
)
TENSOR_SCALE = Exemption(
    "a tensor whose maximum, below 2688·2^-128, has a per-tensor scale beyond float32", no_tensor_scale
)
TENSOR_NOT_FINITE = Exemption(
    "a tensor with a NaN or an Inf, where it has numbers", lambda x, fmt: ~amax(x, fmt).amax().isfinite()
)
ZERO_SCALE_OF_LARGE = Exemption(
    "a scale that is zero, under a maximum of at least 2^105, of which it makes NaN",
    lambda x, fmt: (encode(x, fmt).scales.reshape(amax(x, fmt).shape) == 0) & (amax(x, fmt) >= 2.0**105),
)
SUBNORMAL_64TH = Exemption(
    "a scale below 2^-120, whose 64th, by which it divides, is no normal number",
    lambda x, fmt: encode(amax(x, fmt), replace(fmt, block_size=1)).scales < 7,
)
EPSILON = Exemption(
    "a scale that is rounded to zero, in whose place it takes 2^-23",
    lambda x, fmt: encode(x, fmt).scales.reshape(amax(x, fmt).shape) == 0,
)

MX_ELEMENTS = ("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2")


def mx(element: str, scale_rounding: str, rounding: str = "even") -> str:
    return str(MXFormat(element, 32, rounding=rounding, scale_rounding=scale_rounding))


def nvfp4(rule: str, tensor_scale: bool = True) -> str:
    fmt = MXFormat("fp4_e2m1", 16, scale="e4m3", rounding="even", tensor_scale=tensor_scale, scale_rule=rule)
    return str(fmt)


def torchao_rows() -> Iterator[Row]:
    for element in MX_ELEMENTS:
        for mode in ("floor", "even", "ceil", "rceil"):
            exemptions = (INF, BOTTOM, *([LOGARITHM] if mode == "rceil" else []))
            run = partial(quantizers.torchao_mx, element=element, mode=mode)
            yield Row("torchao", f"MX {element}, {mode.upper()}", mx(element, mode), run, exemptions)
    run = partial(quantizers.torchao_nvfp4, two_level=True)
    yield Row("torchao", "NVFP4, two levels", nvfp4("torchao"), run, (TENSOR_SCALE,))
    run = partial(quantizers.torchao_nvfp4, two_level=False)
    yield Row("torchao", "NVFP4, one level", nvfp4("torchao", tensor_scale=False), run, (INF,))


def compressed_tensors_rows() -> Iterator[Row]:
    for scheme, element, scale_rounding, exemptions in (
        ("MXFP4A16", "fp4_e2m1", "even", (NOT_FINITE, BEYOND)),
        ("MXFP6A16", "fp6_e2m3", "even", (NOT_FINITE, BEYOND)),
        ("MXFP8A16", "fp8_e4m3", "even1", (NOT_FINITE, BEYOND_OF_FP4)),
    ):
        run = partial(quantizers.compressed_tensors, scheme=scheme)
        yield Row("compressed-tensors", scheme, mx(element, scale_rounding), run, exemptions)
    run = partial(quantizers.compressed_tensors, scheme="NVFP4A16")
    yield Row("compressed-tensors", "NVFP4A16", nvfp4("compressed_tensors"), run, (TENSOR_NOT_FINITE, TENSOR_SCALE))


def quark_rows() -> Iterator[Row]:
    for element in MX_ELEMENTS:
        run = partial(quantizers.quark_mx, element=element, mode="even")
        yield Row("amd-quark", f"MX {element}, even", mx(element, "even"), run, (INF, BEYOND))
    run = partial(quantizers.quark_mx, element="int8", mode="even")
    yield Row("amd-quark", "MX int8, even", mx("int8", "even8"), run, (INF, BEYOND, SUBNORMAL_64TH))
    run = partial(quantizers.quark_scheme, scheme="FP4Block16ScaleE4M3Scheme")
    yield Row("amd-quark", "NVFP4", nvfp4("quark"), run, (ZERO_SCALE_OF_LARGE,))
    for size in (16, 32):
        fmt = MXFormat("fp4_e2m1", size, scale="e5m3", rounding="even", tensor_scale=True, scale_rule="quark")
        run = partial(quantizers.quark_scheme, scheme="AmdFP4GlobalScaleScheme", group_size=size)
        yield Row("amd-quark", f"amdfp4_global{size}", str(fmt), run)
    for size in (16, 32):
        fmt = MXFormat("fp4_e2m1", size, scale="e5m3", rounding="even", scale_rule="quark")
        run = partial(quantizers.quark_scheme, scheme="AmdFP4Scheme", group_size=size)
        yield Row("amd-quark", f"amdfp4, blocks of {size}", str(fmt), run, (NOT_FINITE, EPSILON))


def auto_round_rows() -> Iterator[Row]:
    for element in (*MX_ELEMENTS, "int8", "int4"):
        run = partial(quantizers.auto_round_mx, element=element)
        yield Row("auto-round", f"mx_{element}", mx(element, "floor"), run, native=(torch.float32,))
    run = partial(quantizers.auto_round_nvfp4, name="nvfp4_v2")
    fmt = str(MXFormat("fp4_e2m1", 16, scale="e5m3", rounding="even", scale_floor="none"))
    yield Row("auto-round", "nvfp4_v2", fmt, run, (INF, PRODUCT))
    run = partial(quantizers.auto_round_nvfp4, name="nv_fp4")
    yield Row("auto-round", "nv_fp4", nvfp4("auto_round"), run, (TENSOR_SCALE,))


def modelopt_rows() -> Iterator[Row]:
    exemptions = (NOT_FINITE, LOGARITHM)
    yield Row("nvidia-modelopt", "MXFP8", mx("fp8_e4m3", "rceil"), quantizers.modelopt_mxfp8, exemptions)
    fmt = mx("fp4_e2m1", "rceil", rounding="ties_to_zero")
    yield Row("nvidia-modelopt", "MXFP4", fmt, quantizers.modelopt_mxfp4, exemptions)
    yield Row("nvidia-modelopt", "NVFP4", nvfp4("modelopt"), quantizers.modelopt_nvfp4)


def gguf_rows() -> Iterator[Row]:
    fmt = mx("fp4_e2m1", "floor", rounding="ties_to_zero")
    yield Row("gguf", "MXFP4", fmt, quantizers.gguf_mxfp4, (NOT_FINITE, LOGARITHM_UP, BELOW_NORMAL))


def vllm_rows() -> Iterator[Row]:
    yield Row("vLLM", "NVFP4 of inputs, restated", nvfp4("vllm"), quantizers.vllm_nvfp4, (TENSOR_SCALE,))


ROWS: tuple[Row, ...] = (
    *torchao_rows(),
    *compressed_tensors_rows(),
    *quark_rows(),
    *auto_round_rows(),
    *modelopt_rows(),
    *gguf_rows(),
    *vllm_rows(),
)


def check(row: Row) -> None:
    """Raise where a peer's values are others than the row says."""
    seen = [0] * len(row.exemptions)
    for dtype in DTYPES:
        for found in compare(row, dtype):
            assert not found.left, f"{found.left} elements of {found.kind} in {dtype} differ without an exemption"
            seen = [a + b for a, b in zip(seen, found.exempted, strict=True)]
    for exemption, count in zip(row.exemptions, seen, strict=True):
        assert count, f"nothing differs any longer where: {exemption.reason}"
