"""How long quantizing one tensor takes, beside what bounds it: copying the tensor on the same device.

    python -m benchmarks.kernel                        on the GPU: every element and scale format, three block sizes
    python -m benchmarks.kernel --device cpu           on the CPU: the library, PyTorch operations and microxcaling's

On a GPU each time is the median over launches that were queued before the first of them began, measured by events
between them: kernels alone, no launch overhead. On a CPU the paths take turns, and each time is the quickest: other
processes can only add to it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import (
    describe_machine,
    machine_lines,
    markdown_table,
    positive,
    positives,
    ratio,
    say,
    write_json,
)
from mxsweep.numerics import (
    ELEMENT_NAMES,
    MXFormat,
    backend_problem,
    microxcaling_problem,
    parse_element,
    quantize,
    quantize_both,
)
from mxsweep.numerics.hadamard import SignedHadamard
from mxsweep.numerics.kernels.cpu_library import LIBRARY
from mxsweep.numerics.reference.definition import quantize_torch

NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, rounding="even")
SCALES = (("e8m0", False), ("e5m3", False), ("e4m3", False), ("e4m3", True), ("fp32", False))
WARM_UP, LAUNCHES = 3, 21
QUEUE_CYCLES = 40_000_000  # of a GPU's clock, some 20 ms: while it spins, all launches are queued
OTHERS = {  # beside the kernels, for the table
    "microxcaling_cuda": "microxcaling CUDA",
    "microxcaling_torch": "microxcaling PyTorch",
    "torch": "mxsweep PyTorch",
    "operations": "its operations alone",
}
CPU_ROUNDS = 5

Call = Callable[[], Tensor]


def gpu_seconds(call: Callable[[], object]) -> float:
    """The median time of one call's kernels."""
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(LAUNCHES + 1)]
    torch.cuda._sleep(QUEUE_CYCLES)
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    spans = [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
    return statistics.median(spans) / 1000


def cpu_seconds(calls: Sequence[Call]) -> list[float]:
    """The quickest time of each of several calls, which take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for round_number in range(CPU_ROUNDS + 1):
        for call, own in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if round_number:
                own.append(time.perf_counter() - start)
    return [min(own) for own in times]


def formats(block_size: int) -> list[MXFormat]:
    """Every element format with every scale that it goes with."""
    return [
        MXFormat(element, block_size, scale, tensor_scale=tensor_scale)
        for scale, tensor_scale in SCALES
        for element in ELEMENT_NAMES
        if scale == "e8m0" or parse_element(element).scale_rounding is None
    ]


def on_gpu(shape: tuple[int, int], dtype: torch.dtype, blocks: Sequence[int]) -> dict[str, Any]:
    """Seconds of a copy, of every format by the kernels, and of other ways to the same answer for three formats."""
    x = torch.randn(shape, device="cuda", dtype=dtype)
    y = torch.empty_like(x)
    problem = backend_problem("microxcaling")
    rows: list[dict[str, Any]] = []
    for block in blocks:
        say(f"block {block}")
        for fmt in formats(block):
            row = {"format": str(fmt), "element": fmt.element, "scale": scale_name(fmt), "block": block}
            row["cuda_s"] = gpu_seconds(functools.partial(quantize, x, fmt, backend="cuda"))
            if fmt.element == "fp4_e2m1":
                row |= beside(x, fmt, problem)
            rows.append(row)
    training, others, in_turn = of_training(x), of_other_blocks(x), of_tensors_in_turn(x)
    # Measured last, when the clocks are those of the rest.
    return {
        "copy_s": gpu_seconds(lambda: y.copy_(x)),
        "rows": rows,
        "training": training,
        "other_blocks": others,
        "in_turn": in_turn,
        "microxcaling": problem,
    }


def of_training(x: Tensor) -> list[dict[str, Any]]:
    """Seconds of what training asks for beside: stochastic rounding, blocks along columns, and both at once."""
    nearest, stochastic = MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1", rounding="stochastic")
    e4m3 = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even")
    rows = []
    for name, fmt in (("nearest", nearest), ("stochastic", stochastic), ("e4m3 scales", e4m3)):
        for axis, along in ((-1, "rows"), (-2, "columns")):
            call = functools.partial(quantize, x, fmt, axis, backend="cuda", generator=5)
            rows.append({"what": f"{along}, {name}", "copies": 1.0, "cuda_s": gpu_seconds(call)})
    blocks = [MXFormat("fp4_e2m1", size) for size in (16, 32, 64)]
    for name, row_format, column_format in (
        *((f"nearest, blocks of {fmt.block_size}", fmt, fmt) for fmt in blocks),
        ("rows nearest, columns stochastic", nearest, stochastic),
        ("stochastic", stochastic, stochastic),
        ("e4m3 scales, blocks of 16", e4m3, e4m3),
        ("fp8_e4m3 even, rows by 32, columns by 64", MXFormat("fp8_e4m3", rounding="even"), MXFormat("fp8_e4m3", 64)),
    ):
        both = functools.partial(quantize_both, x, row_format, column_format, backend="cuda", generators=(5, 6))
        # Reading once and writing twice moves one and a half times the bytes of a copy.
        rows.append({"what": f"rows and columns, {name}", "copies": 1.5, "cuda_s": gpu_seconds(both)})
    return rows


def of_other_blocks(x: Tensor) -> list[dict[str, Any]]:
    """Seconds of tiles, and of blocks of lengths that are no power of two, longer or whole, along both axes."""
    rows = []

    def take(what: str, fmt: MXFormat, axis: int = -1) -> None:
        call = functools.partial(quantize, x, fmt, axis, backend="cuda", generator=5)
        rows.append({"what": what, "cuda_s": gpu_seconds(call)})

    for size in (20, 48, 63, 100, 128, 1024, 0):
        for axis, along in ((-1, "rows"), (-2, "columns")):
            take(f"{along}, {f'blocks of {size}' if size else 'whole'}", MXFormat("fp4_e2m1", size), axis)
    better = replace(NVFP4, four_over_six=True)
    for fmt in (MXFormat("fp4_e2m1", 32, "fp32", symmetric=False), better):
        take(f"rows, {fmt}", fmt)
    tiles = [MXFormat("fp4_e2m1", (size, size)) for size in (16, 32, 64, 128)]
    nvfp4 = [replace(NVFP4, block_size=size) for size in ((16, 16), (16, 1), (1, 48))]
    stochastic = [replace(fmt, rounding="stochastic") for fmt in (tiles[0], nvfp4[0])]
    for fmt in (*tiles, *nvfp4, replace(better, block_size=(16, 16)), *stochastic):
        take(f"tiles, {fmt}", fmt)
    for fmt in (replace(NVFP4, block_size=0), replace(stochastic[0], block_size=0)):
        take(f"columns, {fmt}", fmt, -2)
    for rounding in ("even", "stochastic"):
        fmt = replace(NVFP4, rounding=rounding)
        both = functools.partial(
            quantize_both, x.view(8, -1, x.shape[-1]), fmt, fmt, backend="cuda", generators=(5, 6),
            tensor_dims=((-1,), (-2, -1)), example_dims=1, column_rotation=SignedHadamard(16, 0b0110_1100_0101_1110),
        )  # fmt: skip
        rows.append({"what": f"rows and rotated columns, {fmt}", "cuda_s": gpu_seconds(both)})
    return rows


def of_tensors_in_turn(x: Tensor) -> list[dict[str, Any]]:
    """Seconds of NVFP4 of a quarter of the tensor, which the L2 cache may hold, beside those of copying it.

    Six such tensors take turns, so that none is in the cache before.
    """
    tensors = [x[: max(1, len(x) // 4)].clone() for _ in range(6)]
    y, turns = torch.empty_like(tensors[0]), itertools.cycle(tensors)
    calls: dict[str, Call] = {
        "copying": lambda: y.copy_(next(turns)),
        "a scale of the tensor": lambda: quantize(next(turns), NVFP4, backend="cuda"),
        "a scale of each row": lambda: quantize(next(turns), NVFP4, backend="cuda", tensor_dims=(-1,)),
    }
    return [{"what": what, "cuda_s": gpu_seconds(call)} for what, call in calls.items()]


def beside(x: Tensor, fmt: MXFormat, problem: str | None) -> dict[str, float]:
    """Seconds of our PyTorch path, of its operations alone and, where they can answer, of microxcaling's two."""
    arithmetic = "native" if fmt.has_native_arithmetic else "exact"
    seconds = {"torch_s": gpu_seconds(lambda: quantize(x, fmt, arithmetic=arithmetic))}
    dims = (-1,) if fmt.tensor_scale else None
    seconds["operations_s"] = gpu_seconds(lambda: quantize_torch(x, fmt, -1, arithmetic, None, dims))
    if problem is None and microxcaling_problem(fmt, "exact") is None:
        for name, arithmetic in (("microxcaling_cuda_s", "exact"), ("microxcaling_torch_s", "native")):
            seconds[name] = gpu_seconds(
                functools.partial(quantize, x, fmt, backend="microxcaling", arithmetic=arithmetic)
            )
    return seconds


def scale_name(fmt: MXFormat) -> str:
    return f"{fmt.scale} + tensor" if fmt.tensor_scale else fmt.scale


def gpu_report(found: dict[str, Any], blocks: Sequence[int]) -> str:
    """The times as multiples of the copy's: a table for each kind of scale's kernels, and one beside the others."""
    copy_s, rows = found["copy_s"], found["rows"]
    by_format = {(row["element"], row["scale"], row["block"]): row for row in rows}
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    kernels = [
        [f"{scale}, block {block}"]
        + [ratio(by_format.get((element, scale, block), {}).get("cuda_s"), copy_s) for element in ELEMENT_NAMES]
        for scale in scales
        for block in blocks
    ]
    others = [
        [row["format"], f"{row['cuda_s'] * 1e3:.3f}"] + [ratio(row.get(f"{name}_s"), row["cuda_s"]) for name in OTHERS]
        for row in rows
        if "torch_s" in row
    ]
    training = [
        [
            row["what"],
            f"{row['cuda_s'] * 1e3:.4f}",
            ratio(row["cuda_s"], copy_s),
            ratio(row["cuda_s"], copy_s * row["copies"]),
        ]
        for row in found["training"]
    ]
    others_of_ours = [
        [row["what"], f"{row['cuda_s'] * 1e3:.4f}", ratio(row["cuda_s"], copy_s)] for row in found["other_blocks"]
    ]
    in_turn = [
        [row["what"], f"{row['cuda_s'] * 1e3:.4f}", ratio(row["cuda_s"], found["in_turn"][0]["cuda_s"])]
        for row in found["in_turn"]
    ]
    note = f"microxcaling was not measured: {found['microxcaling']}" if found["microxcaling"] else ""
    return "\n\n".join(
        filter(
            None,
            (
                f"Copying the tensor takes {copy_s * 1e3:.4f} ms. The kernels, as multiples of that (a per-tensor "
                "scale has the tensor read twice, for which a copy would take 1.5 times as long):",
                markdown_table(["scale", *ELEMENT_NAMES], kernels),
                "Other paths, as multiples of the kernel's time (ours and microxcaling's PyTorch path: native "
                "arithmetic where there is one):",
                markdown_table(["format", "kernel, ms", *OTHERS.values()], others),
                "What training asks for beside, fp4_e2m1; the least is what reading the tensor once and writing each "
                "answer once would take at a copy's speed:",
                markdown_table(["what", "ms", "copies", "times the least"], training),
                "Blocks of other kinds, fp4_e2m1:",
                markdown_table(["what", "ms", "copies"], others_of_ours),
                "NVFP4 of a quarter of the tensor, six such in turn:",
                markdown_table(["what", "ms", "copies"], in_turn),
                note,
            ),
        )
    )


def on_cpu(shape: tuple[int, int], blocks: Sequence[int]) -> dict[str, Any]:
    """Seconds of a copy, of the library, our PyTorch operations and microxcaling's, and whether all agree."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    problem = backend_problem("microxcaling")
    LIBRARY.build()
    rows = []
    for fmt in [*(MXFormat(name, block) for name in ("fp4_e2m1", "fp6_e2m3", "int8") for block in blocks), NVFP4]:
        say(str(fmt))
        dims = (-1,) if fmt.tensor_scale else None  # as of inputs
        calls: dict[str, Call] = {
            "copy": x.clone,
            "library": functools.partial(quantize, x, fmt, tensor_dims=dims),
            "torch": functools.partial(quantize_torch, x, fmt, -1, "native", None, dims),
        }
        if LIBRARY.built_by is None:
            del calls["library"]
        if problem is None and microxcaling_problem(fmt, "native") is None:
            calls["microxcaling"] = functools.partial(quantize, x, fmt, backend="microxcaling")
        seconds = dict(zip(calls, cpu_seconds(list(calls.values())), strict=True))
        same = all(torch.equal(calls["torch"](), call()) for name, call in calls.items() if name != "copy")
        rows.append({"format": str(fmt), **{f"{name}_s": one for name, one in seconds.items()}, "same_bits": same})
    return {"rows": rows, "microxcaling": problem, "library": LIBRARY.built_by}


def cpu_report(found: dict[str, Any]) -> str:
    rows = [
        [
            row["format"],
            f"{row['copy_s'] * 1e3:.2f}",
            *(ratio(row.get(f"{name}_s"), row["copy_s"]) for name in ("library", "torch", "microxcaling")),
            ratio(row["torch_s"], row.get("library_s")),
            "yes" if row["same_bits"] else "NO",
        ]
        for row in found["rows"]
    ]
    headers = [
        "format",
        "copying, ms",
        "library, copies",
        "torch, copies",
        "microxcaling, copies",
        "torch / library",
        "same bits",
    ]
    built = f"The library was built by {found['library']}." if found["library"] else "There was no compiler."
    note = f" microxcaling was not measured: {found['microxcaling']}." if found["microxcaling"] else ""
    return f"{markdown_table(headers, rows)}\n\n{built}{note}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--rows", type=positive, help="default: 8192, on a CPU 4096")
    parser.add_argument("--columns", type=positive, help="default: 8192, on a CPU 4096")
    parser.add_argument("--blocks", type=positives, default=[16, 32, 64], help="default: 16,32,64")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="on a GPU")
    parser.add_argument("--only-training", action="store_true", help="on a GPU: no table of formats")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args(argv)
    default = 8192 if args.device == "cuda" else 4096
    shape = (args.rows or default, args.columns or default)
    if args.device == "cuda" and (problem := backend_problem("cuda")):
        parser.error(f"{problem}; --device cpu measures the CPU")
    dtype = getattr(torch, args.dtype) if args.device == "cuda" else torch.float32
    found = (
        on_gpu(shape, dtype, [] if args.only_training else args.blocks)
        if args.device == "cuda"
        else on_cpu(shape, args.blocks)
    )
    machine = describe_machine()
    print("\n".join(machine_lines(machine)))
    print(f"\nA tensor of {shape[0]} x {shape[1]} in {str(dtype).removeprefix('torch.')}.\n")
    print(gpu_report(found, args.blocks) if args.device == "cuda" else cpu_report(found))
    write_json(args.json, {"machine": machine, "shape": shape, "dtype": str(dtype), **found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
