"""Turns a request into an ordered list of points, drops those already recorded, hands the rest to Hydra's launcher.

Everything is composed and validated before the first engine starts, so that a mistake in the last point of a grid
costs a second and not an hour.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from bench.composer import Composer
from bench.errors import BadRequest
from bench.request import Request, load_request
from bench.runner import Runner

# Outer to inner. The torch.compile cache is keyed by the token budget and not by the sequence limit (vLLM's
# SchedulerConfig.compute_hash), so points that differ in sequences alone follow each other and reuse it.
_OUTER = ("model", "quantization")
_INNER = ("engine.max_num_batched_tokens", "engine.max_num_seqs")


class GridSweeper:
    """Hydra sweeper: `hydra.sweeper.params` and swept command-line values make a product, `points` a list."""

    def __init__(self, params: dict[str, Any] | None = None, points: Sequence[dict[str, Any]] = ()) -> None:
        self._params = dict(params or {})
        self._points = [dict(point) for point in points]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self._context = hydra_context
        self._config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Plan, announce, launch. `arguments` are the command line's overrides of the task configuration."""
        grid = self.expand(arguments)
        composer = Composer(self._context.config_loader, self._config)
        requests = [load_request(composer.compose(overrides)) for overrides in grid]
        planned = interleave(grid, requests)
        if not planned:
            raise BadRequest("the grid is empty: no point is left of it")
        runner = Runner.current()
        todo = runner.plan([request for _, request in planned])
        wanted = {request.key for request in todo}
        overrides = [words for words, request in planned if request.key in wanted]
        if overrides:
            returns = self._launcher.launch(overrides, initial_job_idx=0)
            for job in returns:
                # Hydra's launchers store what a job raised; its `return_value` would print a line of its own first.
                if job.status is JobStatus.FAILED:
                    raise job._return_value
            return returns
        return []

    def expand(self, arguments: list[str]) -> list[list[str]]:
        """All points as lists of overrides, in the order they are to run, without repeats."""
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        params = [f"{key}={value}" for key, value in self._params.items()]
        axes: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*params, *arguments]):
            key = override.get_key_element()
            axes[key] = [f"{key}={value}" for value in _values(override)]
        keys = sorted(axes, key=_rank)
        product = [list(words) for words in itertools.product(*(axes[key] for key in keys))]
        if not self._points:
            return product
        # What the command line sets wins over a listed point, as it wins over a grid.
        said = {override.get_key_element() for override in parser.parse_overrides(arguments)}
        points = [[f"{k}={_text(v)}" for k, v in point.items() if k not in said] for point in self._points]
        return [[*point, *words] for words in product for point in points]


def interleave(grid: list[list[str]], requests: list[Request]) -> list[tuple[list[str], Request]]:
    """Repeat the whole grid instead of each point, so that slow drift of the machine spreads over all points.

    Points that come out the same are kept once.
    """
    seen, planned = set(), []
    rounds = max((request.cfg.repeats for request in requests), default=0)
    for repeat in range(rounds):
        for overrides, request in zip(grid, requests, strict=True):
            if repeat >= request.cfg.repeats:
                continue
            restart = request.restart(repeat)
            if restart.key not in seen:
                seen.add(restart.key)
                planned.append(([*overrides, f"repeat={repeat}"], restart))
    return planned


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise BadRequest(f"{override.input_line}: a grid needs a list of values, as in key=1,2,3, or range(start,stop)")
    return list(override.sweep_string_iterator())


def _rank(key: str) -> tuple[int, int]:
    if key in _OUTER:
        return (0, _OUTER.index(key))
    return (2, _INNER.index(key)) if key in _INNER else (1, 0)


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
