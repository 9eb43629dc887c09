"""Save the whole state of a training, and find the newest one again.

A state is a folder ``step_N`` that is there whole or not at all: ``state.pt``, and ``state.json`` with its digest and
the identity of the run. One that is damaged or of another run is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from mxsweep.files.atomic import write_folder_atomically
from mxsweep.terminal.logged_warnings import LoggedWarnings
from mxsweep.training.team import Team

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
STATE, ACCOUNT = "state.pt", "state.json"


def save_state(folder: Path, identity: str, state: dict[str, Any], keep: int) -> None:
    """Save a state below a run's folder, as that of ``state["step"]``, and remove all but the newest ``keep``.

    Raises:
        OSError: it cannot be written.
    """

    def write(unfinished: Path) -> None:
        with (unfinished / STATE).open("wb") as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)  # type: ignore[arg-type]
        account = {"identity": identity, "step": state["step"], "sha256": hashing.digest}
        (unfinished / ACCOUNT).write_text(json.dumps(account), encoding="utf-8")

    place = folder / FOLDER / f"step_{state['step']}"
    try:
        write_folder_atomically(place, write)
    except (OSError, RuntimeError) as error:
        # torch ends its archive though a write failed, and then says no more than that it is not where it should be.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        # A failed write, as on a full disk, names no file.
        raise OSError(cause.errno, cause.strerror, str(cause.filename or place)) from error
    for old in saved_steps(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    for unfinished in (folder / FOLDER).glob(".step_*.tmp"):  # of a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)


def saved_steps(folder: Path) -> list[Path]:
    """Return the folders of saved states below a run's folder, the newest first."""
    found = {path: re.fullmatch(r"step_(\d+)", path.name) for path in (folder / FOLDER).glob("step_*")}
    steps = {path: int(match[1]) for path, match in found.items() if match}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def newest_state(folder: Path, identity: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest state that is whole and of this run, None without one; and why newer ones were passed over."""
    warnings = LoggedWarnings(log)
    for path in saved_steps(folder):
        try:
            return _read(path, identity), warnings
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"{path.name} of the run's checkpoints is passed over: {reason}")
    return None, warnings


def _read(path: Path, identity: str) -> dict[str, Any]:
    account = json.loads((path / ACCOUNT).read_text(encoding="utf-8"))
    if account["identity"] != identity:
        raise ValueError("it is of another run")
    with (path / STATE).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != account["sha256"]:
            raise ValueError("it is damaged")
    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return state


class _Hashing:
    """Write to a file, and digest what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._content = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._content.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return self._content.hexdigest()


def weights_and_moments(model: nn.Module, optimizers: Sequence[Optimizer], team: Team) -> dict[str, Any]:
    """Return the weights and what the optimizers keep, whole, whatever part of them each process holds."""
    return {
        "model": {name: team.whole(tensor) for name, tensor in model.state_dict().items()},
        "optimizers": [_mapped(optimizer.state_dict(), team.whole) for optimizer in optimizers],
    }


@torch.no_grad()
def put_back(state: dict[str, Any], model: nn.Module, optimizers: Sequence[Optimizer], team: Team) -> None:
    """Put weights and moments of :func:`weights_and_moments` back."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(team.part(state["model"][name], tensor))
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {
                name: team.part(value, parameters[number])
                if isinstance(value, torch.Tensor) and value.shape == parameters[number].shape
                else value
                for name, value in of_one.items()
            }
            for number, of_one in saved["state"].items()
        }
        optimizer.load_state_dict(saved | {"state": moments})


def random_states() -> dict[str, Any]:
    """Return the states of all generators of random numbers, as plain data and tensors."""
    name, keys, place, has_gauss, gauss = np.random.get_state()
    version, numbers, following = random.getstate()
    return {
        "python": [version, list(numbers), following],
        "numpy": [name, [int(key) for key in keys], place, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put the states of :func:`random_states` back."""
    version, numbers, following = states["python"]
    random.setstate((version, tuple(numbers), following))
    name, keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value
