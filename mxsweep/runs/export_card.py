"""Write the README of a packed checkpoint: what it is, what was measured of it, how to load it, what a GPU will run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mxsweep.config.rules_config import OWN_RULES
from mxsweep.export.on_gpus import on_gpus
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats
from mxsweep.study.metric_interval import metric_interval
from mxsweep.terminal.escapes import for_markdown
from mxsweep.terminal.written_values import written

_LOADING = {
    "compressed-tensors": (
        "```python\n"
        "# pip install transformers compressed-tensors\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="bfloat16")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n'
        "```"
    ),
    "quark": "vLLM: `vllm serve THIS_FOLDER`; transformers with the package `amd-quark`.",
    "modelopt": "vLLM: `vllm serve THIS_FOLDER --quantization modelopt_fp4`; TensorRT-LLM.",
    "auto-round": "transformers with the package `auto-round`, once `import auto_round` is done.",
    "gguf": (
        "`model.gguf` holds all weights and no vocabulary: llama.cpp reads it for token ids alone.\n\n"
        "```python\n"
        "# pip install transformers gguf\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", gguf_file="model.gguf", dtype="bfloat16",\n'
        "    quantization_config=GgufConfig(dequantize=True))\n"
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n'
        "```\n\n"
        "transformers leaves out the scales of whole tensors (`*.scale`, of NVFP4) without a word: where the file has "
        "some, it makes other weights of it."
    ),
}
_VLLM = "vLLM: `vllm serve THIS_FOLDER`."
_ROTATED = (
    f"{_VLLM} **Only vLLM**: it rotates the inputs of layers as the model runs, by `transform_config` in config.json. "
    "transformers does not, and answers as another model would, without a word; mxsweep refuses the folder."
)


def card(manifest: Mapping[str, Any]) -> str:
    """Return the text of README.md, given what ``export.json`` holds."""
    config = manifest["config"]
    parts = [
        f"# {for_markdown(config['model']['name'])}, {for_markdown(config['format']['name'])}",
        f"Packed by mxsweep for `{manifest['target']}`, of run {for_markdown(manifest['run_id'])}.",
        _recipe(manifest),
        _metrics(manifest),
        f"## How to load it\n\n{_loading(manifest)}",
        f"## What your GPU will run\n\n{_on_gpus(manifest)}{_roundings(manifest)}{_dtype(manifest)}",
        _verified(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _on_gpus(manifest: Mapping[str, Any]) -> str:
    formats = [
        LinearFormats(MXFormat.parse(layer["weight"]), layer["activation"] and MXFormat.parse(layer["activation"]))
        for layer in manifest["weights"].values()
    ]
    return on_gpus(manifest["target"], formats, by_transformers=not rotates_inputs(manifest))


def rotates_inputs(manifest: Mapping[str, Any]) -> bool:
    """Return whether inputs are rotated as the model of a checkpoint runs."""
    return any("input_rotated_in_blocks_of" in layer for layer in manifest["weights"].values())


def _loading(manifest: Mapping[str, Any]) -> str:
    if rotates_inputs(manifest):
        return _ROTATED
    parts = [_LOADING[manifest["target"]]]
    if manifest["target"] == "compressed-tensors":
        has_fp6 = any(layer["weight"].startswith("fp6") for layer in manifest["weights"].values())
        parts.append("vLLM does not load it: it has no scheme for MXFP6." if has_fp6 else _VLLM)
    parts.append(_mxsweep(manifest))
    return "\n\n".join(parts)


def _mxsweep(manifest: Mapping[str, Any]) -> str:
    """Return the commands that evaluate a checkpoint: its weights alone and, where one can, with the run's inputs."""
    command = "python -m mxsweep model=hf model.path=THIS_FOLDER format=none"
    said = f"mxsweep: `{command}` evaluates these weights, with inputs as they are"
    activations = {layer["activation"] for layer in manifest["weights"].values()}
    has_scales = manifest["config"]["format"].get("activation_scale", "dynamic") != "dynamic"  # which were calibrated
    if len(activations) != 1 or None in activations or has_scales:
        return f"{said}."
    words = _words(MXFormat.parse(activations.pop()), manifest["config"]["arithmetic"])
    return f"{said}; with inputs as the run had them: `{command} {' '.join(words)}`."


def _words(activation: MXFormat, arithmetic: str) -> list[str]:
    """Return what is typed after ``format=none`` so that inputs are in a format."""
    usual = MXFormat(activation.element)
    words = [f"format.activation={activation.element}"]
    for field in fields(activation):
        value = getattr(activation, field.name)
        if value != getattr(usual, field.name):
            knob = f"format.{field.name}" if field.name in OWN_RULES else field.name
            words.append(f"{knob}={written(value)}")
    return [*words, f"arithmetic={arithmetic}"]


def _recipe(manifest: Mapping[str, Any]) -> str:
    config, layers = manifest["config"], manifest["weights"]
    kinds: dict[tuple[Any, Any], int] = {}
    for layer in layers.values():
        kind = layer["weight"], layer["activation"]
        kinds[kind] = kinds.get(kind, 0) + 1
    lines = [
        f"- weights {for_markdown(weight)}, inputs {for_markdown(activation or 'as they are')}: {count} layers"
        for (weight, activation), count in kinds.items()
    ]
    method, calibration = config["ptq"]["method"], config.get("calibration")
    lines.append(f"- weight method: {method}")
    rotation = config["rotation"]
    if rotation["method"] != "none":
        residual = ", residual stream rotated (merged into the weights)" if rotation.get("residual") else ""
        lines.append(f"- rotation: {rotation['method']}{residual}")
    if calibration:
        said = ", ".join(f"{name} {value}" for name, value in calibration.items() if value is not None)
        lines.append(f"- calibration: {for_markdown(said)}")
    bits = manifest["bits_per_quantized_weight"]
    lines.append(
        f"- {bits['stored']:.3f} bits a quantized weight are stored, {bits['predicted']:.3f} were predicted; all "
        f"tensors take {manifest['bytes']['tensors']:,} bytes"
    )
    if manifest["kept"]:
        kept = for_markdown(manifest["kept"][0])
        lines.append(f"- linear layers that stay as they were: {len(manifest['kept'])} ({kept}, ...)")
    return "## Recipe\n\n" + "\n".join(lines)


def _metrics(manifest: Mapping[str, Any]) -> str:
    rows = []
    for task, metrics in manifest["metrics"].items():
        examples = manifest["examples"].get(task)
        for name, value in metrics.items():
            if "_stderr" in name or not isinstance(value, float | int):
                continue
            base, comma, chosen = name.partition(",")
            error = metrics.get(f"{base}_stderr{comma}{chosen}")
            ends = metric_interval(name, value, error, examples) if isinstance(error, float | int) else None
            within = "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
            rows.append(f"| {for_markdown(task)} | {for_markdown(name)} | {value:.4g} | {within} |")
    if not rows:
        return ""
    head = "| task | metric | this run | 95 % interval |\n| --- | --- | --- | --- |\n"
    return "## Metrics\n\n" + head + "\n".join(rows) + "\n\nAs mxsweep computed them." + _against(manifest)


def _against(manifest: Mapping[str, Any]) -> str:
    """Return how the metrics differ from those of the unquantized model, or what would say it."""
    baseline = manifest.get("baseline", {})
    if "missing" in baseline:
        return f"\n\n{for_markdown(baseline['missing'])}"
    if not baseline.get("differences"):
        return ""
    rows = [
        f"| {for_markdown(each['task'])} | {for_markdown(each['metric'])} | {each['change']} | {each['p']:.2g} | "
        f"{each['n']:,} |"
        for each in baseline["differences"]
    ]
    return (
        f"\n\nAgainst the unquantized model (run {for_markdown(baseline['run_id'])}), on the same examples; p is "
        "two-sided and adjusted for nothing:\n\n| task | metric | change, 95 % interval | p | examples |\n"
        "| --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )


def _roundings(manifest: Mapping[str, Any]) -> str:
    """Return what a loader's activations are quantized by, where this run had other roundings."""
    pairs = {
        (layer["activation"], layer["activation_as_served"])
        for layer in manifest["weights"].values()
        if layer["activation"] and layer["activation"] != layer["activation_as_served"]
    }
    if not pairs:
        return ""
    said = "; ".join(
        f"{for_markdown(served or 'by rules that mxsweep does not know')}, where the run had {for_markdown(ours)}"
        for ours, served in sorted(pairs, key=str)
    )
    return f"\n\nInputs are quantized as the loader does, {said}: its metrics may differ from those above."


def _dtype(manifest: Mapping[str, Any]) -> str:
    """Return in what the run computed, where loaders compute in bfloat16."""
    dtype = manifest["dtype"]
    if dtype == "bfloat16":
        return ""
    return f"\n\nThe metrics above were measured in {dtype}. Loaders compute in bfloat16, and theirs may differ."


def _verified(manifest: Mapping[str, Any]) -> str:
    found = manifest.get("verified")
    if not found:
        return "## Verified\n\nNot verified (`--no-verify`)."
    return "## Verified\n\n" + "\n".join(f"- {name}: {for_markdown(said)}" for name, said in found.items())
