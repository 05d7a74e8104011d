"""Finds the exceptions in a log that several processes wrote at once, and the one that began it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from bench.engine.logs import LogLine, clean_lines

_HEADER = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?::\s?(?P<message>.*))?$")
_BARE = re.compile(r"^(?P<type>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)): (?P<message>.+)$")
_CHAINED = re.compile(r"^(?:The above exception was the direct cause|During handling of the above exception)")
_SERVER_LINE = re.compile(r"^(?:INFO|WARNING|ERROR):\s{2,}|^Process \S+:$|^nanobind: |^Loading |^[╭│╰]")
_MAX_MESSAGE_LINES = 25

# Exceptions that only pass on that something else failed.
_SECOND_HAND = re.compile(
    r"Engine core initialization failed|Engine process failed to start|EngineDeadError"
    r"|EngineCore encountered an|Engine core proc \S+ died|Executor failed|WorkerProc initialization failed"
    r"|RuntimeError: cancelled|BrokenPipeError|ConnectionResetError|CancelledError|KeyboardInterrupt"
    r"|SystemExit"
    r"|WorkerProcFailed|BrokenProcessPool|RuntimeError: Worker failed with error ''"
    # The server without a tokenizer says this in healthy starts, too.
    r"|Tokenizer not available when `skip_tokenizer_init=True`"
)
_RELAYED = re.compile(r"Worker failed with error '(?P<message>.*?)', please check the", re.DOTALL)


@dataclass
class LoggedException:
    """An exception as a log shows it. `type` is the dotted name, `message` may have several lines."""

    type: str
    message: str
    process: str = ""
    frames: list[str] = field(default_factory=list)
    chained: bool = False
    """It followed from the exception before it in the same process."""
    before: list[LoggedException] = field(default_factory=list)
    """The chain it ends, first cause first; filled by `root_exception`."""

    @property
    def line(self) -> str:
        """`Type: first line of the message`."""
        return f"{self.type}: {self.message}".split("\n", 1)[0].strip()

    @property
    def second_hand(self) -> bool:
        """Whether it only reports that another process or step failed."""
        return bool(_SECOND_HAND.search(f"{self.type}: {self.message}"))


def exceptions(text: str | bytes) -> list[LoggedException]:
    """The exceptions of a log in the order they were finished, warnings' ones left out.

    Understands tracebacks whose lines carry a process prefix, bare ones, and a log whose beginning is cut
    off.
    """
    streams: dict[tuple[str, int | None, str], _Stream] = {}
    found: list[LoggedException] = []
    for line in clean_lines(text):
        if line.level in ("DEBUG", "INFO", "WARNING"):
            _bare(streams).interrupt()
            continue
        key = (line.process, line.pid, line.where)
        if line.level:
            _bare(streams).interrupt()
        stream = streams.setdefault(key, _Stream(line.process))
        finished = stream.feed(line)
        if finished is not None:
            found.append(finished)
    return found


def _bare(streams: dict[tuple[str, int | None, str], _Stream]) -> _Stream:
    return streams.setdefault(("", None, ""), _Stream(""))


class _Stream:
    """Lines of one process and one logging call (or the bare lines) as exceptions."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.frames: list[str] | None = None  # None: not inside a traceback
        self.chained = False
        self.last: LoggedException | None = None  # its message may go on
        self.message_lines = 0

    def interrupt(self) -> None:
        """Another process wrote: a bare message does not go on after that."""
        self.last = None

    def feed(self, line: LogLine) -> LoggedException | None:
        text = line.text
        if text.startswith("Traceback (most recent call last)"):
            self.frames, self.last = [], None
            return None
        if _CHAINED.match(text):
            self.chained, self.last, self.frames = True, None, None
            return None
        if self.frames is not None:
            if not text.strip() or text[0] in " \t":
                self.frames.append(text)
                return None
            return self._finish(_HEADER.match(text), text)
        if self.last is not None and self._goes_on(text):
            self.last.message += "\n" + text
            self.message_lines += 1
            return None
        self.last = None
        bare = _BARE.match(text)
        return self._finish(bare, text) if bare else None

    def _goes_on(self, text: str) -> bool:
        return self.message_lines < _MAX_MESSAGE_LINES and not _SERVER_LINE.match(text)

    def _finish(self, header: re.Match[str] | None, text: str) -> LoggedException:
        kind = header["type"] if header else "Exception"
        message = (header["message"] or "") if header else text
        done = LoggedException(kind, message, self.process, self.frames or [], self.chained)
        self.frames, self.last, self.chained, self.message_lines = None, done, False, 1
        return done


def root_exception(found: Sequence[LoggedException]) -> LoggedException | None:
    """The first exception that is not about another one; of a chain its last, which explains most.

    Where only a relayed one is left (the worker's own traceback is cut off), the message inside it.
    """
    chains: list[list[LoggedException]] = []
    for _, one_process in groupby(found, key=lambda exception: exception.process):
        for exception in one_process:
            if exception.chained and chains and chains[-1][-1].process == exception.process:
                chains[-1].append(exception)
            else:
                chains.append([exception])
    relayed: LoggedException | None = None
    for chain in chains:
        first_hand = [e for e in chain if not e.second_hand and not _RELAYED.search(e.message)]
        if first_hand:
            first_hand[-1].before = first_hand[:-1]
            return first_hand[-1]
        for exception in chain:
            inner = _RELAYED.search(exception.message)
            if inner and relayed is None:
                relayed = LoggedException(
                    "RuntimeError", inner["message"], exception.process, exception.frames
                )
    return relayed
