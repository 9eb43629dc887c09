"""Put together who hears how a sweep goes: the display, and Weights & Biases where asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mxsweep.config.sweep_settings import Settings
from mxsweep.sweeps.display import SweepDisplay
from mxsweep.sweeps.elsewhere import Elsewhere
from mxsweep.sweeps.execute import SweepObserver, SweepRun

log = logging.getLogger("mxsweep")


@contextmanager
def observe_sweep(
    settings: Settings, runs: Sequence[SweepRun], done: Sequence[tuple[SweepRun, dict[str, Any]]], folder: Path
) -> Iterator[list[SweepObserver]]:
    """Show what happens to ``runs``, log it where the settings say, and yield the observers to be told.

    Args:
        done: the runs that had finished before, with their records.
        folder: of the sweep; its name is that of the group in Weights & Biases.
    """
    with ExitStack() as stack:
        before = {run.folder for run, _ in done}
        elsewhere = Elsewhere([run for run in runs if run.folder not in before], time.monotonic)
        display = SweepDisplay(len(runs), len(done), varying=_varying_knobs(runs), elsewhere=elsewhere)
        for run, record in done:
            display.recall(run, record)
        stack.enter_context(display)
        logging.basicConfig(level=logging.INFO, handlers=[display.handler], force=True)
        hub, retries = logging.getLogger("huggingface_hub.utils._http"), _HubRetries()
        hub.addFilter(retries)
        stack.callback(hub.removeFilter, retries)
        observers: list[SweepObserver] = [display]
        if settings.logging.name == "wandb":
            from mxsweep.sweeps.wandb_log import WandbLog

            wandb = stack.enter_context(WandbLog(settings.logging, group=folder.name))
            for run, record in done:  # some perhaps while nobody looked
                wandb.recall(run, record)
            observers.append(wandb)
        yield observers


class _HubRetries(logging.Filter):
    """Let one line pass of the dozens, each twice, in which huggingface_hub says that it asks again."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith("Retrying in") and "thrown while requesting" not in message:
            return True
        if not self.said:
            self.said = True
            log.warning("the hub does not answer, and is asked again for a while: %s", " ".join(message.split())[:200])
        return False


def _varying_knobs(runs: Sequence[SweepRun]) -> set[str]:
    """Return the knobs that tell runs apart, as they were typed."""
    knobs = [dict(override.partition("=")[::2] for override in run.overrides) for run in runs]
    return {key for words in knobs for key in words if len({other.get(key) for other in knobs}) > 1}
