"""Makes `bench.sweeper.GridSweeper` known to Hydra, which looks for plug-ins in this namespace alone."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

from bench.sweeper import GridSweeper as _GridSweeper


class GridSweeper(_GridSweeper, Sweeper):
    """See `bench.sweeper.GridSweeper`."""


@dataclass
class GridSweeperConfig:
    """`hydra.sweeper`: the grid of a named sweep, one line a setting, as on the command line."""

    _target_: str = "hydra_plugins.calibrate_sweeper.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    """Explicit points instead of a product, each a set of overrides; the params' product is taken for each."""


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConfig, provider="vllm-calibrate")
