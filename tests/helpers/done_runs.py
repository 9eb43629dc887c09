"""Runs that went well."""

from typing import Any

from mxsweep import compose, run
from mxsweep.config.run_config import RunConfig


def done(*words: str) -> tuple[RunConfig, dict[str, Any]]:
    """Return the config that the words compose to, and the record of its run."""
    config = compose(list(words))
    record = run(config, overrides=words)
    assert record["status"] == "done", record["error"]
    return config, record
