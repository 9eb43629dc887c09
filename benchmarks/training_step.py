"""How long a step of training takes under MX formats, beside the same model's step in bfloat16.

    python -m benchmarks.training_step                        a Llama of 30 million parameters, sequences of 512 tokens
    python -m benchmarks.training_step --size 8b              two decoder blocks of the shape of Llama-3-8B
    python -m benchmarks.training_step --device cpu --size 1m --batch 2 --length 64 --steps 2     to try it out

A step is what the training loop does with a batch: gradients of the mean loss in bfloat16 under autocast, weights and
AdamW in float32, gradients clipped. Each path trains the same random model on the same random tokens; times are by the
clock, over steps that are all asked for before the device is waited for. Beside the recipes stand, where they can be
imported, Microsoft's own Linear (fp4_e2m1 in all operands, its PyTorch path) and torchao's emulated MXFP8 product.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import (
    describe_machine,
    machine_lines,
    markdown_table,
    positive,
    ratio,
    say,
    words_of,
    write_json,
)
from mxsweep import compose
from mxsweep.config.option_files import option_names, read_option
from mxsweep.model.decoder import decoder_blocks
from mxsweep.numerics import backend_problem
from mxsweep.numerics.kernels.compile import launch_count
from mxsweep.training.layers import training_layers
from mxsweep.training.step import Step

BF16, COMPILED, MICROXCALING, TORCHAO = "bf16", "bf16-compiled", "microxcaling", "torchao"
RECIPES = [name for name in option_names("recipe") if name not in ("none", "bf16")]
PATHS = [BF16, COMPILED, *RECIPES, *(f"{name}-compiled" for name in RECIPES), MICROXCALING, TORCHAO]
DEFAULT = [BF16, COMPILED, "mxfp8", "mxfp4", "mxfp4_sr", "nvfp4", "mxfp4_sr-compiled", MICROXCALING, TORCHAO]
SIZES = ("1m", "10m", "30m", "60m", "8b")
_8B = {"hidden": 4096, "layers": 2, "heads": 32, "kv_heads": 8, "mlp": 14336}
VOCABULARY = 512
WARM_UP, REPEATS = 3, 3


def make_model(size: str, length: int, device: str) -> LlamaForCausalLM:
    """A random Llama of a size of ``init=``, or two blocks of the shape of Llama-3-8B."""
    sizes: dict[str, Any] = _8B if size == "8b" else read_option("init", size) or {}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        intermediate_size=sizes["mlp"],
        max_position_embeddings=length,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.device(device):
        return LlamaForCausalLM(config)


@contextmanager
def prepared(path: str, model: LlamaForCausalLM, step: Step, custom_cuda: bool) -> Iterator[Callable[..., Any]]:
    """What is called in the model's place, while the context lasts; the model is as it was afterwards."""
    name = path.removesuffix("-compiled")
    with ExitStack() as stack:
        if name in RECIPES:
            words = ["train=from_scratch", f"recipe={name}", f"custom_cuda={str(custom_cuda).lower()}"]
            stack.enter_context(training_layers(model, compose(words).training_recipe, step))
        elif name in (MICROXCALING, TORCHAO):
            replace_linears(model, microxcaling_linear() if name == MICROXCALING else torchao_linear())
        yield torch.compile(model) if path.endswith("-compiled") else model


def replace_linears(model: LlamaForCausalLM, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put other layers into the decoder blocks in place of linear ones."""
    for block in decoder_blocks(model).values():
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, make(child))


def microxcaling_linear() -> Callable[[nn.Linear], nn.Module]:
    """Microsoft's Linear, fp4_e2m1 in blocks of 32 in all operands."""
    from mx.linear import Linear
    from mx.specs import MxSpecs

    specs = MxSpecs()
    for name in specs:
        if "elem_format" in name:
            specs[name] = "fp4_e2m1"
    for name, value in {"scale_bits": 8, "block_size": 32, "custom_cuda": False}.items():
        specs[name] = value

    def make(linear: nn.Linear) -> nn.Module:
        layer = Linear(linear.in_features, linear.out_features, bias=False, mx_specs=specs)
        layer.weight = linear.weight
        # Its function knows no autocast, and is not custom_fwd.
        layer.forward = _under_autocast(layer)
        return layer

    return make


def _under_autocast(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    from mx.linear import linear

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            answer: Tensor = linear(x.bfloat16(), layer.weight.bfloat16(), None, mx_specs=layer.mx_specs)
        return answer

    return forward


def torchao_linear() -> Callable[[nn.Linear], nn.Module]:
    """torchao's product in MXFP8, emulated."""
    from torchao.prototype.moe_training.mxfp8_linear import mx_mm
    from torchao.prototype.mx_formats.config import (
        MXFP8Dim0CastKernelChoice,
        MXFP8Dim1CastKernelChoice,
        ScaleCalculationMode,
    )
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    class Emulated(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.weight = linear.weight

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                answer: Tensor = mx_mm.apply(
                    x.bfloat16(), self.weight.bfloat16(), *[torch.float8_e4m3fn] * 3, 32, KernelPreference.EMULATED,
                    MXFP8Dim0CastKernelChoice.TORCH, MXFP8Dim1CastKernelChoice.TORCH, ScaleCalculationMode.RCEIL, False,
                )  # fmt: skip
            return answer

    return Emulated


class Trainer:
    """Takes steps of one path."""

    def __init__(self, path: str, size: str, batch: int, length: int, device: str) -> None:
        self._device, self._step = device, Step()
        self._model = make_model(size, length, device)
        self._tokens = torch.randint(VOCABULARY, (batch, length + 1), device=device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=device == "cuda")
        self._context = prepared(path, self._model, self._step, device == "cuda")
        self.running: Callable[..., Any]

    def __enter__(self) -> Trainer:
        self.running = self._context.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._context.__exit__(*raised)

    def step(self) -> Tensor:
        """Take one step; return the loss."""
        self._step.number += 1
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, torch.bfloat16):
            logits = self.running(input_ids=self._tokens[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), self._tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        return loss.detach()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def warm(path: str, args: argparse.Namespace) -> Iterator[Trainer]:
    """What takes a path's steps, after the first ones; what they held is given back."""
    try:
        with Trainer(path, args.size, args.batch, args.length, args.device) as trainer:
            for _ in range(WARM_UP):
                trainer.step()
            wait(args.device)
            yield trainer
    finally:
        gc.collect()
        torch._dynamo.reset()
        if args.device == "cuda":
            torch.cuda.empty_cache()


def measure(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """A path's seconds a step, launches of kernels of ours, memory and the last loss."""
    say(path)
    begun = time.perf_counter()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with warm(path, args) as trainer:
        seconds, launched = [], launch_count()
        for _ in range(REPEATS):
            start = time.perf_counter()
            for _ in range(args.steps):
                loss = trainer.step()
            wait(args.device)
            seconds.append((time.perf_counter() - start) / args.steps)
        found = {
            "path": path,
            "step_s": statistics.median(seconds),
            "mx_kernels": (launch_count() - launched) / (REPEATS * args.steps),
            "loss": float(loss),
        }
        if args.device == "cuda":
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["whole_s"] = time.perf_counter() - begun
        return found


def busy(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds that kernels of one step take, how many there are, and the seconds of those that quantize."""
    say(f"{path}, profiled")
    with warm(path, args) as trainer, profile(activities=[ProfilerActivity.CUDA]) as profiled:
        trainer.step()
        torch.cuda.synchronize()
    kernels = [event for event in profiled.key_averages() if event.self_device_time_total > 0]
    return {
        "busy_s": sum(event.self_device_time_total for event in kernels) / 1e6,
        "quantizing_s": sum(event.self_device_time_total for event in kernels if event.key.startswith("mx_")) / 1e6,
        "kernels": sum(event.count for event in kernels),
    }


def report(rows: Sequence[dict[str, Any]], tokens: int) -> str:
    """A line for each path."""
    steps = {row["path"]: row["step_s"] for row in rows if "step_s" in row}
    gpu = any("busy_s" in row for row in rows)
    table = []
    for row in rows:
        if "step_s" not in row:
            continue
        line = [row["path"], f"{row['step_s'] * 1e3:.2f}", f"{tokens / row['step_s']:,.0f}"]
        line += [ratio(row["step_s"], steps.get(path)) for path in (BF16, COMPILED)]
        if gpu:
            line += [f"{row[name] * 1e3:.2f}" for name in ("busy_s", "quantizing_s")]
            line += [str(row["kernels"]), f"{row['mx_kernels']:.0f}", f"{row['peak_gib']:.1f}"]
        table.append([*line, f"{row['loss']:.3f}"])
    headers = ["path", "step, ms", "tokens/s", "x bf16", "x bf16-compiled"]
    headers += ["GPU busy, ms", "quantizing, ms", "kernels", "of these ours", "GiB"] if gpu else []
    failed = [f"{row['path']} was not measured: {row['problem']}" for row in rows if "problem" in row]
    return "\n".join([markdown_table([*headers, "loss"], table), *failed])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--size", choices=SIZES, default="30m", help="default: 30m")
    parser.add_argument("--batch", type=positive, help="sequences a step; default: 32, of 8b 2")
    parser.add_argument("--length", type=positive, help="tokens of a sequence; default: 512, of 8b 4096")
    parser.add_argument("--steps", type=positive, default=10, help="at a time; default: 10")
    parser.add_argument("--paths", type=words_of(PATHS), default=DEFAULT, metavar="P,...", help=",".join(DEFAULT))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args(argv)
    args.batch = args.batch or (2 if args.size == "8b" else 32)
    args.length = args.length or (4096 if args.size == "8b" else 512)
    if args.device == "cuda" and (problem := backend_problem("cuda")):
        parser.error(f"{problem}; --device cpu measures the CPU")
    rows: list[dict[str, Any]] = []
    for path in args.paths:
        try:
            rows.append(measure(path, args))
        except Exception as error:  # another library's, or a compiler's: the rest is measured all the same
            rows.append({"path": path, "problem": f"{type(error).__name__}: {str(error).splitlines()[0]:.300}"})
    # Once torch's profiler has run in a process, each launch of a kernel takes longer: all are timed before.
    for row in rows if args.device == "cuda" else []:
        if "problem" not in row:
            row |= busy(row["path"], args)
    machine = describe_machine()
    print("\n".join(machine_lines(machine)))
    print(f"\n{args.size}, {args.batch} sequences of {args.length} tokens a step.\n")
    print(report(rows, args.batch * args.length))
    write_json(
        args.json, {"machine": machine, "size": args.size, "batch": args.batch, "length": args.length, "rows": rows}
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
