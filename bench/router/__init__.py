"""One OpenAI-compatible address in front of several engines, so that a pair can be used as well as measured.

``config`` (engines and rules, as YAML) -> ``rules`` (which engine a request goes to) -> ``backend`` (slots, queue,
health and counts of one engine) -> ``proxy`` (the HTTP part, on aiohttp, which vLLM's own server needs anyway).
"""
