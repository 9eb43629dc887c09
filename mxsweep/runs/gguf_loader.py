"""Read a GGUF file as others do, by the package gguf and by transformers, and compare with the run's weights.

llama.cpp itself is not asked. It multiplies by the weights that the package gguf gives, which is of the same project,
and quantizes inputs as its kernel for a machine does, which no file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from mxsweep.export.folder import GGUF_FILE
from mxsweep.export.targets.gguf_file import in_model_order, stored_name
from mxsweep.model.gguf import dequantizing
from mxsweep.numerics import Encoded, decode
from mxsweep.terminal.errors import ConfigError


@torch.no_grad()
def compare_with_packages(
    folder: Path, ours: PreTrainedModel, weights: Mapping[str, Encoded], ids: Tensor, options: Mapping[str, Any]
) -> str:
    """Say how the package gguf reads a checkpoint's weights, and what transformers makes of its file.

    Args:
        ours: the model that mxsweep loads from it, in bfloat16, on the CPU.
        weights: by name of the linear layer.
        ids: (B, T) tokens to answer to.
        options: by which ours was loaded, too, as ``from_pretrained`` takes them.

    Raises:
        ConfigError: the weights, or the logits, are others.
    """
    scaled = _compare_weights(folder / GGUF_FILE, ours, weights)
    said = f"the package gguf reads the same {len(weights)} weights"
    if scaled:
        return (
            f"{said}; transformers is not compared: it leaves out the scales of whole tensors, which {scaled} have; "
            "llama.cpp was not run"
        )
    try:
        theirs = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=GGUF_FILE, dtype=torch.bfloat16, **options, **dequantizing()
        ).eval()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        # It reads only some of what a file says: not the width of a Qwen3's heads, where that is not the usual one.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return (
            f"{said}; transformers is not compared, as it does not load such a file ({reason}); llama.cpp was not run"
        )
    for name, parameter in ours.named_parameters():
        if not torch.equal(theirs.get_parameter(name), parameter):
            raise ConfigError(f"export: transformers reads {name} of the GGUF file otherwise than mxsweep")
    logits, expected = (model(input_ids=ids, use_cache=False).logits for model in (theirs, ours))
    if not torch.equal(logits, expected):
        largest = float((logits.float() - expected.float()).abs().max())
        raise ConfigError(
            f"export: transformers answers by the GGUF file with other logits than mxsweep, by up to {largest:g}"
        )
    answers = f"transformers answers with the same logits ({logits.numel():,}, in bfloat16)"
    return f"{said}, and {answers}; llama.cpp was not run"


def _compare_weights(file: Path, model: PreTrainedModel, weights: Mapping[str, Encoded]) -> int:
    """Compare all weights with what the package gguf makes of them; return how many have a scale of the whole tensor.

    Raises:
        ConfigError: one is another.
    """
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    config, scaled = model.config.to_dict(), 0
    for name, weight in weights.items():
        tensor = stored[stored_name(f"{name}.weight")]
        read = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        if (scale := stored.get(stored_name(f"{name}.scale"))) is not None:
            read, scaled = read * torch.from_numpy(scale.data.copy()), scaled + 1
        if not torch.equal(in_model_order(f"{name}.weight", read, config).to(weight.dtype), decode(weight)):
            raise ConfigError(f"export: the package gguf reads {name} otherwise than mxsweep")
    return scaled
