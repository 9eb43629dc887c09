"""Hold what training reads of a run's config, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.config.model_config import ModelConfig
from mxsweep.config.train_config import CorpusConfig, InitConfig, TrainConfig
from mxsweep.formats.training import TrainingRecipe

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TrainingJob:
    """Hold one training.

    Attributes:
        seed: of initial weights and of the order of the data.
        identity: what tells the run from every other, for its checkpoints.
    """

    train: TrainConfig
    corpus: CorpusConfig
    init: InitConfig
    model: ModelConfig
    recipe: TrainingRecipe
    seed: int
    identity: str


@dataclass(frozen=True)
class Trained:
    """Hold a trained model, plain again and in its master dtype, and how it came to be.

    Attributes:
        curve: a row a step: step (from 1), tokens, lr, loss (nats a token, of that step's batch), grad_norm,
            tokens_per_s, validation_loss (NaN where none was taken).
        roles: what formats did to operands and gradients, a row each.
        validation: a row a held-out sequence, at the end: doc_id, doc_hash, loglikelihood (nats, the sum), tokens.
        summary: of the record.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    curve: Rows
    roles: Rows
    validation: Rows
    summary: dict[str, Any]
    warnings: Sequence[str] = ()
