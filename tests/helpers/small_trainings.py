"""A training that takes a second: words of the smallest model and corpus that whole blocks of 32 fit in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

MODEL = ["init.hidden=32", "init.layers=2", "init.heads=1", "init.kv_heads=1", "init.mlp=32"]
STEPS = ["train.steps=6", "train.batch=2", "train.length=32", "train.eval_sequences=3", "train.lr=1e-2"]
SMALL = [*MODEL, *STEPS, "limit=6", "model.device=cpu"]
TRAINED = ["train=from_scratch", *SMALL]
TIMES = ["tokens_per_s"]  # what two trainings of the same words may differ in


def curve_of(folder: Path) -> pd.DataFrame:
    """What a training logged, without its speed."""
    return pd.read_parquet(folder / "curves.parquet").drop(columns=TIMES)


def answers_of(folder: Path, record: dict[str, Any]) -> tuple[Any, ...]:
    """All that a run says that no second run of the same words may say otherwise, as plain data."""
    tables = [pd.read_parquet(file) for file in sorted(folder.glob("[rs]*.parquet"))]  # of roles, of samples
    training = {name: record["training"][name] for name in ("steps", "tokens", "loss", "validation_loss")}
    rows = [table.astype(object).where(table.notna(), None).to_dict("records") for table in tables]
    curve = curve_of(folder).astype(object)
    return record["metrics"], training, curve.where(curve.notna(), None).to_dict("records"), *rows
