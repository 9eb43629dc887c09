"""Find out why a planned run cannot be, before a model is loaded or a folder is made for it.

Two kinds are told apart. What a run asks for may be impossible anywhere: a value that is not allowed, a pattern that
matches nothing in the model, a task that lm-eval does not have. Or this machine lacks what it needs, as a GPU: such a
run may well be planned here and done elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mxsweep.config.own_tasks import read_own_tasks
from mxsweep.config.refusals import gguf_missing, no_chat_template, no_such_gpu, too_many_examples
from mxsweep.config.run_config import RunConfig
from mxsweep.config.train_knobs import kept_blocks
from mxsweep.files.checkpoints import gguf_file, is_here, model_folder
from mxsweep.files.gguf_header import has_package
from mxsweep.formats.recipe import LATENT_IN_CACHE
from mxsweep.machine.gpus import visible_gpu_count
from mxsweep.machine.importing import importing
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.sweeps.kept_answers import ANSWERS
from mxsweep.sweeps.module_patterns import unmatched_pattern
from mxsweep.sweeps.plan import PlannedRun
from mxsweep.terminal.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a task's YAML: what may make other rows of those of a file, or take examples from elsewhere.
_MAKES_ROWS = {"process_docs", "fewshot_config", "class"}


def why_impossible(run: PlannedRun, with_model: bool = False) -> str | None:
    """Return why a planned run can be done nowhere, as far as planning knows; None where nothing speaks against it.

    Args:
        run: the run.
        with_model: whether to look at the model, on the meta device, even where the run asks for nothing that models
            differ in. That imports torch and transformers, which takes seconds, unless the answer is kept.
    """
    if run.config is None:
        return run.error
    problem = _unmatched_pattern(run.config)
    if problem is None:
        problem = _recipe_problem(run.config) if with_model or _names_what_models_differ_in(run.config) else None
    return problem or _missing_chat_template(run.config) or _unknown_task(run.config) or _too_many_examples(run.config)


def _unmatched_pattern(config: RunConfig) -> str | None:
    """Return why a pattern of ``modules`` matches nothing, as far as can be told without the model."""
    if config.trains and config.init.is_random:
        return None
    return unmatched_pattern(config.model, list(config.modules))


def _names_what_models_differ_in(config: RunConfig) -> bool:
    if config.trains:
        kept = config.matmuls.keep_high
        return bool(config.modules) or any(re.search(r"[.*?\[]", name) for name in kept) or _keeps_all_blocks(config)
    return bool(config.modules) or config.recipe.kv.latent != LATENT_IN_CACHE or config.ptq.budget is not None


def _keeps_all_blocks(config: RunConfig) -> bool:
    """Return whether so many first and last blocks of random weights stay as they are that none may be left."""
    counts = [kept[1] for name in config.matmuls.keep_high if (kept := kept_blocks(name)) is not None]
    return config.init.is_random and bool(counts) and sum(counts) >= config.init.layers


def why_not_here(run: PlannedRun) -> str | None:
    """Return why this machine cannot do a planned run that another might; None where nothing speaks against it."""
    if run.config is None:
        return None
    if problem := _missing_device(run.config.model.device) or _missing_gpus(run.config):
        return problem
    if gguf_file(run.config.model.path) and not has_package():
        return gguf_missing(run.config.model.path)
    try:
        refuse_unavailable_backend(run.config)
    except ConfigError as error:
        return str(error)
    return None


def model_without_values(config: RunConfig) -> PreTrainedModel | None:
    """Return the config's model on the meta device; None where there is none, or it cannot be followed.

    Raises:
        ConfigError: a checkpoint that is to be dequantized, and cannot be.
    """
    if config.trains and config.init.is_random:
        from mxsweep.model.random_llama import llama_without_values

        return llama_without_values(config.init, config.train.length)
    if not is_here(config.model.path):
        return None  # without importing torch
    with importing():
        from mxsweep.model.meta import meta_model

    return meta_model(config.model.path, **_as_loaded(config))


def why_not_followed(config: RunConfig) -> str | None:
    """Return why it cannot be known without values what a text reaches in the config's model; None where it can."""
    if (config.trains and config.init.is_random) or not is_here(config.model.path):
        return None

    def answer() -> str | None:
        from mxsweep.model.meta import why_not_followed as of_model

        try:
            return of_model(config.model.path, **_as_loaded(config))
        except ConfigError:
            return None  # which makes the run impossible, for a reason of its own

    return ANSWERS.ask(config, "why_not_followed", answer)


def _as_loaded(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "dtype": model.dtype,
        "attention": model.attention,
        "trust_remote_code": model.trust_remote_code,
        "dequantize": model.dequantize,
    }


def _recipe_problem(config: RunConfig) -> str | None:
    return ANSWERS.ask(config, "recipe_problem", lambda: _problem_in_model(config))


def _problem_in_model(config: RunConfig) -> str | None:
    try:
        model = model_without_values(config)
    except ConfigError as error:
        return str(error)
    if model is None:
        return None
    from mxsweep.model.meta import recipe_problem

    if config.trains and (problem := _training_problem(model, config)):
        return problem
    if problem := recipe_problem(model, config.recipe):
        return problem
    from mxsweep.calibrate.budget import refuse_budget
    from mxsweep.runs.stored_products import refuse_plain_products

    try:
        refuse_plain_products(model, config)
        if config.ptq.budget is None:
            return None
        refuse_budget(model, config.recipe, config.budget_formats, config.ptq.budget, config.ptq.fuse)
    except ConfigError as error:
        return str(error)
    return None


def _training_problem(model: PreTrainedModel, config: RunConfig) -> str | None:
    from mxsweep.training.choice import find_trained

    try:
        find_trained(model, config.training_recipe)
    except ConfigError as error:
        return str(error)
    return None


def _missing_chat_template(config: RunConfig) -> str | None:
    """Return why a chat template cannot be applied: the model's folder holds none; None where there may be one."""
    folder = model_folder(config.model.path)
    settings = folder and folder / "tokenizer_config.json"
    if not config.task.apply_chat_template or settings is None or not settings.is_file():
        return None
    if "chat_template" in settings.read_text(encoding="utf-8", errors="replace") or any(
        settings.parent.glob("*chat_*")
    ):
        return None
    return no_chat_template(config.model.label)


def _missing_device(device: str) -> str | None:
    """Return why a GPU that is asked for by name cannot be used; None for another device, and for one that is there."""
    if not device.startswith("cuda"):
        return None
    count, index = visible_gpu_count(), int(device.partition(":")[2] or 0)
    return None if index < count else no_such_gpu(device, count)


def _missing_gpus(config: RunConfig) -> str | None:
    """Return why several processes cannot train a model on GPUs here; None where they can, or train on the CPU."""
    asked, count = config.train.processes, visible_gpu_count()
    on_gpus = config.model.device == "cuda" or (config.model.device == "auto" and count)
    if not config.trains or not on_gpus or asked <= count:
        return None
    return f"train.processes: {asked} are more than the GPUs that are visible here, {count}; allowed: 1 to {count}"


def _unknown_task(config: RunConfig) -> str | None:
    from mxsweep.evaluate.task_names import unknown_task

    own = config.task.own
    return unknown_task(config.task.names_of_lm_eval, own.names if own is not None else ())


def _too_many_examples(config: RunConfig) -> str | None:
    """Return why few-shot examples cannot be had of the embedded task or of a file's rows; None where they may be.

    How many rows other tasks have is known when they are loaded, before the model is, and so is which rows are alike.
    """
    from mxsweep.evaluate.stories import TEST_STORIES

    count = config.task.num_fewshot or 0
    rows = config.task.rows_of_files() | ({"story": TEST_STORIES} if "story" in config.task.names else {})
    for name, number in rows.items():
        if count >= number and (name == "story" or _takes_rows_as_they_are(name, config)):
            needs = name != "story" and not config.task.fewshot_evaluated
            where = "its split 'test'"
            return too_many_examples(name, count, number - 1, where, leaves_out=True, needs_evaluated=needs)
    return None


def _takes_rows_as_they_are(name: str, config: RunConfig) -> bool:
    """Return whether a task surely asks one question a row of its file, and takes its examples from these."""
    from mxsweep.evaluate.task_names import files_naming

    own = config.task.own
    try:
        if own is not None and name in own.tasks:
            tasks = [own.tasks[name]]
        else:
            tasks = [task for file in files_naming(name) for task in read_own_tasks(str(file)).tasks.values()]
    except ConfigError:
        return False
    return bool(tasks) and not any(task.config.keys() & _MAKES_ROWS for task in tasks)
