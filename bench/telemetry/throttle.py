"""Names for NVML's clock event bits (called "throttle reasons" before driver 535)."""

from __future__ import annotations

_BITS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}  # nvmlClocksEventReason*, the same bits as nvmlClocksThrottleReason*

ALL = tuple(_BITS.values())
"""Every name, in the order of the bits."""

BENIGN = frozenset({"gpu_idle", "applications_clocks_setting", "display_clock_setting"})
"""Reasons that say how clocks were set, not that the GPU could not hold them."""


def names(mask: int | None) -> list[str]:
    """Names of the bits set in `mask`, lowest first; a bit without a name reads "bit_0x800"."""
    if not mask:
        return []
    bits = (1 << position for position in range(mask.bit_length()))
    return [_BITS.get(bit, f"bit_{bit:#x}") for bit in bits if mask & bit]
