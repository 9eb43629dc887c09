"""Have numerics tested by the definition itself, in torch's operations: only test_cpu.py takes the CPU's library."""

from collections.abc import Iterator

import pytest

from mxsweep.numerics.kernels.cpu_library import LIBRARY


@pytest.fixture(autouse=True, scope="module")
def _by_the_definition(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_cpu.py":
            patch.setattr(LIBRARY, "for_elements", lambda _: None)
        yield
