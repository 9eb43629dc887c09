"""A sweep that nobody ran, with everything that a report shows: outcomes, diagnostics, repeats, failures, warnings."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers.made_runs import config, outcomes, put
from mxsweep.results.record import write_record

PROJECTIONS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
NASTY = "</script><b>bold</b> & \"quoted\" $%_{}~^\\ 'it' <!-- --> |"
LAYERS = 3
N = 200
ENVIRONMENT = {
    "python": "3.11.7",
    "versions": {"mxsweep": "0.1.0", "torch": "2.13.0"},
    "git_sha": "0" * 40,
    "device": "cpu",
    "device_name": "x86_64",
}


def put_study(
    top: Path,
    *,
    blocks: tuple[int, ...] = (16, 32, 64),
    scale_bits: tuple[int, ...] = (6, 8),
    kv: tuple[str, ...] = ("none", "fp4_e2m1"),
    baseline: bool = True,
    samples: bool = True,
    diagnostics: bool = True,
    noise: bool = True,
    **knobs: Any,
) -> None:
    """Runs of every combination, in which a larger block and quantized keys and values cost accuracy, and scale bits
    change nothing.
    """
    drawn = np.random.default_rng(0)
    base = drawn.normal(-0.8, 0.5, N).clip(max=-1e-3)
    hurt = np.abs(drawn.normal(1, 0.5, N))
    points: list[dict[str, Any]] = [{"format": "none"}] if baseline else []
    points += [
        {"block_size": block, "scale_bits": bits, "kv_quant": values}
        for block, bits, values in itertools.product(blocks, scale_bits, kv)
    ]
    for point in points:
        quantized = "format" not in point
        block, has_kv = point.get("block_size", 32), point.get("kv_quant", "none") != "none"
        cost = (block / 16) ** 0.5 * (0.4 if has_kv else 0.15) if quantized else 0.0
        likelihood = base - cost * hurt
        frame = outcomes(list(likelihood))
        folder = top / "_".join(f"{key}{value}" for key, value in point.items())
        bits = 4 + point.get("scale_bits", 8) / block if quantized else 32.0
        record: dict[str, Any] = {
            "overrides": [f"{key}={value}" for key, value in {**point, **knobs}.items()],
            "examples_per_sec": 500.0 + block,
            "environment": ENVIRONMENT,
            "warnings": ["10 requests were cut"] if block == 64 else [],
            "diagnostics": {"bits_per_parameter": bits, "parameter_bytes": bits * 1e6},
        }
        if quantized:
            record["diagnostics"] |= {"bits_per_weight": bits, **_weights(block)}
        ppl, acc = math.exp(-likelihood.mean()), float(frame["acc"].mean())
        metrics = {"acc": acc, "acc_stderr": 0.02, "perplexity": ppl, "perplexity_stderr": 0.05 * ppl}
        if noise and quantized:
            repeats = {"acc": [acc, acc + 0.005], "perplexity": [ppl * 1.001, ppl * 0.999]}
            record["noise"] = {"repeats": 2, "metrics": {"story": repeats}, "seconds": 1.0}
        if diagnostics and quantized:
            record["diagnostics"] |= _measured(has_kv)
        own = {key: value for key, value in knobs.items() if quantized or key != "modules"}
        put(folder, frame if samples else None, {"story": metrics}, record=record, **point, **own)
        if not samples:
            assert not (folder / "samples.parquet").exists()
        if diagnostics and quantized:
            _tensors(has_kv, block).to_parquet(folder / "diagnostics.parquet", index=False)


def put_failed(folder: Path, message: str = "no GPU here", **knobs: Any) -> None:
    """A run that failed."""
    error = {"type": "ConfigError", "message": message}
    record = {"status": "failed", "run_id": f"id_{folder.name}", "metrics": {}, "error": error, "overrides": [message]}
    write_record(folder, {**record, "config": config(**knobs)})


def _weights(block: int) -> dict[str, Any]:
    return {
        "weight_blocks": 1000,
        "weight_blocks_scale_clamped": 0,
        "weights_quantized": 1000 * block,
        "weights_saturated": 20 * block,
        "weights_flushed": 130 * block,
        "weight_exponent_min": -9,
        "weight_exponent_max": 4,
    }


def _measured(has_kv: bool) -> dict[str, Any]:
    kinds = ["weight", "activation", *(["key", "value"] if has_kv else [])]
    figures = {"rmse": 0.05, "elements": 1000, "blocks": 50, "saturated": 20, "flushed": 130, "clamped": 0}
    figures |= {"exponent_min": -9, "exponent_max": 4, "exponent_limit": 31, "unlike_exact": 3, "examples": 9}
    tensors = {kind: {"sqnr_db": 18.0 - index, **figures} for index, kind in enumerate(kinds)}
    distance = {"kl_nats": 0.2, "kl_nats_stderr": 0.01, "top1_agreement": 0.9, "top1_agreement_stderr": 0.01}
    distance |= {"positions": 100, "examples": 100}
    return {"tensors": tensors, "distance": {"story": distance}, "sample": "9 of 200 examples, by a hash of the seed"}


def _tensors(has_kv: bool, block: int) -> pd.DataFrame:
    rows = []
    for layer in range(LAYERS):
        for index, projection in enumerate(PROJECTIONS):
            for kind, ratio in (("weight", 18.0), ("activation", 30.0)):
                module = f"model.layers.{layer}.{projection}"
                rows.append((kind, module, layer, ratio + index - layer - block / 64))
        for kind in ("key", "value") if has_kv else ():
            rows.append((kind, f"model.layers.{layer}.self_attn", layer, 16.0 - layer))
    table = pd.DataFrame(rows, columns=["kind", "module", "layer", "sqnr_db"])
    widths = table["kind"].map(lambda kind: "fp6_e2m3-b32-e8m0" if kind == "activation" else "fp4_e2m1-b32-e8m0")
    table["format"] = widths
    return table.assign(elements=1000, blocks=50, saturated=20, flushed=130, clamped=0)
