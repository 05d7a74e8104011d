"""Compose the points of a grid, group choices once.

Hydra composes a configuration anew for every point: a quarter of a second each, minutes for a large grid. The points of
a grid differ in plain values, which need no files. So each combination of groups is composed by Hydra, and the values
are set on a copy of it by the call that Hydra sets them with. What is not as plain as that is left to Hydra, and so is
every mistake, for the sake of its sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """Composes points of one sweep. ``master`` is the sweep's own configuration, Hydra's node included."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        parser = OverridesParser.create(config_loader=loader)
        self._parse = cache(lambda word: parser.parse_overrides([word])[0])  # one alone has no sentence for a bad word
        self._of_groups = cache(self._by_hydra)
        self._is_group = cache(lambda key: bool(loader.get_group_options(key)))

    def compose(self, words: Sequence[str]) -> DictConfig:
        """What Hydra composes with these overrides, without its own node. Raises what Hydra raises."""
        groups, values = [], []
        for override in map(self._parse, words):
            if not _is_plain(override):
                return self._by_hydra(tuple(words))
            (groups if self._is_group(override.key_or_group) else values).append(override)
        config = copy.deepcopy(self._of_groups(tuple(str(group.input_line) for group in groups)))
        try:
            for override in values:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            return self._by_hydra(tuple(words))
        return config

    def _by_hydra(self, words: tuple[str, ...]) -> DictConfig:
        composed = self._loader.load_sweep_config(self._master, list(words))
        with read_write(composed), open_dict(composed):
            del composed["hydra"]  # the larger part of what would be copied
        return composed


def _is_plain(override: Override) -> bool:
    """``key=value``, of which neither adds, deletes, sweeps or says a package, and which is not of Hydra itself."""
    special = (
        override.is_add() or override.is_force_add() or override.is_delete() or override.is_sweep_override()
        or override.package is not None or override.is_hydra_override()
    )  # fmt: skip
    return not special and not isinstance(override.value(), dict)
