"""The HTTP side: requests in, forwarded by the rules, answers streamed back as they come.

aiohttp carries both sides. vLLM depends on it already, so the router adds nothing to an installation; the ready-made
gateways parse every chunk and build it anew, and bring dozens of packages for providers that are not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from bench.router.backend import OUTCOMES, Backend, Refused
from bench.router.config import RouterConfig
from bench.router.rules import Asked, Rules

BACKEND_HEADER = "X-Backend"
TASK_HEADER = "X-Task"
MAX_BODY_BYTES = 256 << 20
KEPT_S = 4.0
"""An idle connection is kept for less than the 5 s after which vLLM's server closes it."""

_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "host", "content-length", "expect",
})  # fmt: skip
_REWRITTEN = frozenset({"content-type", "content-encoding", "accept-encoding"})
"""Headers of a request that the router writes anew."""
_PATHS = ("completions", "chat/completions", "responses", "embeddings")
_STATUS = {"queue_full": 429, "queue_timeout": 503, "unreachable": 503}

Record = dict[str, Any]
"""One request as the router saw it: backend, task, outcome, status, and `time.perf_counter_ns()` of its arrival, its
forwarding, the first byte of the answer, and its end."""


class Router:
    """The application and its engines. `on_record` is told of every request when it has ended."""

    def __init__(self, config: RouterConfig, on_record: Callable[[Record], None] | None = None) -> None:
        self.config = config
        self.backends = {one.name: Backend(one, config.queue_timeout_s) for one in config.backends}
        self.unrouted = 0
        self._created_unix_s = int(time.time())
        self._rules = Rules(config, lambda name: self.backends[name].load)
        self._on_record = on_record
        self._session: aiohttp.ClientSession | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.cleanup_ctx.append(self._life)
        for prefix in ("", "/task/{task}", "/words/{words}", "/task/{task}/words/{words}"):
            for path in _PATHS:
                app.router.add_post(f"{prefix}/v1/{path}", self._forward)
            app.router.add_get(f"{prefix}/v1/models", self._models)
            app.router.add_get(f"{prefix}/v1/models/{{model:.+}}", self._model)
            app.router.add_get(f"{prefix}/health", self._health)
        app.router.add_get("/router/stats", self._stats)
        app.router.add_get("/metrics", self._metrics)
        return app

    # -- forwarding --------------------------------------------------------------------------------------------

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        arrived_ns = time.perf_counter_ns()
        raw = await request.read()
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):  # the latter for brackets nested thousands deep
            return _error(400, "the body is not JSON", "invalid_request_error")
        if not isinstance(body, dict):
            return _error(400, "the body is not a JSON object", "invalid_request_error")
        task = request.match_info.get("task") or request.headers.get(TASK_HEADER)
        names = self._rules.candidates(Asked.of(body, task, request.match_info.get("words", "")))
        if not names:
            self.unrouted += 1
            return _error(404, f"no rule answers model {body.get('model')!r}, task {task!r}", "not_found_error")
        record: Record = {"task": task, "arrived_ns": arrived_ns}
        # An engine that is down is tried last, and only another that may stand in for it is tried instead.
        for name in sorted(names, key=lambda name: not self.backends[name].alive):
            backend = self.backends[name]
            answer = await self._through(backend, request, raw, body, record)
            if answer is not None:
                return answer
        message = f"the engine {' or '.join(names)} cannot be reached"
        return _error(_STATUS["unreachable"], message, "engine_unreachable", {"Retry-After": "1"})

    async def _through(
        self, backend: Backend, request: web.Request, raw: bytes, body: dict[str, Any], record: Record
    ) -> web.StreamResponse | None:
        """Forward to one engine; None where it could not be reached and nothing was sent to the client."""
        outcome, status = "client_gone", None  # what stands if this is cancelled, as it is when the client goes away
        try:
            async with backend.slot():
                record["forwarded_ns"] = time.perf_counter_ns()
                async with self._upstream(backend, request, raw, body) as upstream:
                    backend.alive, status = True, upstream.status
                    answer = await self._stream(backend, request, upstream, record)
                    outcome = "ok" if status < 400 else "client_error" if status < 500 else "server_error"
                    return answer
        except Refused as refused:
            outcome, status = refused.outcome, _STATUS[refused.outcome]
            said = {"queue_full": "has no room for more requests", "queue_timeout": "had no free slot in time"}
            return _error(status, f"{backend.name} {said[outcome]}", outcome, {"Retry-After": "1"})
        except _Unreachable as error:
            outcome, backend.alive = "unreachable", False
            record["error"] = str(error)
            return None
        except _Broken as broken:
            # The status line is out already: a cut connection is the only honest end.
            outcome = "broken_stream"
            record["error"] = str(broken)
            if request.transport is not None:
                request.transport.abort()
            return broken.answer
        finally:
            backend.outcomes[outcome] += 1
            ended = {"backend": backend.name, "outcome": outcome, "status": status, "end_ns": time.perf_counter_ns()}
            self._note(record | ended)

    async def _stream(
        self, backend: Backend, request: web.Request, upstream: aiohttp.ClientResponse, record: Record
    ) -> web.StreamResponse:
        """Pass the answer on as it comes. Raises _Broken where the engine ends it early."""
        answer = web.StreamResponse(status=upstream.status, headers=_kept(upstream.headers))
        answer.headers[BACKEND_HEADER] = backend.name
        await answer.prepare(request)
        while True:
            try:
                chunk = await upstream.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise _Broken(answer, error) from error
            if not chunk:
                break
            record.setdefault("first_byte_ns", time.perf_counter_ns())
            backend.output_bytes += len(chunk)
            await answer.write(chunk)  # waits while the client's buffer is full: back-pressure
        await answer.write_eof()
        return answer

    @contextlib.asynccontextmanager
    async def _upstream(
        self, backend: Backend, request: web.Request, raw: bytes, body: dict[str, Any]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None
        if backend.config.model and body.get("model") != backend.config.model:
            raw = json.dumps(body | {"model": backend.config.model}).encode()
        path = "/v1/" + request.path.partition("/v1/")[2]
        # The body was read here, unpacked and as JSON, whatever the client called it; vLLM refuses another type.
        # Answers are asked for unpacked: each byte is passed on as it comes.
        headers = _kept(request.headers, request=True)
        headers |= {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        url = backend.url + path
        try:
            try:
                upstream = await self._session.post(url, data=raw, headers=headers, allow_redirects=False)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                # A kept connection that the engine closed as idle in the same instant: no byte of an answer came.
                upstream = await self._session.post(url, data=raw, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _Unreachable(str(error) or type(error).__name__) from error
        async with upstream:
            yield upstream

    def _note(self, record: Record) -> None:
        if self._on_record is not None:
            self._on_record(record)

    # -- about itself ------------------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": list(self._cards().values())})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if (card := self._cards().get(name)) is None:
            return _error(404, f"no engine serves model {name!r}", "not_found_error")
        return web.json_response(card)

    def _cards(self) -> dict[str, dict[str, Any]]:
        """The models served here by name, as OpenAI's API describes one."""
        names = (one.config.model or one.name for one in self.backends.values())
        rest = {"object": "model", "created": self._created_unix_s, "owned_by": "vllm"}
        return {name: {"id": name, **rest} for name in names}

    async def _health(self, request: web.Request) -> web.Response:
        alive = {name: one.alive for name, one in self.backends.items()}
        return web.json_response({"engines": alive}, status=200 if any(alive.values()) else 503)

    async def _stats(self, request: web.Request) -> web.Response:
        found = {"engines": {name: one.stats() for name, one in self.backends.items()}, "unrouted": self.unrouted}
        return web.json_response(found)

    async def _metrics(self, request: web.Request) -> web.Response:
        """Prometheus' text format."""
        engines = [(json.dumps(name, ensure_ascii=False), one) for name, one in self.backends.items()]
        lines = ["# TYPE router_requests_total counter"]
        for label, one in engines:
            lines += [f'router_requests_total{{engine={label},outcome="{kind}"}} {one.outcomes[kind]}'
                      for kind in OUTCOMES]  # fmt: skip
        # All samples of one metric stand together, as the format demands.
        gauges: tuple[tuple[str, Callable[[Backend], int]], ...] = (
            ("requests_in_flight", lambda one: one.in_flight), ("requests_queued", lambda one: one.queued),
            ("engine_up", lambda one: int(one.alive)),
        )  # fmt: skip
        for metric, of in gauges:
            lines.append(f"# TYPE router_{metric} gauge")
            lines += [f"router_{metric}{{engine={label}}} {of(one)}" for label, one in engines]
        lines += ["# TYPE router_unrouted_total counter", f"router_unrouted_total {self.unrouted}"]
        return web.Response(text="\n".join(lines) + "\n")

    async def _life(self, app: web.Application) -> AsyncIterator[None]:
        # No limit on connections here: each engine's own is its slots. No limit on the whole: a long answer is no
        # failure, but an engine that hangs says nothing, and would keep its slots for ever.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=self.config.silence_timeout_s)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:  # fmt: skip
            self._session = session
            watch = asyncio.create_task(self._revive(session))
            yield
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _revive(self, session: aiohttp.ClientSession) -> None:
        """Ask the engines that are down whether they are back."""
        while True:
            await asyncio.sleep(self.config.retry_down_s)
            for backend in self.backends.values():
                if backend.alive:
                    continue
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"{backend.url}/health", timeout=_HEALTH) as answer:
                        backend.alive = answer.status == 200


_HEALTH = aiohttp.ClientTimeout(total=2.0)


class _Unreachable(Exception):
    """No answer began."""


class _Broken(Exception):
    """The engine's answer ended before it was whole."""

    def __init__(self, answer: web.StreamResponse, cause: Exception) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.answer = answer


def _kept(headers: Mapping[str, str], *, request: bool = False) -> dict[str, str]:
    """Headers that concern the two ends; those that `Connection` names are of one hop as well (RFC 9110, 7.6.1)."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    dropped = _HOP_BY_HOP | named | (_REWRITTEN if request else set())
    return {name: value for name, value in headers.items() if name.lower() not in dropped}


def _error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error as OpenAI's clients read it."""
    return web.json_response(
        {"error": {"message": message, "type": kind, "code": status}}, status=status, headers=headers
    )
