"""Published checkpoints of catalogue models in a weight format, for commands that can be pasted.

Names as their publishers give them on the Hugging Face hub. A pair that is not here has no checkpoint that this
project knows of, and a command names a folder to fill in.
"""

from __future__ import annotations

from analysis import catalogue

PUBLISHED: dict[tuple[str, str], str] = {
    ("deepseek-coder-33b", "awq"): "TheBloke/deepseek-coder-33B-instruct-AWQ",
    ("deepseek-coder-33b", "gptq"): "TheBloke/deepseek-coder-33B-instruct-GPTQ",
    ("llama-3.1-8b", "awq"): "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
    ("llama-3.1-8b", "gptq"): "hugging-quants/Meta-Llama-3.1-8B-Instruct-GPTQ-INT4",
    ("llama-3.1-8b", "w4a16"): "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
    ("llama-3.1-8b", "fp8-dynamic"): "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic",
    ("llama-3.1-8b", "int8-w8a8"): "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
    ("mistral-7b", "fp8-dynamic"): "RedHatAI/Mistral-7B-Instruct-v0.3-FP8-dynamic",
    ("mistral-7b", "int8-w8a8"): "RedHatAI/Mistral-7B-Instruct-v0.3-quantized.w8a8",
    ("mistral-7b", "w4a16"): "RedHatAI/Mistral-7B-Instruct-v0.3-quantized.w4a16",
    ("qwen2.5-0.5b", "awq"): "Qwen/Qwen2.5-0.5B-Instruct-AWQ",
    ("qwen2.5-0.5b", "gptq"): "Qwen/Qwen2.5-0.5B-Instruct-GPTQ-Int4",
    ("qwen2.5-1.5b", "awq"): "Qwen/Qwen2.5-1.5B-Instruct-AWQ",
    ("qwen2.5-1.5b", "gptq"): "Qwen/Qwen2.5-1.5B-Instruct-GPTQ-Int4",
    ("qwen2.5-7b", "awq"): "Qwen/Qwen2.5-7B-Instruct-AWQ",
    ("qwen2.5-7b", "gptq"): "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4",
    ("qwen2.5-7b", "fp8-dynamic"): "RedHatAI/Qwen2.5-7B-Instruct-FP8-dynamic",
    ("qwen2.5-7b", "int8-w8a8"): "RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8",
    ("qwen2.5-7b", "w4a16"): "RedHatAI/Qwen2.5-7B-Instruct-quantized.w4a16",
    ("qwen2.5-14b", "awq"): "Qwen/Qwen2.5-14B-Instruct-AWQ",
    ("qwen2.5-14b", "gptq"): "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4",
    ("qwen2.5-coder-32b", "awq"): "Qwen/Qwen2.5-Coder-32B-Instruct-AWQ",
    ("qwen2.5-coder-32b", "gptq"): "Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4",
    ("qwen3-8b", "awq"): "Qwen/Qwen3-8B-AWQ",
    ("qwen3-30b-a3b", "gptq"): "Qwen/Qwen3-30B-A3B-GPTQ-Int4",
}
"""(catalogue model, catalogue quantization) to a hub id."""

_UNQUANTIZED = ("bf16", "fp16", "fp32", "fp8")
"""Formats that the 16-bit checkpoint serves: vLLM makes `fp8` of it while loading."""


def checkpoint_of(model: str, quantization: str | None) -> tuple[str, str | None]:
    """What to write after `vllm serve`, and a note where it must be filled in.

    A model that is not in the catalogue stands for itself.
    """
    if model not in catalogue.model_names():
        return model, None
    entry = catalogue.load_model(model)
    if quantization is None or quantization in _UNQUANTIZED:
        if entry.hub_id:
            return entry.hub_id, None
        return f"./{model}", f"./{model} stands for a folder with the checkpoint of {model}"
    if published := PUBLISHED.get((model, quantization)):
        return published, None
    folder = f"./{model}-{quantization}"
    of = entry.hub_id or model
    return folder, f"{folder} stands for a checkpoint of {of} in {quantization}; this project knows of no published one"
