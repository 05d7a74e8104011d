"""How much GPU memory a `vllm serve` command takes, what is left for the KV cache, and whether it starts.

Standard library only (and PyYAML for catalogue entries), so that an answer takes a blink.
"""
