"""Read a packed checkpoint by the target's own library, in a process of its own, and answer to tokens.

In a process of its own, as these libraries change transformers for whatever is loaded after them, and print. It is
started by :mod:`mxsweep.runs.foreign_loader`, which compares the answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from mxsweep.export.folder import read_tensors, read_weights
from mxsweep.export.targets.expert_names import stored_name
from mxsweep.model.expert_matrices import expert_matrices
from mxsweep.numerics import decode

REQUEST, ANSWER, LOGITS = "request.json", "answer.json", "logits.safetensors"


@dataclass(frozen=True)
class Library:
    """Declare the library that a target's checkpoints are loaded with.

    Attributes:
        package: the name of its distribution.
        module: what is imported.
        weight: the weight of a layer of the model that transformers makes with it, dequantized; None where it has no
            part in transformers' loading.
        without_model: why there is no such model, in words.
    """

    package: str
    module: str
    weight: Callable[[Any], Tensor] | None
    without_model: str = ""


LIBRARIES: Mapping[str, Library] = {
    "compressed-tensors": Library("compressed-tensors", "compressed_tensors", lambda layer: layer.weight),
    "quark": Library("amd-quark", "quark.torch", lambda layer: layer.weight_quantizer(layer.weight.data)),
    "auto-round": Library("auto-round", "auto_round", lambda layer: layer.weight),
    # 0.47: what it adds to from_pretrained restores modelopt_state.pth, which its own save_pretrained writes; the
    # checkpoints that it exports it reads for Megatron only.
    "modelopt": Library(
        "nvidia-modelopt",
        "modelopt.torch.quantization.qtensor",
        None,
        "neither it nor transformers makes a model of such a checkpoint, which vLLM and TensorRT-LLM load",
    ),
}


@torch.no_grad()
def read(folder: Path, target: str, ids: Tensor, options: Mapping[str, Any]) -> tuple[str | None, Tensor | None]:
    """Return (the first layer whose weight is other than mxsweep reads it, logits (B, T, V) to the tokens).

    Either is None where there is none. All is computed in bfloat16, on the CPU.

    Args:
        ids: (B, T).
        options: as ``from_pretrained`` takes them.

    Raises:
        RuntimeError: a tensor that the library needs is not in the files, or one is that it does not know.
    """
    library = LIBRARIES[target]
    module = import_module(library.module)  # of auto-round before transformers loads: it tells transformers of itself
    if library.weight is None:
        return _first_other(folder, _by_modelopt(folder, module)), None
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, **options
    )
    model, found = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[problem]:
            raise RuntimeError(f"{problem.replace('_', ' ')}: {', '.join(sorted(map(str, found[problem])))[:200]}")
    logits = model.eval()(input_ids=ids, use_cache=False).logits  # which decompresses weights, too
    weight, experts = library.weight, _experts(model)

    def of_layer(name: str) -> Tensor:
        return experts[name] if name in experts else weight(model.get_submodule(name))

    return _first_other(folder, of_layer), logits


def _experts(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the matrices of experts, which transformers keeps in one parameter, by the names that checkpoints have."""
    kind, found = model.config.model_type, {}
    for name, module in model.named_modules():
        for matrix in expert_matrices(module):
            try:
                stored = stored_name(f"{name}.{matrix.name}", kind)
            except ValueError:
                return {}  # of a type whose checkpoints hold no layer for each, so that none is stored so
            found[stored] = matrix.of(module.get_parameter(matrix.parameter))
    return found


def _by_modelopt(folder: Path, module: Any) -> Callable[[str], Tensor]:
    """Return what ModelOpt's class of NVFP4 makes of the stored tensors of a layer."""
    stored = read_tensors(folder)

    def weight(name: str) -> Tensor:
        packed = stored[f"{name}.weight"]
        shape = torch.Size([packed.shape[0], 2 * packed.shape[1]])
        read: Tensor = module.NVFP4QTensor(shape, torch.bfloat16, packed).dequantize(
            scale=stored[f"{name}.weight_scale"],
            double_scale=stored[f"{name}.weight_scale_2"],
            block_sizes={-1: 16},
        )
        return read

    return weight


def _first_other(folder: Path, weight: Callable[[str], Tensor]) -> str | None:
    """Return the first layer of which a function of its name gives another weight, in bfloat16; None for none."""
    for name, ours in read_weights(folder)[0].items():  # by layer: a fused one is several operands
        theirs = weight(name).to(torch.bfloat16)
        if not torch.equal(theirs, decode(replace(ours, dtype=torch.bfloat16))):
            return name
    return None


def main() -> None:
    """Answer the request in the folder that the command line names."""
    place = Path(sys.argv[1])
    request = json.loads((place / REQUEST).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    ids = torch.tensor(request["ids"])
    other, logits = read(Path(request["folder"]), request["target"], ids, request["options"])
    if logits is not None:
        save_file({"logits": logits.contiguous()}, place / LOGITS)
    (place / ANSWER).write_text(json.dumps({"other": other}), encoding="utf-8")


if __name__ == "__main__":
    main()
