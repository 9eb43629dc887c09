"""Do the runs of a sweep where the launcher says: in this process, beside it on this host, or on a Slurm cluster."""

from __future__ import annotations

from collections.abc import Sequence

from mxsweep.config.run_config import RunConfig
from mxsweep.config.sweep_settings import Gpus, Slurm
from mxsweep.sweeps import on_host, on_slurm
from mxsweep.sweeps.execute import SweepObserver, SweepRun, work
from mxsweep.sweeps.launch import Launch
from mxsweep.terminal.errors import ConfigError


def check_launcher(launcher: Gpus | Slurm | None, configs: Sequence[RunConfig]) -> None:
    """Refuse, before anything starts, a launcher that cannot do the runs. Raises ConfigError."""
    processes = max((config.train.processes for config in configs if config.trains), default=1)
    if launcher is not None and processes > 1:
        raise ConfigError(
            f"train.processes: {processes} have no say with a launcher, which gives each run one process; allowed: 1, "
            "or hydra/launcher=basic"
        )
    if isinstance(launcher, Gpus):
        on_host.gpus_for(launcher, configs)
    if isinstance(launcher, Slurm):
        on_slurm.check_commands()


def launch_runs(
    launcher: Gpus | Slurm | None, runs: Sequence[SweepRun], launch: Launch, observers: Sequence[SweepObserver]
) -> str | None:
    """Do the runs; return, where others do them later, a sentence on how to follow them.

    Raises:
        LaunchError: workers cannot be started, or end one after the other.
        OSError: results cannot be written.
    """
    if isinstance(launcher, Slurm):
        return on_slurm.work_on_slurm(launcher, runs, launch, observers)
    if isinstance(launcher, Gpus):
        on_host.work_on_host(launcher, runs, launch, observers)
    else:
        work(runs, launch.name, observers=observers)
    return None
