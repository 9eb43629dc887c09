"""Trainings that nobody did: records, curves, roles and held-out sequences as a run that trains leaves them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers.made_runs import put
from mxsweep.files.digests import json_digest

SEQUENCES, LENGTH, STEPS, BATCH_TOKENS = 40, 64, 20, 1024
OPERANDS = {"dgrad.grad": "fp4_e2m1-b32-e8m0", "fprop.weight": "fp4_e2m1-b32-e8m0", "dW": ""}
VALIDATION = {"name": "validation", "names": ["none"]}


def put_training(
    folder: Path,
    seed: int = 1,
    cost: float = 0.0,
    diverged_at: int | None = None,
    speed: float = 1000.0,
    roles: dict[str, float] | None = None,
    identity: dict[str, Any] | None = None,
    recorded: dict[str, Any] | None = None,
    bits: float | None = None,
    **knobs: Any,
) -> Path:
    """Write a training whose loss on every held-out token is `cost` nats above that of nothing quantized with its seed.

    `roles` has a signal over noise in dB by operand; `cost` grows from 0 in proportion to the step. `identity` is the
    record's; `recorded` is its config, in the place of knobs; `bits` those of a weight.
    """
    of_seed = np.random.default_rng(seed).normal(0, 0.01)
    losses = 2.0 + np.random.default_rng(0).normal(0, 0.3, SEQUENCES) + of_seed + cost
    samples = pd.DataFrame(
        {
            "task": "validation",
            "doc_id": range(SEQUENCES),
            "doc_hash": [f"s{i}" for i in range(SEQUENCES)],
            "loglikelihood": -losses * LENGTH,
            "tokens": LENGTH,
        }
    )
    loss = math.nan if diverged_at is not None else float(losses.mean())
    last = STEPS if diverged_at is None else diverged_at
    training = {"steps": last, "tokens": last * BATCH_TOKENS, "tokens_per_s": speed, "seconds": 2.0, "loss": loss}
    training |= {"parameters": 800_000, "validation_loss": loss, "diverged_at": diverged_at}
    metrics = {"validation": {"loss": loss, "loss_stderr": 0.3 / SEQUENCES**0.5}}
    record: dict[str, Any] = {"training": training, "n_effective": {"validation": SEQUENCES}}
    record |= {"timing": {}, "examples_per_sec": None}
    quantized = None if knobs.get("format", "none") == "none" else {"knobs": knobs}
    record["identity"] = {"model": {}, "seed": seed, "quantized": quantized, **(identity or {})}
    record["config_hash"] = json_digest(record["identity"])
    record |= {"config": recorded} if recorded else {}
    record |= {} if bits is None else {"diagnostics": {"bits_per_weight": bits}}
    put(
        folder,
        None if diverged_at is not None else samples,
        metrics,
        record=record,
        task=VALIDATION,
        **{"format": "none", **knobs, "seed": seed},
    )
    step = np.arange(1, last + 1)
    share = step / STEPS
    curve = pd.DataFrame({"step": step, "tokens": step * BATCH_TOKENS, "lr": 1e-3})
    curve["loss"] = 6.0 - 3.5 * share + of_seed + cost * share
    curve["grad_norm"], curve["tokens_per_s"] = 1.0, speed
    curve["validation_loss"] = np.where(step % 10 == 0, curve["loss"] + 0.1, math.nan)
    curve.to_parquet(folder / "curves.parquet", index=False)
    if roles:
        put_roles(folder, roles)
    return folder


def put_roles(folder: Path, snr_db: dict[str, float], modules: int = 4) -> None:
    """Write what quantizing did to these operands, by signal over noise in dB: a little more in each further block."""
    rows = [
        {
            "step": step,
            "module": f"model.layers.{layer}.mlp.down_proj",
            "layer": layer,
            "role": "down",
            "operand": operand,
            "format": OPERANDS.get(operand, ""),
            "snr_db": ratio + 0.1 * layer,
            "underflow": 0.1,
            "saturation": 0.02,
            "clamped": 0.0,
            "cosine": 0.99,
            "slope": 0.95,
        }
        for step in (1, STEPS)
        for layer in range(modules)
        for operand, ratio in snr_db.items()
    ]
    frame = pd.DataFrame(rows)
    gradients = frame["operand"].isin(["dW", "dX"])
    frame.loc[gradients, ["underflow", "saturation", "clamped"]] = math.nan
    frame.to_parquet(folder / "roles.parquet", index=False)
