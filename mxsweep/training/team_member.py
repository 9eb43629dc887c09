"""Be one of the processes that train a model together: ``together.py`` starts it, in a folder that holds the job."""

from __future__ import annotations

import logging
import pickle
import sys
import threading
from pathlib import Path

import torch.distributed

from mxsweep.files.atomic import write_atomically
from mxsweep.files.locks import end_with
from mxsweep.model.load import resolve_device
from mxsweep.terminal.command import leave
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import silent
from mxsweep.training.job import TrainingJob
from mxsweep.training.loop import train
from mxsweep.training.shared_team import SharedTeam
from mxsweep.training.together import ERROR, JOB, LOCK, OUTCOME, SayTo, report_to


def main(place: Path) -> int:
    """Train, and leave what came of it in the folder, if this process is the first; return the exit code."""
    threading.Thread(target=end_with, args=(place / LOCK,), daemon=True).start()
    job, folder = pickle.loads((place / JOB).read_bytes())  # which the process that started this one wrote
    assert isinstance(job, TrainingJob)
    team = SharedTeam(job.train.parallel, resolve_device(job.model.device) == "cpu")
    if team.leads:
        logging.getLogger("mxsweep").addHandler(SayTo(place))
        logging.getLogger("mxsweep").setLevel(logging.INFO)
    try:
        outcome = train(job, folder, team, report_to(place) if team.leads else silent)
    except ConfigError as error:
        write_atomically(place / ERROR, str(error))
        return 1
    if team.leads:
        left = {name: value for name, value in vars(outcome).items() if name != "initial"}
        left["weights"] = {name: tensor.cpu() for name, tensor in outcome.weights.items()}
        write_atomically(place / OUTCOME, pickle.dumps(left))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    # At once, as all is handed over: taking apart what torch's processes hold takes a while, and may crash.
    leave(main(Path(sys.argv[1])))
