"""Which NVML devices a CUDA program started with a given environment would use. NVML itself ignores the
variable.

Rules: CUDA C++ Programming Guide, "CUDA Environment Variables" (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from bench.telemetry.nvml import Device, NoNvml, Nvml
from bench.telemetry.nvml_errors import BadDevice

_HIDE_ALL = ("", "-1", "NoDevFiles", "none", "void")


def visible_devices(nvml: Nvml | NoNvml, env: Mapping[str, str] | None = None) -> list[Device]:
    """Devices in the order in which CUDA numbers them (the first is cuda:0).

    CUDA drops an entry it does not know, and all after it, without a word, and a sweep would then measure the
    wrong card or none; so that is BadDevice here. Only "-1" (or an empty value) ends the list, as documented.
    A whole GPU in MIG mode is refused too: CUDA would pick one of its instances, NVML would report the card.
    MIG instances are named by UUID; see `Device` for what is measured on them.
    """
    env = os.environ if env is None else env
    value = env.get("CUDA_VISIBLE_DEVICES")
    if not nvml.available or isinstance(nvml, NoNvml):
        return []
    if value is None:
        chosen = list(nvml.devices)
        _refuse_unknown_order(nvml, env)
    else:
        chosen = []
        for entry in (part.strip() for part in value.split(",")):
            if entry in _HIDE_ALL:
                break
            chosen.append(_named(nvml, entry, env, value))
    for position, device in enumerate(chosen):
        if device.uuid in {other.uuid for other in chosen[:position]}:
            raise BadDevice(
                f"CUDA_VISIBLE_DEVICES={value!r} names {device.uuid} twice, which hides all devices"
            )
        if not device.is_mig and device.mig_enabled():
            raise BadDevice(
                f"GPU {device.index} is in MIG mode but named as a whole by CUDA_VISIBLE_DEVICES={value!r}; "
                "name one of its instances by its MIG-… UUID from `nvidia-smi -L`"
            )
    return chosen


def _named(nvml: Nvml, entry: str, env: Mapping[str, str], value: str) -> Device:
    if entry.isdecimal():
        _refuse_unknown_order(nvml, env)
        return nvml.device(int(entry))
    if entry.startswith("MIG-"):
        return nvml.device(entry)
    if entry.startswith("GPU-"):
        matches = [device for device in nvml.devices if device.uuid.startswith(entry)]
        if len(matches) == 1:
            return matches[0]
        found = "several GPUs match" if matches else "no GPU matches"
        raise BadDevice(f"CUDA_VISIBLE_DEVICES={value!r}: {found} {entry!r}; see `nvidia-smi -L`")
    raise BadDevice(f"CUDA_VISIBLE_DEVICES={value!r}: {entry!r} is no index and no GPU-… or MIG-… UUID")


def _refuse_unknown_order(nvml: Nvml, env: Mapping[str, str]) -> None:
    """CUDA's default order puts the fastest card first; only among equal cards is it NVML's PCI order."""
    models = sorted({device.name for device in nvml.devices})
    if len(models) > 1 and env.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise BadDevice(
            f"this machine mixes GPU models ({', '.join(models)}), so CUDA's numbering differs from NVML's; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name devices by UUID in CUDA_VISIBLE_DEVICES"
        )
