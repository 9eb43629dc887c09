"""Silence, while a run lasts, other libraries' progress bars, and lm-eval's messages about how it is used here.

A run tells its progress to whoever asked for it, so a bar would only be in the way of that display. A user could act on
none of the messages.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import datasets
import huggingface_hub.utils as hub
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import tqdm
import transformers.modeling_gguf_pytorch_utils as gguf_reading
import transformers.utils.logging as transformers_logging

KNOWN = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model through `pretrained`",
    "is defined, but aggregation is not. using default",
    "is defined, but higher_is_better is not. using default",
    "Custom kwargs can be passed to `--metadata`",
    "No `generation_kwargs` specified in task config",
)
LOGGERS = ("lm_eval.models.huggingface", "lm_eval.api.task", "lm_eval.config.task")

# Whether bars are shown, and what hides and shows them. That of transformers sets the hub's too, so it comes first.
SWITCHES: tuple[tuple[Callable[[], bool], Callable[[], Any], Callable[[], Any]], ...] = (
    (
        transformers_logging.is_progress_bar_enabled,
        transformers_logging.disable_progress_bar,
        transformers_logging.enable_progress_bar,
    ),
    (lambda: not hub.are_progress_bars_disabled(), hub.disable_progress_bars, hub.enable_progress_bars),
    (datasets.is_progress_bar_enabled, datasets.disable_progress_bars, datasets.enable_progress_bars),
)
# These have no switch, and hold tqdm by name: lm-eval, and transformers where it reads GGUF files.
HOLDERS = (
    lm_eval.api.model,
    lm_eval.api.task,
    lm_eval.models.huggingface,
    gguf_reading,
)


class _NoBar(tqdm.tqdm):
    """Count and show nothing, as a tqdm that is disabled whatever its caller says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"disable": True})


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the bars of transformers, the hub, datasets and lm-eval while the context lasts; afterwards as before."""
    shown = [is_shown() for is_shown, _, _ in SWITCHES]
    with ExitStack() as stack:
        for holder in HOLDERS:
            stack.enter_context(_replaced(holder, "tqdm", _NoBar))
        stack.callback(_switch, shown)
        _switch([False] * len(SWITCHES))
        yield


@contextmanager
def quiet_bootstrap() -> Iterator[None]:
    """Silence lm-eval's bootstrap of a standard error, which prints a line and looks tqdm up when it is called.

    No longer than that: a library imported meanwhile would keep the tqdm that shows nothing.
    """
    with _replaced(tqdm, "tqdm", _NoBar), redirect_stdout(io.StringIO()):
        yield


def quiet_lm_eval() -> None:
    """Let lm-eval's warnings through, but for those known; not its progress notes."""
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if _is_news not in logger.filters:
            logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(known in record.getMessage() for known in KNOWN)


def _switch(shown: list[bool]) -> None:
    for (is_shown, hide, show), wanted in zip(SWITCHES, shown, strict=True):
        if is_shown() != wanted:
            (show if wanted else hide)()


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)
