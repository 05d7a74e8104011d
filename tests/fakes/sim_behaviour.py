"""What the simulated completions server does: delays, layouts of its stream, faults."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Behaviour:
    """How a request is answered. Counts in tokens sent before the event, -1: never. Times in seconds.

    A list of TTFTs is gone through request by request, a list of ITLs token by token, both over and over.
    """

    ttft_s: float | list[float] = 0.02
    itl_s: float | list[float] = 0.01
    coalesce: int = 1  # tokens per chunk; a chunk of k comes k times itl_s after the last
    merge: int = 1  # events per TCP segment, held back until there are so many
    split: int = 1  # TCP segments per event, split_gap_s apart
    split_gap_s: float = 0.002
    status: int = 200
    error_body: str = '{"error":{"message":"simulated failure","type":"Simulated","code":0}}'
    drop: int = -1  # close the connection; 0: before the first chunk, but after the headers
    reset: bool = False  # close it before a byte of the answer
    stall: int = -1  # say no more, but keep the connection
    malformed: int = -1  # an event that is not JSON
    bad_framing: int = -1  # a chunk header that is not hexadecimal
    error_event: int = -1
    stop_after: int = -1  # end well, with only so many tokens
    extra: int = 0  # so many tokens more than asked for
    done: bool = True  # send [DONE]
    usage: str = "asked"  # as the request's stream_options ask; or "continuous", "final", "none" in spite of them
    close: str = ""  # after the response: "header" says so and closes, "silent" closes, "late" once the next comes in


@dataclass
class Settings:
    """A server: its nominal behaviour, what happens to single requests, and where the truth goes."""

    port: int = 0
    truth_path: str = ""
    tick_s: float = 0.0  # > 0: all streams send together at every tick, as a decode loop does; itl_s is not used
    freezes: list[list[float]] = field(default_factory=list)
    # [start_s, length_s] after the first request: nothing is read or sent meanwhile, and all is late afterwards
    behaviour: Behaviour = field(default_factory=Behaviour)
    faults: dict[int, Behaviour] = field(default_factory=dict)

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """From plain options; those of :class:`Behaviour` hold for all requests, ``faults`` for one."""
        names = {item.name for item in fields(Behaviour)}
        behaviour = Behaviour(**{key: options.pop(key) for key in list(options) if key in names})
        faults = {int(n): replace(behaviour, **change) for n, change in options.pop("faults", {}).items()}
        return cls(behaviour=behaviour, faults=faults, **options)
