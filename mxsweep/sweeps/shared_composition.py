"""Compose the runs of a sweep from what they have in common, which Hydra would read and merge anew for each.

Hydra takes a tenth of a second to compose a run: it parses every override, reads some thirty files, and merges them
node by node. The runs of a sweep name the same knobs, in the same order, and differ in a few of their values. So Hydra
composes one of them, and of the others only what differs is done, on plain data: other options take the places of its
options in the same order of merging, and the leaves that were typed are set over them.

What is left to Hydra is whatever could come out otherwise: other knobs than the first run's, options that choose
options themselves or lie elsewhere, references, values that are missing, and every error, for the sake of its message.
And before any run is composed in this way, so is the one that Hydra composed: where the two are not the same down to
the order of keys, Hydra composes them all.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mxsweep.config.composed_config import plain_knobs
from mxsweep.sweeps.options_read_once import OptionsReadOnce

CONFIG = "config"  # the name of the config that all begins with
OF_THIS_RUN = ("hydra.job.num", "hydra.job.id")


class _LeftToHydraError(Exception):
    """Say that a run is not composed here."""


@dataclass
class SharedComposition:
    """Compose runs whose overrides name the same knobs as a run that Hydra composed.

    Attributes:
        overrides: that run's, parsed.
        groups: the groups that they choose from.
        cfg: what Hydra made of it; each run that is composed takes the place of the one before in it.
        defaults: the options that it was merged from, in order.
        repo: reads options, each once.
        parsed: overrides that were read before, by their text.
        contents: what options hold, as plain data in their places, by path and package.
        refused: overrides that a run cannot have here which the first one has not.
    """

    overrides: list[Override]
    groups: set[str]
    cfg: DictConfig
    defaults: list[ResultDefault]
    repo: CachingConfigRepository
    parsed: dict[str, Override]
    contents: dict[tuple[str, str | None], dict[str, Any]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, words: Sequence[str], cfg: DictConfig, knobs: dict[str, Any]) -> SharedComposition | None:
        """Return what can compose runs like this one; None where only Hydra can.

        Args:
            words: the run's overrides, Hydra's own and those that number it among them.
            cfg: what Hydra composed of them, which is this object's from now on.
            knobs: the knobs in it as plain data, as Hydra left them.
        """
        loader = _loader()
        try:
            overrides, repo = loader._parse_overrides_and_create_caching_repo(CONFIG, list(words))
            if any(override.type != OverrideType.CHANGE or override.package for override in overrides):
                return None
            found = create_defaults_list(repo, CONFIG, overrides, prepend_hydra=True, skip_missing=False)
            if _chooses_by_choices(found.defaults, repo):
                return None
            groups = {override.key_or_group for override in overrides if repo.group_exists(override.key_or_group)}
            parsed = dict(zip(words, overrides, strict=True))
            shared = cls(overrides, groups, cfg, list(found.defaults), repo, parsed)
            again = shared._knobs(overrides)
        except (_LeftToHydraError, HydraException, OmegaConfBaseException):
            return None
        return shared if _text(again) == _text(knobs) else None

    def compose(self, words: Sequence[str]) -> DictConfig | None:
        """Return what Hydra would make of a run's overrides, valid until the next call; None where only Hydra can."""
        try:
            overrides = [self._read(word) for word in words]
            self._put(self._knobs(overrides), overrides)
        except (_LeftToHydraError, HydraException, OmegaConfBaseException):
            return None
        return self.cfg

    def _read(self, word: str) -> Override:
        if word not in self.parsed:
            self.parsed[word] = OverridesParser.create().parse_override(word)
        return self.parsed[word]

    def _knobs(self, overrides: Sequence[Override]) -> dict[str, Any]:
        """Return the knobs of a run as plain data, references as they stand. Raises _LeftToHydraError."""
        if [override.key_or_group for override in overrides] != [other.key_or_group for other in self.overrides]:
            raise _LeftToHydraError
        defaults, leaves = list(self.defaults), []
        places = {default.override_key: place for place, default in enumerate(defaults)}
        for override, other in zip(overrides, self.overrides, strict=True):
            key = override.key_or_group
            if override.type != OverrideType.CHANGE or override.package:
                raise _LeftToHydraError
            if key.partition(".")[0].partition("/")[0] == "hydra":
                if override is not other and override.input_line != other.input_line and key not in OF_THIS_RUN:
                    raise _LeftToHydraError
            elif key in self.groups:
                if override.input_line != other.input_line:
                    if key not in places:
                        self._refuse(override)
                    defaults[places[key]] = self._other_option(defaults[places[key]], override)
            else:
                leaves.append(override)
        merged: dict[str, Any] = {}
        for default in defaults:
            _merge(merged, self._content(default))
        for leaf in leaves:
            _set(merged, leaf)
        return merged

    def _other_option(self, default: ResultDefault, override: Override) -> ResultDefault:
        """Return the option that an override puts into the place of another. Raises _LeftToHydraError."""
        name = override.value()
        if not isinstance(name, str) or not name or "${" in name or "???" in name or default.config_path is None:
            self._refuse(override)
        path = f"{override.key_or_group}/{name}"
        before, after = self.repo.load_config(default.config_path), self.repo.load_config(path)
        for option in (before, after):
            if option is None or option.defaults_list or "hydra" in option.config:
                self._refuse(override)
        places = [_place(option.header, override.key_or_group) for option in (before, after) if option is not None]
        if default.package != places[0] or None in places:
            self._refuse(override)
        return replace(default, config_path=path, package=places[1])

    def _refuse(self, override: Override) -> NoReturn:
        self.refused.add(override.input_line or "")
        raise _LeftToHydraError

    def _content(self, default: ResultDefault) -> dict[str, Any]:
        """Return what an option holds, in its place, but for Hydra's own. Raises _LeftToHydraError."""
        key = (default.config_path or "", default.package)
        if key not in self.contents:
            content = OmegaConf.to_container(_loader()._load_single_config(default, self.repo).config, resolve=False)
            assert isinstance(content, dict)
            knobs = {str(name): content[name] for name in content if name not in ("hydra", "defaults")}
            if "???" in repr(knobs):
                raise _LeftToHydraError
            self.contents[key] = knobs
        return self.contents[key]

    def _put(self, knobs: dict[str, Any], overrides: Sequence[Override]) -> None:
        """Have the config hold these knobs and what Hydra notes of the overrides."""
        held = plain_knobs(self.cfg)  # which whoever asked for the run before may have changed
        if list(held) != list(knobs):
            raise _LeftToHydraError
        for name, value in knobs.items():
            if _text(held[name]) != _text(value):
                self.cfg[name] = value
        hydra = self.cfg.hydra
        of_hydra = [override for override in overrides if override.is_hydra_override()]
        of_task = [override for override in overrides if not override.is_hydra_override()]
        for override in of_hydra:
            if override.key_or_group in OF_THIS_RUN:
                OmegaConf.update(self.cfg, override.key_or_group, override.value())
        hydra.overrides.hydra = [override.input_line for override in of_hydra]
        hydra.overrides.task = [override.input_line for override in of_task]
        choices = {one.key_or_group: one.value() for one in of_task if one.key_or_group in self.groups}
        with open_dict(hydra):
            hydra.runtime.choices.update(choices)
        style = hydra.job.config.override_dirname
        hydra.job.override_dirname = get_overrides_dirname(
            overrides=of_task, kv_sep=style.kv_sep, item_sep=style.item_sep, exclude_keys=style.exclude_keys
        )


def read_options_once() -> None:
    """Have the Hydra that is initialized read each option once for all runs."""
    loader = _loader()
    loader.repository = OptionsReadOnce(loader.repository)


def _loader() -> ConfigLoaderImpl:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None and isinstance(hydra.config_loader, ConfigLoaderImpl)
    return hydra.config_loader


def _chooses_by_choices(defaults: Sequence[ResultDefault], repo: CachingConfigRepository) -> bool:
    """Return whether an option is chosen by what another one is: ``- override /format: ${recipe}``."""
    of_knobs = [path for one in defaults if (path := one.config_path) and not path.startswith("hydra/")]
    options = [repo.load_config(path) for path in of_knobs]
    return any(option is not None and "${" in str(option.defaults_list) for option in options)


def _place(header: Mapping[str, str | None], group: str) -> str | None:
    """Return the package of an option, as its first line has it; None for any other than the usual two."""
    package = header.get("package")
    if package is None:
        return group.replace("/", ".")
    return "" if package == "_global_" else None


def _merge(into: dict[str, Any], content: dict[str, Any]) -> None:
    """Merge as OmegaConf merges what has no types: mappings key by key, of all else the later."""
    for key, value in content.items():
        there = into.get(key)
        if isinstance(value, dict):
            if isinstance(there, str) and "${" in there:
                raise _LeftToHydraError  # which may refer to a mapping
            if not isinstance(there, dict):
                there = into[key] = {}
            _merge(there, value)
        else:
            into[key] = copy.deepcopy(value)


def _set(knobs: dict[str, Any], override: Override) -> None:
    """Set a leaf that was typed. Raises _LeftToHydraError where there is none, or it is of another kind."""
    *groups, leaf = override.key_or_group.split(".")
    below: Any = knobs
    for group in groups:
        below = below.get(group) if isinstance(below, dict) else None
    value = override.value()
    if not isinstance(below, dict) or leaf not in below or isinstance(below[leaf], dict):
        raise _LeftToHydraError
    if "${" in repr(value) or "???" in repr(value):
        raise _LeftToHydraError
    below[leaf] = copy.deepcopy(value)


def _text(data: Any) -> str:
    """Return a text of plain data that differs where values, their types or the order of keys differ."""
    return json.dumps(data, default=repr)
