"""Type and check the knobs that change no result: how a sweep is gone about, as opposed to what it runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mxsweep.config import knobs
from mxsweep.config.checks import expanded
from mxsweep.config.composed_config import resolved
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted


@dataclass(frozen=True)
class Gpus:
    """Hold ``hydra/launcher=gpus``: processes on this host, each with a GPU of its own, or on the CPU."""

    n: int | None
    retries: int


@dataclass(frozen=True)
class Slurm:
    """Hold ``hydra/launcher=slurm``; the fields are those of ``conf/hydra/launcher/slurm.yaml``."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    time_min: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gb: int | float | None
    runs_per_job: int
    array_parallelism: int
    setup: list[str]
    sbatch: dict[str, Any]
    wait: bool
    max_requeues: int
    retries: int


LAUNCHERS = {"gpus": Gpus, "slurm": Slurm}


@dataclass(frozen=True)
class Logging:
    """Say where results are logged besides their folders; the fields are those of ``conf/logging/``."""

    name: str
    project: str
    entity: str | None
    mode: str

    def __post_init__(self) -> None:
        if self.name == "wandb" and "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
            raise ConfigError("logging: 'wandb' is not installed here: pip install 'mxsweep[wandb]', or logging=none")


@dataclass(frozen=True)
class Settings:
    """Hold everything about a sweep but its runs.

    Attributes:
        launcher: None for this process.
        run_dir: the folder of a single run; ``sweep_dir`` that of a sweep.
    """

    baseline: bool
    resume: bool
    dry_run: bool
    reuse: str
    logging: Logging
    launcher: Gpus | Slurm | None
    run_dir: Path
    sweep_dir: Path

    @classmethod
    def from_hydra(cls, cfg: DictConfig) -> Settings:
        """Return the settings of a config that was composed with Hydra's own node. Raises ConfigError."""
        for name in ("baseline", "resume", "dry_run", "reuse"):
            knobs.check(name, cfg.get(name))
        logging, launcher = _typed("logging", cfg.logging, Logging), _launcher(cfg.hydra.launcher)
        if logging.name == "wandb" and isinstance(launcher, Slurm) and not launcher.wait:
            raise ConfigError(
                "logging: 'wandb' is done by this process, which does not wait; allowed with it: logging=none"
            )
        return cls(
            baseline=cfg.baseline,
            resume=cfg.resume,
            dry_run=cfg.dry_run,
            reuse=cfg.reuse,
            logging=logging,
            launcher=launcher,
            run_dir=_folder("hydra.run.dir", cfg.hydra.run.dir),
            sweep_dir=_folder("hydra.sweep.dir", cfg.hydra.sweep.dir),
        )


def _folder(field: str, path: str) -> Path:
    if not path:
        raise ConfigError(f"{field}: '' is empty; give a folder")
    return expanded(field, path)


def _launcher(node: DictConfig) -> Gpus | Slurm | None:
    known = f"allowed: basic, {', '.join(LAUNCHERS)}"
    if "_target_" in node:  # a plugin of Hydra's, of which the one that runs jobs in turn is ours, too
        if not str(node["_target_"]).endswith(".BasicLauncher"):
            raise ConfigError(f"hydra/launcher: {quoted(node['_target_'])} is not known; {known}")
        if further := [str(key) for key in node if key != "_target_"]:
            raise ConfigError(f"hydra.launcher.{further[0]}: hydra/launcher=basic has no knobs; {known}")
        return None
    if node.get("name") not in LAUNCHERS:
        raise ConfigError(
            f"hydra.launcher.name: {quoted(node.get('name'))} is not known; choose by hydra/launcher; {known}"
        )
    launcher: Gpus | Slurm = _typed("hydra.launcher", node, LAUNCHERS[node["name"]], without=("name",))
    return launcher


def _typed(field: str, node: DictConfig, cls: Any, without: tuple[str, ...] = ()) -> Any:
    given = {key: value for key, value in resolved(node).items() if key not in without}
    known = {item.name for item in dataclasses.fields(cls)}
    for key in given.keys() ^ known:
        there = "there is no such knob" if key in given else "was taken away; every sweep needs a value of it"
        raise ConfigError(f"{field}.{key}: {there}; allowed below {field}: {', '.join(sorted(known))}")
    for key, value in given.items():
        knobs.check(f"{field}.{key}", value)
    return cls(**given)
