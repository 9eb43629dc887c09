"""Records what microxcaling's PyTorch path answers on small seeded inputs: microxcaling_vectors.safetensors.

Run it with the library on PYTHONPATH, from any folder: `python tests/data/make_vectors.py`. The file is a
safetensors file whose metadata lists the cases: which input, which options, which output.
"""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from mx.mx_ops import _quantize_mx
from safetensors.torch import save_file

OUTPUT = Path(__file__).parent / "microxcaling_vectors.safetensors"
ELEMENTS = ("fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4", "int2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPE = (4, 36)


def make_inputs() -> dict[str, torch.Tensor]:
    """[4, 36] each: heavy tails, ties, the ends of the range, and numbers just under powers of two ("lifts").

    The logarithm of the last ones rounds to an integer, so that only native arithmetic answers like this there.
    """
    generator = torch.Generator().manual_seed(20260207)
    student = torch.randn(SHAPE, generator=generator) / torch.rand(SHAPE, generator=generator).sqrt()
    exponents = torch.randint(-6, 4, SHAPE, generator=generator).float()
    steps = torch.randint(-32, 33, SHAPE, generator=generator) / 16
    ties = steps * 2.0**exponents
    edges = torch.randn(SHAPE, generator=generator) * 2.0 ** torch.linspace(-14, 15, SHAPE[1])
    edges[0, 3], edges[1, 17], edges[2, 16:32] = float("nan"), float("inf"), 0.0
    lifts = 2.0**exponents * (1 - 2.0 ** -torch.randint(3, 25, SHAPE, generator=generator).float())
    return {"student": student, "ties": ties, "edges": edges, "lifts": lifts}


def make_cases() -> Iterator[tuple[str, int, str, int, int, str]]:
    """(element, block size, rounding, scale bits, axis, input): all elements and roundings, a few of the rest."""
    for element, rounding, name in product(ELEMENTS, ("nearest", "even", "floor"), ("student", "ties", "edges")):
        yield element, 16, rounding, 8, -1, name
    for element, rounding in product(("fp8_e5m2", "fp4_e2m1", "int8"), ("nearest", "even", "floor")):
        yield element, 16, rounding, 8, -1, "lifts"
    blocks = ((32, 4, -1), (3, 8, 0), (0, 6, -1))
    for element, (block_size, scale_bits, axis) in product(("fp4_e2m1", "int8"), blocks):
        yield element, block_size, "nearest", scale_bits, axis, "edges"


def main() -> None:
    tensors, cases = {}, []
    for (name, x), (dtype_name, dtype) in product(make_inputs().items(), DTYPES.items()):
        tensors[f"{name}.{dtype_name}"] = x.to(dtype)
    for options, dtype_name in product(make_cases(), DTYPES):
        element, block_size, rounding, scale_bits, axis, name = options
        source, target = f"{name}.{dtype_name}", f"c{len(cases)}"
        tensors[target] = _quantize_mx(
            tensors[source], scale_bits, element, axes=[axis], block_size=block_size, round=rounding
        ).contiguous()
        cases.append(
            {
                "input": source, "output": target, "elem_format": element, "block_size": block_size,
                "round": rounding, "scale_bits": scale_bits, "axis": axis, "dtype": dtype_name,
            }
        )  # fmt: skip
    source = "microsoft/microxcaling, PyTorch CPU path"
    save_file(tensors, OUTPUT, metadata={"cases": json.dumps(cases), "source": source})
    print(f"{OUTPUT}: {len(cases)} cases, {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
