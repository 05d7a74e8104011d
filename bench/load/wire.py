"""The bytes of a completions request, made before the clock starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.errors import BadRequest


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


def completion_body(
    model: str, token_ids: Sequence[int], max_tokens: int, temperature: float = 0.0, top_p: float = 1.0
) -> bytes:
    """The JSON body of a streamed ``/v1/completions`` request of exactly ``max_tokens`` tokens.

    ``continuous_usage_stats`` puts the running token count into every chunk, which is what makes the count of
    tokens right when the engine sends several of them in one chunk.
    """
    fields = {
        "model": model,
        "prompt": list(token_ids),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": temperature,
        "top_p": top_p,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return json.dumps(fields, separators=(",", ":")).encode()
