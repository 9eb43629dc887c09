"""Small trainings for tests."""

from __future__ import annotations

from typing import Any

from mxsweep.config.model_config import ModelConfig
from mxsweep.config.train_config import FROM_SCRATCH, CorpusConfig, InitConfig, TrainConfig
from mxsweep.formats.training import TrainingRecipe
from mxsweep.training.job import TrainingJob

TRAIN: dict[str, Any] = {
    "method": FROM_SCRATCH,
    "tokens": None,
    "steps": 6,
    "batch": 4,
    "length": 32,
    "micro_batch": "auto",
    "optimizer": "adamw",
    "lr": 5e-3,
    "schedule": "wsd",
    "warmup": 0.2,
    "decay": 0.2,
    "final_lr": 0.0,
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "clip": 1.0,
    "dtype": "bfloat16",
    "master_dtype": "float32",
    "eval_every": None,
    "eval_sequences": 4,
    "checkpoint_every": None,
    "measure_every": None,
    "keep": 2,
    "processes": 1,
    "parallel": "ddp",
    "compile": False,
}
CORPUS: dict[str, Any] = {
    "source": "stories",
    "path": None,
    "name": None,
    "split": "train",
    "field": "text",
    "heldout": None,
    "heldout_share": 0.1,
}
INIT: dict[str, Any] = {
    "source": "random",
    "hidden": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "mlp": 64,
    "tokenizer": "auto",
}


def training_job(
    recipe: TrainingRecipe | None = None,
    corpus: dict[str, Any] | None = None,
    init: dict[str, Any] | None = None,
    **train: Any,
) -> TrainingJob:
    """Return a training of a tiny Llama on stories, on the CPU, with changes to what is below its groups."""
    return TrainingJob(
        train=TrainConfig(**TRAIN | train),
        corpus=CorpusConfig(**CORPUS | (corpus or {})),
        init=InitConfig(**INIT | (init or {})),
        model=embedded_model(),
        recipe=recipe or TrainingRecipe(),
        seed=1,
        identity="of this training",
    )


def embedded_model() -> ModelConfig:
    """Return the embedded model on the CPU, in float32."""
    return ModelConfig(
        name="tiny",
        path="embedded",
        revision=None,
        dtype="auto",
        device="cpu",
        device_map=None,
        attention="auto",
        max_length=None,
        trust_remote_code=False,
        dequantize=False,
        add_bos_token="auto",
    )
