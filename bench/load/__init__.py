"""Drive a live engine over HTTP and say how fast it answered, and whether the client could keep up.

The parts, in the order a request passes them: ``spec`` (what to send) -> ``prompts`` and ``wire`` (its bytes)
-> ``closed_loop`` (when to send) -> ``http`` (sending, time-stamping) -> ``sse`` and ``records`` (what came
back, parsed after the clock has stopped) -> ``latency`` (statistics) -> ``result``. ``monitor`` and
``selfcheck`` watch the run, ``metrics`` reads the engine's own counters.
"""
