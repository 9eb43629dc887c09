"""Keep on disk what a model's shapes said of a recipe, so that asking the same again imports no torch.

To build a model without values and to look at it takes milliseconds; to import torch and transformers for that takes
seconds. What comes of it depends on the model's files and how they are loaded, on the recipe, on mxsweep's own code and
on the packages that are installed: answers are kept in the cache folder under digests of all of these. Nothing is kept
of a model that brings code of its own, of a training, or of an attention that a library has to be there for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mxsweep.config.run_config import RunConfig
from mxsweep.files.cache import cache_folder
from mxsweep.files.digests import file_digests, json_digest
from mxsweep.files.kept_texts import keep_text, kept_text
from mxsweep.formats.recipe import Recipe
from mxsweep.machine.gpus import visible_gpu_count
from mxsweep.terminal.errors import ConfigError

T = TypeVar("T")

FOLDER = "outlines"  # in the cache folder: a page of answers for each model, way of loading it, and environment
_OWN_ATTENTION = ("auto", "eager", "sdpa")  # which torch brings
_MOST_PAGES, _MOST_ANSWERS = 64, 4096


class KeptAnswers:
    """Answer questions about the model of a run, each once for all processes."""

    def __init__(self) -> None:
        self._pages: dict[str, dict[str, Any]] = {}
        self._changed: set[str] = set()

    def ask(self, config: RunConfig, question: str, answer: Callable[[], T]) -> T:
        """Return what is kept of a run under a name; else what ``answer`` returns, plain data, which `keep` keeps."""
        name = _page_of(config)
        if name is None:
            return answer()
        page = self._page(name)
        key = json_digest([question, *_asked_of(config)])
        if key not in page:
            page[key] = answer()
            self._changed.add(name)
        kept: T = page[key]
        return kept

    def keep(self) -> None:
        """Write what is new. Where that is not possible, it is worked out again next time."""
        for name in self._changed:
            page = dict([*(_read(name) | self._pages[name]).items()][-_MOST_ANSWERS:])
            keep_text(f"{FOLDER}/{name}", json.dumps(page))
        if self._changed:
            _remove_old()
        self._changed.clear()

    def _page(self, name: str) -> dict[str, Any]:
        if name not in self._pages:
            self._pages[name] = _read(name)
        return self._pages[name]


ANSWERS = KeptAnswers()


def _read(name: str) -> dict[str, Any]:
    text = kept_text(f"{FOLDER}/{name}")
    return json.loads(text) if text is not None else {}


def _remove_old() -> None:
    """Remove the pages that were written longest ago, of more than are kept."""
    with contextlib.suppress(OSError):
        pages = sorted((cache_folder() / FOLDER).glob("*.json"), key=lambda page: -page.stat().st_mtime)
        for page in pages[_MOST_PAGES:]:
            page.with_name(f"{page.name}.sha256").unlink(missing_ok=True)
            page.unlink(missing_ok=True)


def _page_of(config: RunConfig) -> str | None:
    """Return the name of the page of a run's model; None where nothing is kept of it."""
    model = config.model
    if config.trains or model.trust_remote_code or model.attention not in _OWN_ATTENTION:
        return None
    try:
        identity = model.identity()
    except ConfigError:  # which the run itself will say
        return None
    name = json_digest([asdict(model), identity, _environment()])
    return f"{name}.json" if "files" in identity else None


def _asked_of(config: RunConfig) -> list[Any]:
    """Return what decides, beside the model, what is to be said of a run; plain data."""
    spent_on = config.budget_formats if config.ptq.budget is not None else {}
    recipes = [config.recipe, *(Recipe(linear=linear) for linear in spent_on.values())]
    formats = [fmt for recipe in recipes for fmt in recipe.formats()]
    definitions = {str(fmt): [repr(fmt.element_format), repr(fmt.scale_format)] for fmt in formats}
    budget = [config.ptq.budget, config.ptq.fuse, repr(spent_on)]
    return [repr(config.recipe), definitions, budget, config.is_baseline, config.runtime]


@functools.cache
def _environment() -> list[Any]:
    """Return what answers depend on beside a run: mxsweep's code, Python, packages by name and version, GPUs."""
    package = Path(__file__).resolve().parent.parent
    files = sorted(package.rglob("*.py"))
    code = dict(zip((str(file.relative_to(package)) for file in files), file_digests(files), strict=True))
    packages = {info.name for folder in map(Path, sys.path) if folder.is_dir() for info in folder.glob("*.*-info")}
    return [code, platform.python_version(), sorted(packages), visible_gpu_count()]
