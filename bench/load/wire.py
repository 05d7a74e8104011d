"""The bytes of a completions request, made before the clock starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.errors import BadRequest
from bench.load.prompts import prompt_token_ids
from bench.load.spec import LoadSpec


@dataclass(frozen=True)
class Target:
    """Where the engine listens. ``prefix`` is the path before ``/v1`` and ``/metrics``, usually empty."""

    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, base_url: str) -> Target:
        """Read ``http://HOST[:PORT][/PREFIX]``; a trailing ``/v1`` is dropped. Raises :class:`BadRequest`."""
        wanted = f"base_url is {base_url!r}; give it as http://HOST:PORT"
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise BadRequest(f"{wanted} ({error}).") from None
        if parts.scheme != "http" or not host:
            raise BadRequest(f"{wanted} (plain HTTP only).")
        odd = any(not "!" <= character <= "~" for character in base_url)
        if odd or parts.username or parts.query or parts.fragment:
            raise BadRequest(f"{wanted} (no user, query, fragment, blank or control character).")
        return cls(host, 80 if port is None else port, parts.path.rstrip("/").removesuffix("/v1").rstrip("/"))

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header wants it, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def get(self, path: str) -> bytes:
        """A GET request for ``path``, keeping the connection open."""
        return f"GET {self.prefix}{path} HTTP/1.1\r\nHost: {self.authority}\r\nAccept: */*\r\n\r\n".encode()

    def post_json(self, path: str, body: bytes) -> bytes:
        """A POST request of a JSON ``body`` to ``path``, keeping the connection open."""
        head = (
            f"POST {self.prefix}{path} HTTP/1.1\r\nHost: {self.authority}\r\nAccept: text/event-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def completion_body(model: str, token_ids: Sequence[int], spec: LoadSpec) -> bytes:
    """The JSON body of a streamed ``/v1/completions`` request.

    ``continuous_usage_stats`` puts the running token count into every chunk, which is what makes the count of
    tokens right when the engine sends several of them in one chunk.
    """
    fields = {
        "model": model,
        "prompt": list(token_ids),
        "max_tokens": spec.output_tokens,
        "ignore_eos": True,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return json.dumps(fields, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Job:
    """One request ready to be sent. ``index`` numbers its prompt."""

    index: int
    wire: bytes


def build_jobs(target: Target, model: str, spec: LoadSpec, vocab_size: int, indices: range) -> list[Job]:
    """Whole requests for the prompts numbered ``indices``. Raises :class:`BadRequest` as the prompts do."""
    jobs = []
    for index in indices:
        token_ids = prompt_token_ids(spec.seed, index, spec.input_tokens, vocab_size)
        jobs.append(Job(index, target.post_json("/v1/completions", completion_body(model, token_ids, spec))))
    return jobs
