"""Find out why a planned run cannot be, before a model is loaded or a folder is made for it.

Two kinds are told apart. What a run asks for may be impossible anywhere: a value that is not allowed, a pattern that
matches nothing in the model, a task that lm-eval does not have. Or this machine lacks what it needs, as a GPU: such a
run may well be planned here and done elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mxsweep.config.run_config import RunConfig
from mxsweep.files.checkpoints import model_folder
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.sweeps.plan import PlannedRun
from mxsweep.terminal.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def why_impossible(run: PlannedRun, with_model: bool = False) -> str | None:
    """Return why a planned run can be done nowhere, as far as planning knows; None where nothing speaks against it.

    Args:
        run: the run.
        with_model: whether to look at the model, on the meta device, even where the run names none of its modules.
            That imports torch and transformers, which takes seconds.
    """
    if run.config is None:
        return run.error
    problem = _recipe_problem(run.config) if with_model or run.config.modules else None
    return problem or _unknown_task(run.config)


def why_not_here(run: PlannedRun) -> str | None:
    """Return why this machine cannot do a planned run that another might; None where nothing speaks against it."""
    if run.config is None:
        return None
    try:
        refuse_unavailable_backend(run.config)
    except ConfigError as error:
        return str(error)
    return None


def model_without_values(config: RunConfig) -> PreTrainedModel | None:
    """Return the config's model on the meta device; None where it is not in a folder or cannot be built."""
    model = config.model
    if model_folder(model.path) is None:
        return None  # without importing torch
    from mxsweep.model.meta import meta_model

    return meta_model(
        model.path, dtype=model.dtype, attention=model.attention, trust_remote_code=model.trust_remote_code
    )


def _recipe_problem(config: RunConfig) -> str | None:
    model = model_without_values(config)
    if model is None:
        return None
    from mxsweep.model.meta import recipe_problem

    return recipe_problem(model, config.recipe)


def _unknown_task(config: RunConfig) -> str | None:
    from mxsweep.evaluate.task_names import unknown_task

    return unknown_task(config.task.names)
