"""What the harness asks a live engine over loopback HTTP, outside any measured window."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any


class ServerError(Exception):
    """The engine did not answer, or answered with an error."""


class Server:
    """The HTTP side of one engine."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def base_url(self) -> str:
        """Where the load goes."""
        return f"http://127.0.0.1:{self.port}"

    def healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether /health answers 200."""
        try:
            return self._request("GET", "/health", timeout_s=timeout_s)[0] == 200
        except ServerError:
            return False

    def call_workers(self, method: str, args: list[str] | None = None, timeout_s: float = 10.0) -> list[Any]:
        """One probe method on every worker: milliseconds when the engine idles, and it blocks its steps, so do not call
        it under load. An engine whose core died lets it hang."""
        body = {"method": method, "args": args or []}
        status, text = self._request("POST", "/collective_rpc", body, timeout_s)
        if status != 200:
            raise ServerError(f"/collective_rpc {method}: HTTP {status}: {text[:200]}")
        return json.loads(text).get("results") or []

    def effective_config(self, timeout_s: float = 30.0) -> Any:
        """vLLM's resolved configuration, or None where this version does not tell."""
        try:
            status, text = self._request("GET", "/server_info?config_format=json", timeout_s=timeout_s)
            return json.loads(text) if status == 200 else None
        except (ServerError, ValueError):
            return None

    def metrics(self, timeout_s: float = 10.0) -> str:
        """The Prometheus text of /metrics."""
        status, text = self._request("GET", "/metrics", timeout_s=timeout_s)
        if status != 200:
            raise ServerError(f"/metrics: HTTP {status}")
        return text

    def _request(self, verb: str, path: str, body: Any = None, timeout_s: float = 10.0) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(verb, path, payload, {"Content-Type": "application/json"} if payload else {})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
