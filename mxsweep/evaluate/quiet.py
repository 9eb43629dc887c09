"""lm-eval's messages about the way it is used here, none of which a user could act on."""

from __future__ import annotations

import logging

KNOWN = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model through `pretrained`",
    "is defined, but aggregation is not. using default",
    "is defined, but higher_is_better is not. using default",
    "Custom kwargs can be passed to `--metadata`",
    "No `generation_kwargs` specified in task config",
)
LOGGERS = ("lm_eval.models.huggingface", "lm_eval.api.task", "lm_eval.config.task")


def quiet_lm_eval() -> None:
    """Let lm-eval's warnings through, but for those known; not its progress notes."""
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if _is_news not in logger.filters:
            logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(known in record.getMessage() for known in KNOWN)
