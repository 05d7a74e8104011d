"""Which known cause an error message belongs to, and what it means in plain words.

The patterns were checked against the messages in the sources of vLLM 0.25.1, 0.26.0, 0.32.0 and 0.33.0 and of
torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

GIB = 2**30
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "bytes": 1}


@dataclass(frozen=True)
class Cause:
    """A recognised cause. `sentence` is empty where the message itself says it best."""

    cause: str
    sentence: str = ""
    missing_kernel: str | None = None
    shortfall_bytes: int | None = None


def _device_oom(found: re.Match[str], text: str) -> Cause:
    wanted = re.search(r"Tried to allocate ([\d.]+) (KiB|MiB|GiB|TiB|bytes)", text)
    free = re.search(r"of which ([\d.]+) (KiB|MiB|GiB|TiB|bytes) is free", text)
    total = re.search(r"total capacity of ([\d.]+) (KiB|MiB|GiB|TiB|bytes)", text)
    if wanted is None:
        return Cause("out_of_memory", "the GPU ran out of memory")
    sentence = f"the GPU ran out of memory: {wanted[1]} {wanted[2]} were asked for"
    if free is None:
        return Cause("out_of_memory", sentence)
    sentence += f", {free[1]} {free[2]} were free"
    sentence += f" of {total[1]} {total[2]}" if total else ""
    return Cause("out_of_memory", sentence, None, max(_size(wanted) - _size(free), 0))


def _size(found: re.Match[str]) -> int:
    return round(float(found[1]) * _UNITS[found[2]])


def _host_oom(found: re.Match[str], text: str) -> Cause:
    wanted = re.search(r"tried to allocate (\d+) bytes", text)
    amount = f": {int(wanted[1]) / GIB:.2f} GiB were asked for" if wanted else ""
    return Cause("out_of_memory", f"the host ran out of memory{amount}")


def _short_by(cause: str, needed: str, available: str) -> Callable[[re.Match[str], str], Cause]:
    """The shortfall is `needed` - `available`, group names of figures in GiB."""

    return lambda found, text: Cause(cause, "", None, _shortfall(found[needed], found[available]))


def _shortfall(wanted_gib: str, free_gib: str) -> int | None:
    missing = round((float(wanted_gib) - float(free_gib)) * GIB)
    return missing if missing > 0 else None


def _kernel(name: str, sentence: str) -> Callable[[re.Match[str], str], Cause]:
    """`name` and `sentence` are templates over the match."""
    return lambda found, text: Cause(
        "missing_kernel", found.expand(sentence), found.expand(name) or "unnamed"
    )


def _no_kernel_chosen(found: re.Match[str], text: str) -> Cause:
    reasons = [line.strip().rstrip(".") for line in text.split("\n")[1:] if line.strip()]
    name = reasons[0].split()[0].rstrip(":") if reasons else found[1]
    why = f": {'; '.join(reasons[:3])}" if reasons else ""
    return Cause("missing_kernel", f"no kernel here can run the {found[1]} linear layer{why}", name)


def _plain(cause: str) -> Callable[[re.Match[str], str], Cause]:
    return lambda found, text: Cause(cause)


def _invalid_field(found: re.Match[str], text: str) -> Cause:
    """A pydantic report: its second line is the field, the third what is wrong with it."""
    lines = [line.strip() for line in text.split("\n")[1:] if line.strip()]
    lines = [line for line in lines if not line.startswith("For further information")]
    said = ": ".join(re.sub(r"\s*\[type=.*", "", line) for line in lines[:2]).removeprefix("Value error, ")
    value = re.search(r"\[type=[\w.]+, input_value=(.*?), input_type=", text)
    if value and len(lines) >= 2 and len(value[1]) < 80:
        said += f" (it is {value[1]})"
    return Cause("bad_argument", f"{found[1]} is invalid: {said}" if said else "")


def _too_long(found: re.Match[str], text: str) -> Cause:
    fits = re.search(r"estimated maximum model length is (\d+)", text)
    sentence = f"one request of {found['length']} tokens needs {found['wanted']} GiB of KV cache"
    sentence += f" and {found['free']} GiB are available"
    sentence += f"; up to {fits[1]} tokens would fit" if fits else ""
    return Cause("max_model_len_exceeds_kv", sentence, None, _shortfall(found["wanted"], found["free"]))


_NO_MODEL = "the model is neither a directory nor in the local hub cache, and the hub is off"
_LACKS = "the engine build lacks the operator "
_NO_MOE = r"no kernel here can run \1 mixture-of-experts layers"

_TABLE: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], str], Cause]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), build)
    for pattern, build in (
        # -- memory --
        (r"(?:CUDA|HIP|XPU) (?:error: )?out of memory|OutOfMemoryError|cudaErrorMemoryAllocation"
         r"|CUDA_ERROR_OUT_OF_MEMORY", _device_oom),
        (r"DefaultCPUAllocator: (?:can't|not enough)|\bMemoryError\b|Cannot allocate memory|std::bad_alloc",
         _host_oom),
        (r"Free memory on device \S+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than .*?"
         r"\([\d.]+, (?P<wanted>[\d.]+) GiB\)", _short_by("insufficient_free_memory", "wanted", "free")),
        (r"Available memory on node \d+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on startup is less than desired "
         r"CPU memory utilization \([\d.]+, (?P<wanted>[\d.]+) GiB\)",
         _short_by("insufficient_free_memory", "wanted", "free")),
        (r"Available memory on node \d+ \((?P<free>[\d.]+)/[\d.]+ GiB\) on kv cache allocation is less "
         r"than requested memory for kv \((?P<wanted>-?[\d.]+)",
         _short_by("insufficient_free_memory", "wanted", "free")),
        (r"No available memory for the cache blocks", _plain("no_kv_memory")),
        (r"To serve at least one request with the model's max seq len \((?P<length>\d+)\), "
         r"\((?P<wanted>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory "
         r"\((?P<free>[\d.]+) GiB\)", _too_long),
        # -- kernels --
        (r"'_OpNamespace' '(\w+)' object has no attribute '(\w+)'", _kernel(r"\1::\2", _LACKS + r"\1::\2")),
        (r"(\w+)::(\w+)\(\) expected at most 0 argument", _kernel(r"\1::\2", _LACKS + r"\1::\2")),
        (r"Failed to find a kernel that can implement the ([\w -]+?) linear layer", _no_kernel_chosen),
        (r"No ([\w ]+) MoE backend(?: supports|s available)", _kernel(r"\1 MoE", _NO_MOE)),
        (r"Unsupported ([\w ]+) MoE backend: \w+", _kernel(r"\1 MoE", _NO_MOE)),
        (r"Quant type \((\w+)\) not supported by\s?(\w+)",
         _kernel(r"\2", r"the kernel \2 does not run \1 weights")),
        (r"(Marlin) does not support weight_bits = (\w+)",
         _kernel(r"\1", r"the kernel \1 does not run \2 weights")),
        (r"(\w+): expect A to be ([\w ]+)", _kernel(r"\1", r"the kernel \1 runs \2 activations only")),
        (r"(?:(\w+) )?requires (AMX[\w ]*)", _kernel(r"\1", r"a kernel of this format requires \2")),
        (r"no kernel image is available for execution",
         _kernel("CUDA image", "the engine build has no kernels for this GPU")),
        (r"Could not run '([\w:.]+)' with arguments from the '(\w+)' backend",
         _kernel(r"\1", r"the operator \1 does not exist for \2")),
        (r"operator (\w+::\w+) does not exist", _kernel(r"\1", _LACKS + r"\1")),
        # -- formats --
        (r"Unknown quantization method: (\w+)",
         lambda found, text: Cause("unsupported_quantization", f"this vLLM has no format {found[1]}")),
        (r"quantization method \S+ is not supported|not supported for quantization method"
         r"|Quantization method specified in the model config|quantization is not supported"
         r"|desc_act.{0,80}no longer supported|desc_act=True|Unsupported quantization"
         r"|Quantization scheme is not supported|No compressed-tensors compatible scheme",
         _plain("unsupported_quantization")),
        # -- files --
        (r"LocalEntryNotFoundError",
         lambda found, text: Cause("bad_checkpoint", _NO_MODEL)),
        (r"JSONDecodeError|not a valid JSON file|SafetensorError|Error while deserializing header"
         r"|Cannot find any model weights|does not appear to have a file named|Can't load the configuration"
         r"|Invalid repository ID or local directory|RepositoryNotFoundError"
         r"|GatedRepoError|HFValidationError|Should have a `model_type` key|Unrecognized model in"
         r"|Model architectures .* (?:are not supported|failed to be inspected)"
         r"|Following weights were not initialized", _plain("bad_checkpoint")),
        # -- the rest --
        (r"Address already in use",
         lambda found, text: Cause("port_in_use", "another process listens on the engine's port")),
        (r"\d+ validation errors? for (\w+)", _invalid_field),
        (r"must be divisible by tensor parallel size|is larger than the number of available GPUs"
         r"|is larger than the world size|greater than the derived max_model_len"
         r"|max_num_batched_tokens \(\d+\)|is out of bounds for \d+ devices", _plain("bad_argument")),
        (r"invalid literal for int\(\) with base 10: ''", _plain("bad_argument")),
    )
)  # fmt: skip


def recognise(text: str) -> Cause | None:
    """The cause an error message (type included, all its lines) belongs to, or None."""
    for pattern, build in _TABLE:
        found = pattern.search(text)
        if found:
            return build(found, text)
    return None
