"""Folders of runs that nobody ran: a record and samples.parquet as a run writes them, with made-up outcomes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mxsweep.files.digests import json_digest
from mxsweep.results.record import write_record

FORMATS = {
    "none": ("none", "none"),
    "w4a6": ("fp4_e2m1", "fp6_e2m3"),
    "mxfp4": ("fp4_e2m1", "fp4_e2m1"),
    "mint4": ("mint4", "mint4"),
}
_CALIBRATED = {"calibration": {"source": "stories", "samples": 128, "length": 512}}
_NOT_ROTATED = {"rotation": {"method": "none"}, "rotation_block": None}
_GPTQ = {"ptq": {"method": "gptq", "clip_loss": "output", "damping": 0.01, "act_order": True}, **_CALIBRATED}
# What a run's config has of remedies, by name: `put(folder, **REMEDIES["gptq"])`.
REMEDIES: dict[str, dict[str, Any]] = {
    "old": {},  # from before there were any
    "rtn": {"ptq": {"method": "rtn"}, "calibration": None, **_NOT_ROTATED},
    "clip": {"ptq": {"method": "clip", "clip_loss": "output"}, **_CALIBRATED, **_NOT_ROTATED},
    "gptq": {**_GPTQ, **_NOT_ROTATED},
    "search": {**_GPTQ, "rotation": {"method": "search", "matmuls": "q+k+v"}, "rotation_block": 0},
}


def config(**knobs: Any) -> dict[str, Any]:
    """A run's config: the defaults, but for `knobs`."""
    fmt, kv = knobs.pop("format", "w4a6"), knobs.pop("kv_quant", "none")
    model = {"name": "tiny", "path": "embedded", "dtype": "float32"} | knobs.pop("model", {})
    task = {"name": "story", "names": ["story"], "data": {}, "num_fewshot": None} | knobs.pop("task", {})
    weight, activation = FORMATS[fmt]
    return {
        "format": {"name": fmt, "weight": weight, "activation": activation},
        "block_size": 32,
        "scale_bits": 8,
        "scale": "e8m0",
        "custom_cuda": False,
        "kv_quant": {"name": kv, "key": kv, "value": kv} | knobs.pop("kv", {}),
        "limit": None,
        "model": model,
        "task": task,
        "modules": {},
        "seed": 1234,
        **knobs,
    }


def outcomes(loglikelihood: Sequence[float], correct: Sequence[Any] | None = None, **columns: Any) -> pd.DataFrame:
    """Rows of samples.parquet for the task story, document i with the hash h<i>."""
    n = len(loglikelihood)
    rows = {"task": "story", "doc_id": range(n), "doc_hash": [f"h{i}" for i in range(n)], "filter": "none"}
    rows |= {
        "loglikelihood": loglikelihood,
        "acc": [int(x > -1) for x in loglikelihood] if correct is None else correct,
    }
    return pd.DataFrame(rows | columns)


def put(
    folder: Path,
    samples: pd.DataFrame | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    **knobs: Any,
) -> Path:
    """Write a done run. `metrics` are by task (by default those of `samples`, of the task story), `record` fields of
    the record, and `knobs` of its config.
    """
    folder.mkdir(parents=True)
    if metrics is None and samples is not None:
        found = {"acc": float(samples["acc"].mean()), "perplexity": float(np.exp(-samples["loglikelihood"].mean()))}
        metrics = {"story": found}
    if samples is not None:
        samples.to_parquet(folder / "samples.parquet", index=False)
    metrics = {task: dict(values) for task, values in (metrics or {"story": {"acc": 0.5}}).items()}
    write_record(
        folder,
        {
            "status": "done",
            "run_id": f"id_{folder.name}",
            "config": config(**knobs),
            "config_hash": f"{folder.name} {json_digest(config(**knobs))}",
            "metrics": metrics,
            "n_effective": dict.fromkeys(metrics, 0 if samples is None else len(samples)),
            "timing": {"eval_s": 1.0},
            "examples_per_sec": 1.0,
            "diagnostics": {},
            "error": None,
            **(record or {}),
        },
    )
    return folder
