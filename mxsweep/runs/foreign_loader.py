"""Load a packed checkpoint as its users will, by plain transformers and the target's library, and compare.

Such a library decompresses weights to bfloat16, and quantizes inputs by its own rules, so that what is compared is in
that dtype and under these rules. Without the library nothing is compared, which is said.
:mod:`mxsweep.runs.foreign_reader` is the process in which it loads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.export.folder import read_tensors, target_module
from mxsweep.export.serving import served_activation
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.machine.child_modules import child_environment
from mxsweep.model.input_maxima import fixed_maxima
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.model.sites import find_sites
from mxsweep.runs.foreign_reader import ANSWER, LIBRARIES, LOGITS, REQUEST
from mxsweep.runs.packed_model import input_divisor
from mxsweep.terminal.errors import ConfigError

PATIENCE_S = 3600  # with a library that loads a model and runs it once, on the CPU
_LAST_WORDS = 300  # characters of what a library said before it failed


def as_served(recipe: Recipe, target: str) -> Recipe | None:
    """Return a recipe whose inputs are quantized as the target's library does; None where its rules are not known."""
    known = {}
    for formats in (recipe.linear, *(formats for _, formats in recipe.modules)):
        if formats.activation is not None:
            known[formats.activation] = served_activation(target, formats.activation)
    if None in known.values():
        return None

    def served(formats: LinearFormats) -> LinearFormats:
        return formats if formats.activation is None else replace(formats, activation=known[formats.activation])

    modules = tuple((pattern, served(formats)) for pattern, formats in recipe.modules)
    return replace(recipe, linear=served(recipe.linear), modules=modules, arithmetic="exact", backend="torch")


def installed(package: str) -> str | None:
    """Return the version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ask(folder: Path, target: str, ids: Tensor, options: Mapping[str, Any]) -> tuple[str | None, Tensor | None]:
    """Return what :func:`mxsweep.runs.foreign_reader.read` does, called in a process of its own, without a GPU.

    Raises:
        ConfigError: the library cannot load the checkpoint, or does not end.
    """
    with tempfile.TemporaryDirectory(prefix="mxsweep-loader-") as made:
        place = Path(made)
        request = {
            "folder": str(folder.resolve()),
            "target": target,
            "ids": ids.tolist(),
            "options": dict(options),
            "threads": torch.get_num_threads(),  # sums are added up as they are here
        }
        (place / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-m", "mxsweep.runs.foreign_reader", str(place)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=child_environment() | {"CUDA_VISIBLE_DEVICES": ""},
                check=False,
                timeout=PATIENCE_S,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"export: {LIBRARIES[target].package} did not load what was written within {PATIENCE_S} s; "
                "--no-verify writes it unchecked"
            ) from None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise ConfigError(
                f"export: {LIBRARIES[target].package} cannot load what was written: {lines[-1][:_LAST_WORDS]}; "
                "--no-verify writes it unchecked"
            )
        other = json.loads((place / ANSWER).read_text(encoding="utf-8"))["other"]
        logits = place / LOGITS
        return other, load_file(logits)["logits"] if logits.is_file() else None


@torch.no_grad()
def compare_with_loader(
    folder: Path,
    target: str,
    ours: PreTrainedModel,
    recipe: Recipe,
    prepared: Prepared,
    ids: Tensor,
    options: Mapping[str, Any],
) -> str:
    """Say how the target's own library loads a checkpoint, beside mxsweep.

    Args:
        ours: the model that mxsweep loads from it, in bfloat16, on the CPU.
        recipe: the run's.
        prepared: what was worked out for it, codes and scales of all weights among it.
        ids: (B, T) tokens to answer to.
        options: by which ours was loaded, too: of attention and of the model's own code, as ``from_pretrained`` takes
            them.

    Raises:
        ConfigError: the library cannot load it, or the weights, or the logits, are others.
    """
    library = LIBRARIES.get(target)
    if library is None:
        return f"not checked: mxsweep knows no loader of {target} that runs here"
    release = installed(library.package)
    if release is None:
        return f"not checked: {library.package} is not installed"
    other, logits = ask(folder, target, ids, options)
    if other is not None:
        raise ConfigError(f"export: {library.package} {release} reads {other} otherwise than mxsweep")
    said = f"{library.package} {release} reads the same weights"
    if logits is None:
        return f"{said}; logits are not compared: {library.without_model}"
    if recipe.rotation is not None:
        return f"{said}; its logits are not compared: transformers does not rotate inputs"
    by_its_rules = as_served(recipe, target)
    if by_its_rules is None:
        return f"{said}; its logits are not compared: by which rules it quantizes inputs is not known"
    if differing := _other_input_scale(folder, target, ours, by_its_rules, prepared):
        return f"{said}; its logits are not compared: {differing}"
    weights = {name: replace(weight, dtype=torch.bfloat16) for name, weight in prepared.weights.items()}
    with quantize_model(ours, by_its_rules, prepared=replace(prepared, weights=weights), measure=False):
        expected = ours(input_ids=ids, use_cache=False).logits
    if not torch.equal(logits, expected):
        largest = float((logits.float() - expected.float()).abs().max())
        raise ConfigError(
            f"export: {library.package} {release} answers with other logits than mxsweep under its rules, by up to "
            f"{largest:g}"
        )
    return f"{said}, and answers with the same logits as mxsweep by its rules ({logits.numel():,}, in bfloat16)"


def _other_input_scale(
    folder: Path, target: str, ours: PreTrainedModel, served: Recipe, prepared: Prepared
) -> str | None:
    """Say which input is stored with another per-tensor scale than a served recipe makes in bfloat16; None for none.

    The loader reads what is stored, which the run's rules made in its dtype; mxsweep makes it anew.
    """
    sites = find_sites(ours, served)
    maxima = fixed_maxima(sites, served, prepared)
    stored = read_tensors(folder) if maxima else {}
    for site in sites:
        if site.name not in maxima or site.formats.activation is None:
            continue
        number = target_module(target).input_scale(site.operand.module_name, stored)
        by_its_rules = input_divisor(maxima[site.name], site.formats.activation, torch.bfloat16)
        if number != by_its_rules:
            return f"the scale of {site.name}'s input is stored as {number}, and by its rules is {by_its_rules}"
    return None
