"""Make the optimizers of a training, and set their learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from mxsweep.config.train_config import TrainConfig
from mxsweep.terminal.errors import ConfigError

MUON = "muon"
MATRIX, HEAD, OTHER = "matrix", "head", "other"


def kinds_of(model: PreTrainedModel) -> list[str]:
    """Return what each trainable parameter is, in the order of ``model.parameters()``.

    OTHER are embeddings (with a head that shares their weight), norms and biases; HEAD is the matrix that gives logits,
    and MATRIX whatever else has two or more dimensions.
    """
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    output = model.get_output_embeddings()
    head = {id(p) for p in output.parameters()} if output is not None else set()

    def kind(parameter: nn.Parameter) -> str:
        if parameter.ndim < 2 or id(parameter) in embeddings:
            return OTHER
        return HEAD if id(parameter) in head else MATRIX

    return [kind(parameter) for parameter in model.parameters() if parameter.requires_grad]


def make_optimizers(model: nn.Module, kinds: Sequence[str], train: TrainConfig) -> list[Optimizer]:
    """Return AdamW for all parameters, or with ``train.optimizer=muon`` Muon for matrices and AdamW for the rest.

    Weights decay of what is not OTHER. Muon's steps are scaled to the size of AdamW's, so that both have one rate.

    Args:
        model: that may have been wrapped since :func:`kinds_of` told its ``kinds``.

    Raises:
        ConfigError: this torch has no Muon.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    by_kind: dict[str, list[nn.Parameter]] = {MATRIX: [], HEAD: [], OTHER: []}
    for parameter, kind in zip(parameters, kinds, strict=True):
        # Muon is for matrices: of experts that lie in one tensor each would have to be taken by itself.
        odd = train.optimizer == MUON and kind == MATRIX and parameter.ndim != 2
        by_kind[HEAD if odd else kind].append(parameter)
    optimizers: list[Optimizer] = []
    if train.optimizer == MUON:
        optimizers += _muon(by_kind.pop(MATRIX), train)
    decays = [parameter for kind in by_kind if kind != OTHER for parameter in by_kind[kind]]
    groups = [
        {"params": decays, "weight_decay": train.weight_decay},
        {"params": by_kind[OTHER], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    kept = [group for group in groups if group["params"]]
    if kept:
        optimizers.append(torch.optim.AdamW(kept, lr=train.lr, betas=train.betas, fused=fused))
    return optimizers


def set_learning_rate(optimizers: Sequence[Optimizer], rate: float) -> None:
    """Set the learning rate of all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def _muon(matrices: list[nn.Parameter], train: TrainConfig) -> list[Optimizer]:
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"train.optimizer: 'muon' needs torch 2.9, and this is {torch.__version__}; allowed: adamw")
    if not matrices:
        return []
    kind = torch.optim.Muon
    if isinstance(matrices[0], DTensor):
        from mxsweep.training.sharded_muon import ShardedMuon  # which cannot be defined where torch has no Muon

        kind = ShardedMuon
    return [kind(matrices, lr=train.lr, weight_decay=train.weight_decay, adjust_lr_fn="match_rms_adamw")]
