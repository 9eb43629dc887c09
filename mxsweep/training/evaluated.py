"""Evaluate a trained model in the formats that each of its layers was trained in."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from mxsweep.config.evaluated_recipe import evaluated
from mxsweep.config.run_config import RunConfig
from mxsweep.formats.training import LayerFormats
from mxsweep.model.operands import find_operands
from mxsweep.model.sites import is_in_blocks
from mxsweep.training.choice import find_trained


def as_trained(config: RunConfig, model: PreTrainedModel) -> RunConfig:
    """Return the config whose recipe gives each operand of ``model`` the formats that it was trained in.

    What ``matmuls.keep_high`` kept is known of a model only: each operand of which the config's recipe says something
    else gets formats by its name.
    """
    operands = find_operands(model)
    trained = {one.operand.name: one.formats for one in find_trained(model, config.training_recipe, operands)}
    by_name = {}
    for name, operand in operands.items():
        formats = trained.get(name, LayerFormats())
        if config.recipe.formats_of(name, is_in_blocks(operand), operand.module_name) != evaluated(formats)[0]:
            by_name[name] = formats
    others = {pattern: formats for pattern, formats in config.matmuls.modules.items() if pattern not in by_name}
    return replace(config, matmuls=replace(config.matmuls, modules=others | by_name))
