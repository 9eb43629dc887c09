"""Tables that are kept for the process are tensors as others, whatever mode the first to ask for them was in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.hadamard import SignedHadamard, _base, _factors, _signs, hadamard
from mxsweep.numerics.reference import rounding

TABLES = (_base, _factors, _signs, rounding.native_table)


@pytest.mark.parametrize("first", ["fake", "real"])
@pytest.mark.parametrize(
    "work",
    [
        SignedHadamard(16, 5).rotate,
        lambda x: hadamard(x, 12),
        lambda x: quantize(x.bfloat16(), MXFormat("fp4_e2m1")),
    ],
    ids=["signs", "base", "native"],
)
def test_a_table_is_never_one_that_stands_for_another(work: Callable[[Tensor], Tensor], first: str) -> None:
    for table in TABLES:
        table.cache_clear()  # type: ignore[attr-defined]
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    expected = work(x) if first == "real" else None
    for _ in range(2):
        with FakeTensorMode() as mode:
            fake = work(mode.from_tensor(x))
            assert isinstance(fake, FakeTensor) and fake.shape == x.shape
    real = work(x)
    assert type(real) is Tensor and (expected is None or torch.equal(real, expected))


def test_a_table_is_made_once_and_in_no_inference_mode() -> None:
    _signs.cache_clear()  # type: ignore[attr-defined]
    of = (SignedHadamard(16, 5), torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        signs = _signs(*of)
    assert not signs.is_inference() and _signs(*of) is signs
