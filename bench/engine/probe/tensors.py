"""The tensors a vLLM worker holds, in bytes over unique storages: weights and the KV cache."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from bench.engine.probe.describe import plain_value


def _unique_storages(tensors: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """`(tensor, bytes of its storage)` for each storage not met before; views and tied weights count once."""
    seen: set[Any] = set()
    for tensor in tensors:
        try:
            storage = tensor.untyped_storage()
            size, address = storage.nbytes(), storage.data_ptr()
        except Exception:
            size, address = tensor.numel() * tensor.element_size(), 0
        # A meta tensor has no address: its storage's identity stands in.
        key = (str(tensor.device), address) if address else ("unaddressed", id(tensor))
        if size and key not in seen:
            seen.add(key)
            yield tensor, int(size)


def _inner(tensor: Any) -> list[Any]:
    """The plain tensors a wrapper subclass is made of (torch's traceable wrapper protocol), or the tensor
    itself.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    return [part for name in flatten()[0] for part in _inner(getattr(tensor, name))]


def tensor_bytes(model: Any) -> dict[str, Any]:
    """Bytes of the model's parameters and buffers over unique storages.

    `parameter_bytes` + `buffer_bytes` = `total_bytes`; a storage used by both counts as a parameter.
    `other_bytes` are tensors that modules hold without registering them (kernel workspaces, packed copies),
    not part of the total.
    """
    owners: dict[int, str] = {}
    tensors: list[Any] = []

    def collect(kind: str, found: Iterable[Any]) -> None:
        for tensor in found:
            for part in _inner(tensor):
                owners.setdefault(id(part), kind)
                tensors.append(part)

    torch = sys.modules["torch"]
    collect("parameter", model.parameters())
    collect("buffer", model.buffers())
    for module in model.modules():
        collect("other", (value for value in vars(module).values() if isinstance(value, torch.Tensor)))
    sums = {"parameter": 0, "buffer": 0, "other": 0}
    by_dtype: dict[str, dict[str, int]] = {kind: {} for kind in sums}
    devices: dict[str, int] = {}
    for tensor, size in _unique_storages(tensors):
        kind = owners[id(tensor)]
        dtype = str(tensor.dtype).removeprefix("torch.")
        sums[kind] += size
        by_dtype[kind][dtype] = by_dtype[kind].get(dtype, 0) + size
        devices[str(tensor.device)] = devices.get(str(tensor.device), 0) + size
    return {
        "total_bytes": sums["parameter"] + sums["buffer"],
        "parameter_bytes": sums["parameter"],
        "buffer_bytes": sums["buffer"],
        "other_bytes": sums["other"],
        "parameter_bytes_by_dtype": by_dtype["parameter"],
        "buffer_bytes_by_dtype": by_dtype["buffer"],
        "bytes_by_device": devices,
    }


def _flat_tensors(value: Any) -> Iterator[Any]:
    torch = sys.modules["torch"]
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat_tensors(item)


def kv_cache(model_runner: Any) -> dict[str, Any]:
    """The KV cache as allocated.

    `allocated_bytes` sums unique storages of the runner's tensors (layers may share one). `bytes_per_block`
    is that over `num_blocks`: one block ID across all layers of this rank. Block 0 is vLLM's null block,
    which no request gets.
    """
    made = getattr(model_runner, "kv_cache_config", None)
    caches = list(getattr(model_runner, "kv_caches", None) or [])
    sizes = [
        {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."),
         "view_bytes": int(tensor.numel() * tensor.element_size())}
        for cache in caches for tensor in _flat_tensors(cache)
    ]  # fmt: skip
    allocated = sum(size for _, size in _unique_storages(_flat_tensors(caches)))
    values: dict[str, Any] = {"allocated_bytes": allocated, "tensors": len(sizes), "layers": sizes[:256]}
    if made is None:
        return values
    blocks = int(made.num_blocks)
    values["num_blocks"] = blocks
    values["bytes_per_block"] = allocated // blocks if blocks else None
    values["layout"] = getattr(made, "kv_cache_layout", None)
    values["groups"] = [
        {
            "spec": type(group.kv_cache_spec).__name__,
            "block_size_tokens": getattr(group.kv_cache_spec, "block_size", None),
            "page_bytes": getattr(group.kv_cache_spec, "page_size_bytes", None),
            "sliding_window_tokens": getattr(group.kv_cache_spec, "sliding_window", None),
            "dtype": plain_value(getattr(group.kv_cache_spec, "dtype", None)),
            "layers": len(group.layer_names),
        }
        for group in made.kv_cache_groups
    ]
    return values
