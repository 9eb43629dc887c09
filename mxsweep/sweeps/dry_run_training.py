"""Show what the trainings among planned runs would be: how long, from which weights, and each product's operands."""

from __future__ import annotations

from collections.abc import Iterable

from tabulate import tabulate

from mxsweep.config.run_config import RunConfig
from mxsweep.formats.training import PRODUCTS, LayerFormats
from mxsweep.sweeps.impossible import model_without_values
from mxsweep.terminal.errors import ConfigError

Numbered = Iterable[tuple[int, RunConfig]]  # runs by their numbers


def training_lines(runs: Numbered) -> list[str]:
    """Return a table of the trainings, and one of the formats that they are done in; nothing for none."""
    trained = [(number, config) for number, config in runs if config.trains]
    if not trained:
        return []
    lines = [tabulate([_row(number, config) for number, config in trained], headers="keys", disable_numparse=True), ""]
    if rows := _products(trained):
        lines += [tabulate(rows, headers="keys", disable_numparse=True), ""]
    return lines


def _row(number: int, config: RunConfig) -> dict[str, str]:
    train = config.train
    tokens = train.total_steps * train.batch * train.length
    return {
        "run": str(number),
        "train": train.method,
        "recipe": config.recipe_label,
        "model": config.model_label,
        "parameters": _parameters(config),
        "corpus": config.corpus.source if config.corpus.path is None else config.corpus.path.rpartition("/")[2],
        "seed": str(config.seed),
        "steps": f"{train.total_steps:,}",
        "of": f"{train.batch} x {train.length}",
        "tokens": f"{tokens:,}",
        "lr": f"{train.lr:g} {train.schedule}",
        "in": train.dtype,
        "task": config.task.name,
    }


def _parameters(config: RunConfig) -> str:
    """Return how many parameters are trained beside the embeddings."""
    if config.init.is_random:
        return f"{config.init.parameters:,}"
    try:
        model = model_without_values(config)
    except ConfigError:
        model = None
    return "unknown" if model is None else f"{model.num_parameters(exclude_embeddings=True):,}"


def _products(trained: Numbered) -> list[dict[str, str]]:
    """Return three rows for each recipe that quantizes something, with the runs that have it."""
    runs: dict[str, list[str]] = {}
    rows: dict[str, list[dict[str, str]]] = {}
    for number, config in trained:
        recipe = config.training_recipe
        beside = f"{config.backend}, {config.arithmetic}", " ".join(recipe.keep_high) or "-"
        layers = [("-", recipe.linear), *recipe.modules]
        made = [row for pattern, layer in layers if not recipe.is_plain for row in _of_layer(layer, pattern, beside)]
        key = f"{config.recipe_label} {made} {recipe.backward} {recipe.signs}"
        runs.setdefault(key, []).append(str(number))
        rows[key] = [{"recipe": config.recipe_label} | row for row in made]
    return [{"runs": ", ".join(runs[key])} | row for key, of_recipe in rows.items() for row in of_recipe]


def _of_layer(layer: LayerFormats, pattern: str, beside: tuple[str, str]) -> list[dict[str, str]]:
    operands = {name: f"{name.partition('.')[2]} {operand or 'as it is'}" for name, operand in layer.operands()}
    return [
        {
            "modules": pattern,
            "product": product,
            "of": operands[f"{product}.{first}"],
            "and": operands[f"{product}.{second}"],
            "hadamard": str(getattr(layer, product).hadamard or "-"),
            "by": beside[0],
            "kept": beside[1],
        }
        for product, (first, second) in PRODUCTS.items()
    ]
