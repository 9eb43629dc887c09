"""Fixtures that several test modules share."""

import copy
import gc
import logging
import os
import socket
import urllib.request
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported, here and in what the tests start: several test processes with a pool of threads each spend
# most of their time waiting for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import yaml
from helpers.drawn_here import draw_here, draw_in_processes
from helpers.quick_hydra import quicken
from omegaconf._utils import get_yaml_loader

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Return one process more than there are CPUs: some tests wait, for Slurm or for processes that they start.

    The number that the environment asks for is what was asked for.
    """
    return (yield) + (not os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, marked `long`, and then those of many tests: a process does a file, and
    none is to be at one when the others have nothing left to do.
    """
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.get_closest_marker("long") is None, -tests[item.path]))


def pytest_collection_finish() -> None:
    """Have Python's search for garbage leave out the modules and tests that are there from now on."""
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session", autouse=True)
def _texts_of_yaml_are_parsed_once() -> Iterator[None]:
    """Parse each text once a process: Hydra reads the same thirty files for every config, in a sixth of its time.

    What is read is read all the same, and what is no YAML is refused each time, with the place in its file.
    """
    parse, parsed = yaml.load, {}
    loaders = {(one.__module__, one.__qualname__) for one in (yaml.SafeLoader, get_yaml_loader())}

    def load(stream: Any, Loader: Any) -> Any:
        loader = (Loader.__module__, Loader.__qualname__)
        if loader not in loaders:  # what a tag means may depend on where the file lies
            return parse(stream, Loader)
        text = stream
        if not isinstance(stream, str | bytes):
            text = stream.read()
            stream.seek(0)
        if (loader, text) not in parsed:
            parsed[loader, text] = parse(stream, Loader)
        return copy.deepcopy(parsed[loader, text])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", load)
        yield


@pytest.fixture(scope="session", autouse=True)
def _hydra_is_quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _charts_are_drawn_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_here(patch)
        yield


@pytest.fixture
def drawing_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let charts be drawn in processes of their own, as without these tests."""
    draw_in_processes(monkeypatch)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of large reference files beside the checkout, or where MXSWEEP_SHARED says."""
    path = Path(os.environ.get("MXSWEEP_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference files at {path} (set MXSWEEP_SHARED to the folder that holds them)")
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is kept in the cache folder be kept in one of the test's own, `cache` in its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let no connection be made, though nothing forbids one; return the list of attempts."""
    import datasets
    import huggingface_hub

    attempts: list[object] = []

    def refuse(*asked: Any, **_: Any) -> Any:
        attempts.append(asked)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    for library in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(library, "HF_HUB_OFFLINE", False)
    return attempts


@pytest.fixture(autouse=True)
def _no_handler_stays() -> Iterator[None]:
    """Take from the root logger what a command in this process put there: it prints to a stream that a test captured,
    which is closed when the next test logs.
    """
    root = logging.getLogger()
    before = [*root.handlers]
    yield
    for handler in [*root.handlers]:
        if handler not in before:
            root.removeHandler(handler)
