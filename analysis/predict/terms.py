"""The calibration for one kind of start, looked up once per kind."""

from __future__ import annotations

from functools import lru_cache

from analysis import calibration
from analysis.predict.request import RequestError


@lru_cache(maxsize=4096)
def select(vllm_version: str, runner: str, gpu: str, tensor_parallel_size: int) -> calibration.Selection:
    """Raises RequestError where no calibration can be used at all."""
    try:
        return calibration.select(vllm_version, runner, gpu, tensor_parallel_size)
    except calibration.CalibrationError as unusable:
        raise RequestError(f"no prediction without calibrations: {unusable}") from None
