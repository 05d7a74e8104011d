"""A program for test_against_vllm.py: prints as JSON what the installed vLLM says of its defaults and options."""

import contextlib
import json
import os
import sys
import tempfile
from types import SimpleNamespace

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What vLLM prints on the way must not mix with the answer.
with contextlib.redirect_stdout(sys.stderr):
    import vllm.engine.arg_utils as arguments
    from vllm.config import VllmConfig
    from vllm.config.compilation import CUDAGraphMode
    from vllm.entrypoints.cli.serve import FlexibleArgumentParser, make_arg_parser
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext


class Card:
    """A platform that is a CUDA device of this name and size."""

    def __init__(self, name: str, memory_bytes: int) -> None:
        self.name, self.memory_bytes = name, memory_bytes

    def get_device_total_memory(self, *_: int) -> int:
        return self.memory_bytes

    def get_device_name(self, *_: int) -> str:
        return self.name

    def is_device_capability(self, *_: object) -> bool:
        return False

    def is_tpu(self) -> bool:
        return False

    is_cpu = is_xpu = is_rocm = is_tpu


def batch_defaults(name: str, memory_bytes: int) -> list[int]:
    real, arguments.current_platform = arguments.current_platform, Card(name, memory_bytes)
    try:
        tokens, seqs = arguments.EngineArgs.get_batch_defaults(1)
    finally:
        arguments.current_platform = real
    return [seqs[UsageContext.OPENAI_API_SERVER], tokens[UsageContext.OPENAI_API_SERVER]]


def resolved_batch(defaults: list[int], seqs: int | None, tokens: int | None, length: int, chunked: bool) -> list[int]:
    """`_set_default_max_num_seqs_and_batched_tokens_args` on nothing but its inputs."""
    engine = SimpleNamespace(
        pipeline_parallel_size=1, tensor_parallel_size=1, max_num_batched_tokens=tokens, max_num_seqs=seqs,
        performance_mode="balanced", enable_chunked_prefill=chunked,
        get_batch_defaults=lambda _: (
            {UsageContext.OPENAI_API_SERVER: defaults[1]}, {UsageContext.OPENAI_API_SERVER: defaults[0]},
        ),
    )  # fmt: skip
    model = SimpleNamespace(max_model_len=length, is_multimodal_model=False, is_mm_prefix_lm=False)
    arguments.EngineArgs._set_default_max_num_seqs_and_batched_tokens_args(
        engine, UsageContext.OPENAI_API_SERVER, model, SimpleNamespace(use_batched_dp_moe=False)
    )
    return [engine.max_num_seqs, engine.max_num_batched_tokens]


def capture_sizes(seqs: int, tokens: int, sizes: list[int] | None, most: int | None, blackwell: bool) -> list[int]:
    """`_set_cudagraph_sizes` on nothing but its inputs."""
    compilation = SimpleNamespace(
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, max_cudagraph_capture_size=most,
        cudagraph_capture_sizes=sizes, pass_config=SimpleNamespace(enable_sp=False),
        post_init_cudagraph_sizes=lambda: None,
    )  # fmt: skip
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False), compilation_config=compilation, speculative_config=None,
        scheduler_config=SimpleNamespace(max_num_seqs=seqs, max_num_batched_tokens=tokens), num_speculative_tokens=0,
        uniform_decode_query_len=1, performance_mode="balanced",
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )  # fmt: skip
    kind = type(current_platform)
    real = kind.is_device_capability_family
    kind.is_device_capability_family = classmethod(lambda *_, **__: blackwell)
    try:
        VllmConfig._set_cudagraph_sizes(config)
    finally:
        kind.is_device_capability_family = real
    return list(compilation.cudagraph_capture_sizes)


def longest(config: dict, folder: str) -> int:
    """max_model_len of a model whose config.json is this."""
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    engine = arguments.EngineArgs(model=folder, tokenizer=folder, skip_tokenizer_init=True)
    return engine.create_model_config().max_model_len


def options() -> dict[str, str]:
    found = {}
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        for spelling in action.option_strings:
            found[spelling] = "1" if action.nargs is None else str(action.nargs)
    return found


def main() -> None:
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        answer = {
            "utilization": arguments.EngineArgs.gpu_memory_utilization,
            "batch_defaults": [batch_defaults(*one) for one in asked["batch_defaults"]],
            "resolved_batch": [resolved_batch(*one) for one in asked["resolved_batch"]],
            "capture_sizes": [capture_sizes(*one) for one in asked["capture_sizes"]],
            "longest": [longest(one, folder) for one in asked["longest"]],
            "options": options(),
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
