"""Log runs to Weights & Biases as they end, if `logging=wandb` asks for it.

Logging is beside the result, never in its way: whatever goes wrong with it is said once, and the sweep goes on without.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Self

from mxsweep.config.sweep_settings import Logging
from mxsweep.results.record import LM_EVAL_NAME, RECORD_NAME, SAMPLES_NAME

log = logging.getLogger(__name__)

FILES = (RECORD_NAME, SAMPLES_NAME, LM_EVAL_NAME)
PATIENCE_S = 20.0  # for a server, at the start of a run and again at its end
QUIET: dict[str, Any] = {  # wandb.Settings; those that another version of wandb does not have are left out
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "init_timeout": PATIENCE_S,
    "finish_timeout": PATIENCE_S,
    "finish_timeout_raises": True,
    # What is under way when these give up is waited for once more when Python exits.
    "x_graphql_timeout_seconds": PATIENCE_S / 2,
    "x_graphql_retry_max": 1,
    "x_file_stream_timeout_seconds": PATIENCE_S,
    "x_file_stream_retry_max": 1,
    "x_file_transfer_timeout_seconds": 5 * PATIENCE_S,
    "x_file_transfer_retry_max": 1,
}


class WandbLog:
    """Log each run that ended: an observer of a sweep, to be called in the process that the user started.

    Args:
        settings: see conf/logging/wandb.yaml.
        group: what the sweep is called there.
    """

    def __init__(self, settings: Logging, group: str) -> None:
        self._project, self._entity, self._mode = settings.project, settings.entity, settings.mode
        self._group = group
        self._logged = 0
        self._off = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._mode == "offline" and self._logged:
            log.info("logging=wandb: %d logged offline; `wandb sync` uploads a run's wandb/offline-run-*", self._logged)

    def begin(self, run: Any) -> None:
        """Do nothing: a run is logged when its record is there."""

    def recall(self, run: Any, record: Mapping[str, Any]) -> None:
        """Log a run that had finished before, if it was not logged then, as when its sweep was killed."""
        if not (run.folder / "wandb").exists():
            self.end(run, record)

    def advance(self, run: Any, done: int, total: int, phase: str = "") -> None:
        """Do nothing."""

    def lost(self, run: Any, why: str) -> None:
        """Do nothing."""

    def end(self, run: Any, record: Mapping[str, Any]) -> None:
        """Log a run that is done or failed. Never raises; after the first trouble nothing more is logged."""
        if self._off:
            return
        try:
            with _without_terminal():
                url = self._log(run, record)
        except Exception as error:
            self._off = True
            log.warning("logging=wandb: this run and those after it are not logged: %s", self._describe(error))
            return
        if not self._logged and url:
            log.info("logging=wandb: %s", url)
        self._logged += 1

    def _log(self, run: Any, record: Mapping[str, Any]) -> str | None:
        import wandb  # here, since it is needed only by those who ask for it, and takes half a second

        if not hasattr(wandb, "init"):  # a folder named wandb beside the program
            raise ModuleNotFoundError("No module named 'wandb'")
        known = wandb.Settings.model_fields
        identity = run_identity(run)
        online: dict[str, Any] = (
            {"resume": "allow"} if self._mode == "online" else {}
        )  # offline there is nothing to resume
        logged = wandb.init(
            project=self._project,
            entity=self._entity,
            group=self._group,
            name=run.run_id,
            id=identity,
            config=dict(record["config"]),
            mode=self._mode,  # type: ignore[arg-type] # a word that the knob logging.mode allows
            dir=str(run.folder),
            reinit="create_new",  # another run of this process, the user's own, stays as it is
            settings=wandb.Settings(**{name: value for name, value in QUIET.items() if name in known}),
            **online,
        )
        code = 1
        try:
            logged.summary.update(summary_of(record))
            artifact = wandb.Artifact(f"run-{identity}", type="mxsweep-run")
            for path in (run.folder / name for name in FILES):
                if path.is_file():
                    # Immutable: as it stands, not a copy in the home directory, which offline nobody would remove.
                    artifact.add_file(str(path), name=path.name, policy="immutable")
            logged.log_artifact(artifact)
            code = 0 if record["status"] == "done" else 1
        finally:
            logged.finish(exit_code=code)
        return logged.url

    def _describe(self, error: Exception) -> str:
        """Return an error in a line, with what to do about it."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:300]
        if isinstance(error, ImportError):
            return f"{reason}; pip install 'mxsweep[wandb]'"
        if self._mode == "online" and any(word in reason.lower() for word in ("api key", "api_key", "log in", "login")):
            return f"{reason}; set WANDB_API_KEY or logging.mode=offline"
        remedy = "logging.mode=offline needs no server" if self._mode == "online" else "logging=none does without"
        return f"{type(error).__name__}: {reason}; {remedy}"


def run_identity(run: Any) -> str:
    """Return the id that wandb knows a run by: the same for the same run, so that logging again adds no second one."""
    return hashlib.sha256(run.run_id.encode()).hexdigest()[:16]


def summary_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what wandb shows of a record: its numbers under `story/acc`, `timing/eval_s` and the like."""
    error = record.get("error") or {}
    flat: dict[str, Any] = {"status": record["status"], "examples_per_sec": record.get("examples_per_sec")}
    for prefix, values in {
        **record["metrics"],
        "n_effective": record["n_effective"],
        "timing": record["timing"],
        "error": {name: error.get(name) for name in ("type", "message")},
    }.items():
        flat |= {f"{prefix}/{name}": value for name, value in values.items()}
    return {name: _spell_non_finite(value) for name, value in flat.items() if value is not None}


def _spell_non_finite(value: Any) -> Any:
    """Return a value as wandb's summary keeps it: of a NaN wandb would make null, of these words not."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@contextlib.contextmanager
def _without_terminal() -> Iterator[None]:
    """Take the terminal away from wandb, which would ask for a key there, and say on stderr that it found one."""
    stdin = sys.stdin
    sys.stdin = io.StringIO()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.stdin = stdin
