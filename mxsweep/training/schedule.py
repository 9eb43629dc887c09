"""Give the learning rate of each step."""

from __future__ import annotations

import math

from mxsweep.config.train_config import TrainConfig

CONSTANT, LINEAR, COSINE, WSD = "constant", "linear", "cosine", "wsd"


def learning_rate(train: TrainConfig, step: int) -> float:
    """Return the learning rate of a step, from 1.

    It rises over the first ``warmup`` of the steps to ``lr``, which the last step of these has; the first step after
    them has it, too. Then it stays there (constant), or falls towards ``final_lr`` of it, which a step after the last
    one would have: over all that is left (linear, cosine), or over the last ``decay`` of the steps alone (wsd).
    """
    total = train.total_steps
    warmup = round(train.warmup * total)
    if step <= warmup:
        return train.lr * step / warmup
    falls_from = max(warmup, total - round(train.decay * total)) if train.schedule == WSD else warmup
    if train.schedule == CONSTANT or step <= falls_from:
        return train.lr
    fallen = (step - 1 - falls_from) / (total - falls_from)
    left = (1 + math.cos(math.pi * fallen)) / 2 if train.schedule == COSINE else 1 - fallen
    return train.lr * (train.final_lr + (1 - train.final_lr) * left)
