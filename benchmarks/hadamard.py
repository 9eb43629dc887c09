"""How long a Hadamard rotation of one tensor takes, beside what bounds it: copying the tensor on the same device.

    python -m benchmarks.hadamard                      on the GPU: blocks of 12 to 16384, and sizes of models
    python -m benchmarks.hadamard --device cpu         PyTorch operations on the CPU

Blocks that are powers of two divide rows of --columns; where a block is longer or does not, rows are
as long as the block and as many as give the tensor about as many elements. Times are taken as by kernel.py, the copy's
(the quicker of two) of the same tensor just before and just after the rotation's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    describe_machine,
    machine_lines,
    markdown_table,
    positive,
    positives,
    ratio,
    say,
    words_of,
    write_json,
)
from benchmarks.kernel import cpu_seconds, gpu_seconds
from mxsweep.numerics import backend_problem
from mxsweep.numerics.hadamard import hadamard
from mxsweep.numerics.paley import base_factor

BLOCKS = [2**log for log in range(4, 15)] + [12, 20, 24, 28, 36, 44, 48, 96, 384]
# Hidden sizes of Qwen2.5-0.5B, Llama-3.2-3B and Qwen2.5-7B, then of MLPs: those of Qwen2.5-0.5B, TinyLlama,
# Qwen2.5-1.5B, Llama-2-7B, Llama-3-8B, Qwen2.5-7B, Llama-65B, Llama-3-70B and Llama-3.1-405B.
SIZES = [896, 3072, 3584, 4864, 5632, 8960, 11008, 14336, 18944, 22016, 28672, 53248]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def measure(shape: tuple[int, int], block: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Seconds of a rotation of blocks, and of copying the tensor; the shape."""
    elements, columns = shape[0] * shape[1], shape[1]
    if columns % block:
        columns = block
    x = torch.randn((max(1, elements // columns), columns), device=device, dtype=dtype)
    y = torch.empty_like(x)

    def copy() -> torch.Tensor:
        return y.copy_(x)

    def rotate() -> torch.Tensor:
        return hadamard(x, block)

    if device == "cuda":
        before, rotation_s, after = gpu_seconds(copy), gpu_seconds(rotate), gpu_seconds(copy)
        copy_s = min(before, after)
    else:
        rotation_s, copy_s = cpu_seconds([rotate, copy])
    return {
        "block": block,
        "dense": len(base_factor(block)),
        "rows": x.shape[0],
        "columns": columns,
        "dtype": str(dtype).removeprefix("torch."),
        "rotation_s": rotation_s,
        "copy_s": copy_s,
    }


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each block: times in ms and as a multiple of the copy's."""
    table = [
        [
            str(row["block"]),
            "-" if row["dense"] == 1 else str(row["dense"]),
            f"{row['rows']} x {row['columns']}",
            row["dtype"],
            f"{row['copy_s'] * 1e3:.4f}",
            f"{row['rotation_s'] * 1e3:.4f}",
            ratio(row["rotation_s"], row["copy_s"]),
        ]
        for row in rows
    ]
    headers = ["block", "dense factor", "tensor", "dtype", "copy, ms", "rotation, ms", "times the copy"]
    return markdown_table(headers, table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hadamard", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--rows", type=positive, help="default: 8192, on a CPU 512")
    parser.add_argument("--columns", type=positive, help="default: 8192, on a CPU 4096")
    parser.add_argument(
        "--blocks", type=positives, default=BLOCKS + SIZES, help="default: 12 to 16384 and models' sizes"
    )
    parser.add_argument(
        "--dtypes", type=words_of(list(DTYPES)), default=["bfloat16", "float32"], metavar="D,...", help="of float16 too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args(argv)
    if args.device == "cuda" and (problem := backend_problem("cuda")):
        parser.error(f"{problem}; --device cpu measures the CPU")
    rows, columns = (8192, 8192) if args.device == "cuda" else (512, 4096)
    shape = (args.rows or rows, args.columns or columns)
    found = []
    for name in args.dtypes:
        for block in args.blocks:
            say(f"{name}, block {block}")
            found.append(measure(shape, block, DTYPES[name], args.device))
    machine = describe_machine()
    print("\n".join(machine_lines(machine)))
    print(f"\n{report(found)}")
    write_json(args.json, {"machine": machine, "rows": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
