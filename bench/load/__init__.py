"""Drive a live engine over HTTP and say how fast it answered, and whether the client could keep up.

The parts, in the order a request passes them: ``spec`` (what to send; ``arrivals``, ``lengths`` and ``traces`` are the
patterns and distributions it names) -> ``schedule`` (single requests) -> ``plan``, ``prompts`` and ``wire`` (each
worker's share, its bytes) -> ``run`` and ``workers`` (one process or several) -> ``drive`` (when to send; ``clock``,
``pool``) -> ``http`` (sending, time-stamping) -> ``sse`` and ``records`` (what came back, parsed after the clock has
stopped) -> ``steady`` and ``latency`` (which part counts, statistics) -> ``result``, ``flags``, ``request_table``.

``monitor`` and ``selfcheck`` watch the run, ``engine_watch`` and ``metrics`` read the engine's own counters.
"""
