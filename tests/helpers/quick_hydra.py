"""Hydra composes in tests as ever, in half its time: what it reads and merges for every config, it does once a process.

Which options a config is made of is worked out each time. Kept is what the files of mxsweep's own and of Hydra's hold,
which no test changes, and what comes out where the same options are merged, those that were typed by their content.
Where a folder of configs is added, which a test may write to, nothing is kept.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from mxsweep.config.option_files import conf_dir

STORE = ""  # the path of Hydra's ConfigStore, which has Hydra's own options, and those that were typed
KEPT = {"hydra.conf", str(conf_dir())}
REPLACED = [  # with what Hydra has there, found when this module is imported
    (owner, name, getattr(owner, name))
    for owner, name in (
        (ConfigRepository, "load_config"),
        (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
        (defaults_list, "_create_interpolation_map"),
    )
]


def make_plain(patch: pytest.MonkeyPatch) -> None:
    """Have Hydra do everything each time, as it does by itself."""
    for owner, name, plain in REPLACED:
        patch.setattr(owner, name, plain)


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Have Hydra do once what comes out the same each time."""
    load, merge, map_choices = (plain for _, _, plain in REPLACED)
    loaded: dict[str, ConfigResult | None] = {}
    merged: dict[str, bytes] = {}

    def load_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG) if _all_kept(self) else None
        if source is None or (source.path not in KEPT and not config_path.startswith("hydra/")):
            return load(self, config_path)
        if config_path not in loaded:
            loaded[config_path] = load(self, config_path)
        return loaded[config_path]

    def merge_once(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: CachingConfigRepository) -> DictConfig:
        if not _all_kept(repo):
            return merge(self, defaults, _Copying(repo))
        typed = [repo.load_config(one.config_path).config for one in defaults if one.config_path not in loaded]
        key = repr((defaults, list(map(OmegaConf.to_container, typed))))
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, _Copying(repo)))
        return pickle.loads(merged[key])

    def map_if_looked_into(overrides: Any, defaults: Sequence[InputDefault], self_added: bool) -> DictConfig | None:
        """Make no config of all choices, at each of thirty options, where no default refers to another choice."""
        return map_choices(overrides, defaults, self_added) if any(one.is_interpolation() for one in defaults) else None

    for (owner, name, _), quick in zip(REPLACED, (load_once, merge_once, map_if_looked_into), strict=True):
        patch.setattr(owner, name, quick)


def _all_kept(repo: ConfigRepository | CachingConfigRepository) -> bool:
    return {source.path for source in repo.get_sources()} <= {STORE, *KEPT}


class _Copying:
    """Hand out copies of what is kept: nodes of what is merged go into the config that they are merged into."""

    def __init__(self, repo: CachingConfigRepository) -> None:
        self.repo = repo

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repo, name)

    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(self.repo.load_config(config_path))
