"""The router over real sockets: streaming as it comes, back-pressure, engines that refuse, break, die and return."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from bench.router.config import RouterConfig
from bench.router.proxy import Router


class Engine:
    """A completions server whose answers are held until they are let go: no clock decides a test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[dict] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.second = asyncio.Event()
        self.status = 200
        self.cut = False
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> str:
        app = web.Application()
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_get("/health", self._healthy)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append({"body": await request.json(), "headers": dict(request.headers)})
        try:
            await self.go.wait()
            answer = web.StreamResponse(status=self.status, headers={"Content-Type": "text/event-stream"})
            await answer.prepare(request)
            await answer.write(f"data: {self.name} 1\n\n".encode())
            if self.cut:
                request.transport.abort()
                return answer
            await self.second.wait()
            await answer.write(b"data: [DONE]\n\n")
            await answer.write_eof()
            return answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response()

    def free(self) -> None:
        self.go.set()
        self.second.set()


@contextlib.asynccontextmanager
async def running(names=("a", "b"), **config):
    """Engines of these names behind a router; yields (session at the router, engines, router, records)."""
    engines = {name: Engine(name) for name in names}
    urls = {name: await engine.start() for name, engine in engines.items()}
    limits = config.pop("limits", {})
    backends = [{"name": name, "url": url, "model": f"model-{name}", **limits} for name, url in urls.items()]
    records: list[dict] = []
    router = Router(RouterConfig.of({"backends": backends, "retry_down_s": 0.05, **config}), records.append)
    runner = web.AppRunner(router.app(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession(base) as session:
            yield session, engines, router, records
    finally:
        await runner.cleanup()
        for engine in engines.values():
            engine.free()
            await engine.stop()


def run(test):
    async def bounded():
        async with asyncio.timeout(20):
            await test

    asyncio.run(bounded())


async def until(condition):
    while not condition():  # the router's state raises no event
        await asyncio.sleep(0.005)


TASKS = {"rules": [{"kind": "task", "engines": {"x": "a", "y": "b"}}]}
BODY = {"model": "whatever", "prompt": [1, 2], "stream": True}


def test_chunks_are_passed_on_as_they_come_and_the_model_is_the_engines_own():
    async def test():
        async with running(**TASKS) as (session, engines, _, records):
            engines["b"].go.set()
            async with session.post("/v1/completions", json=BODY, headers={"X-Task": "y"}) as answer:
                assert answer.headers["X-Backend"] == "b"
                first = await answer.content.readany()
                assert first == b"data: b 1\n\n"
                assert not records, "the answer is not whole yet, and its first part is here"
                engines["b"].second.set()
                assert await answer.content.read() == b"data: [DONE]\n\n"
            await until(lambda: records)
            (record,) = records
            assert record["outcome"] == "ok" and record["backend"] == "b" and record["task"] == "y"
            assert record["arrived_ns"] <= record["forwarded_ns"] <= record["first_byte_ns"] <= record["end_ns"]
            assert engines["b"].seen[0]["body"] == BODY | {"model": "model-b"}
            assert not engines["a"].seen

    run(test())


def test_a_task_may_stand_in_the_path():
    async def test():
        async with running(**TASKS) as (session, engines, *_):
            engines["a"].free()
            async with session.post("/task/x/v1/completions", json=BODY) as answer:
                assert answer.headers["X-Backend"] == "a"

    run(test())


def test_more_requests_than_slots_wait_and_more_than_the_queue_takes_are_refused():
    async def test():
        limits = {"max_in_flight": 2, "max_queued": 1}
        async with running(("a",), default="a", limits=limits) as (session, engines, router, records):
            backend = router.backends["a"]

            async def send():
                async with session.post("/v1/completions", json=BODY) as answer:
                    return answer.status, await answer.read()

            sent = [asyncio.create_task(send()) for _ in range(3)]
            await until(lambda: (backend.in_flight, backend.queued) == (2, 1))
            status, body = await send()
            assert status == 429 and "no room" in json.loads(body)["error"]["message"]
            assert len(engines["a"].seen) == 2, "the engine has no more than its slots"
            engines["a"].free()
            assert [status for status, _ in await asyncio.gather(*sent)] == [200] * 3
            assert (backend.in_flight, backend.queued, backend.peak_in_flight) == (0, 0, 2)
            assert backend.outcomes == {"ok": 3, "queue_full": 1}

    run(test())


def test_who_waits_too_long_is_told_so_and_leaves_no_slot_behind():
    async def test():
        limits = {"max_in_flight": 1, "max_queued": 4}
        async with running(("a",), default="a", limits=limits, queue_timeout_s=0.05) as (session, engines, router, _):
            first = asyncio.create_task(session.post("/v1/completions", json=BODY))
            await until(lambda: router.backends["a"].in_flight == 1)
            async with session.post("/v1/completions", json=BODY) as answer:
                assert answer.status == 503
            engines["a"].free()
            (await first).release()
            await until(lambda: router.backends["a"].in_flight == 0)
            async with session.post("/v1/completions", json=BODY) as answer:
                assert answer.status == 200

    run(test())


def test_an_engine_that_breaks_off_cuts_the_answer_and_is_counted():
    async def test():
        async with running(("a",), default="a") as (session, engines, router, records):
            engines["a"].cut = True
            engines["a"].free()
            with pytest.raises(aiohttp.ClientError):
                async with session.post("/v1/completions", json=BODY) as answer:
                    assert answer.status == 200
                    await answer.read()
            await until(lambda: records)
            assert router.backends["a"].outcomes == {"broken_stream": 1}

    run(test())


def test_an_error_of_the_engine_comes_through_as_it_is():
    async def test():
        async with running(("a",), default="a") as (session, engines, router, _):
            engines["a"].status = 400
            engines["a"].free()
            async with session.post("/v1/completions", json=BODY) as answer:
                assert answer.status == 400
                assert await answer.read() == b"data: a 1\n\ndata: [DONE]\n\n"
            assert router.backends["a"].outcomes == {"client_error": 1}

    run(test())


def test_a_dead_engine_leaves_the_other_serving_and_comes_back():
    async def test():
        async with running(**TASKS) as (session, engines, router, _):
            for engine in engines.values():
                engine.free()
            port = engines["a"].port
            await engines["a"].stop()
            async with session.post("/v1/completions", json=BODY, headers={"X-Task": "x"}) as answer:
                assert answer.status == 503
                assert "a cannot be reached" in (await answer.json())["error"]["message"]
            async with session.post("/v1/completions", json=BODY, headers={"X-Task": "y"}) as answer:
                assert answer.status == 200
            async with session.get("/health") as answer:
                assert await answer.json() == {"engines": {"a": False, "b": True}}
            await engines["a"].start(port)
            await until(lambda: router.backends["a"].alive)
            async with session.post("/v1/completions", json=BODY, headers={"X-Task": "x"}) as answer:
                assert answer.status == 200
            async with session.get("/router/stats") as answer:
                outcomes = (await answer.json())["engines"]["a"]["outcomes"]
            assert outcomes["unreachable"] == 1 and outcomes["ok"] == 1

    run(test())


def test_a_replica_takes_over_for_one_that_is_down():
    async def test():
        rules = [{"kind": "least_loaded", "among": ["a", "b"]}]
        async with running(rules=rules) as (session, engines, router, _):
            engines["b"].free()
            await engines["a"].stop()
            for _ in range(2):
                async with session.post("/v1/completions", json=BODY) as answer:
                    assert answer.status == 200 and answer.headers["X-Backend"] == "b"
            assert router.backends["a"].outcomes["unreachable"] == 1, "the second request knows that it is down"

    run(test())


def test_a_client_that_goes_away_frees_its_engine():
    async def test():
        async with running(("a",), default="a") as (session, engines, router, records):
            sent = asyncio.create_task(session.post("/v1/completions", json=BODY))
            await until(lambda: engines["a"].seen)
            sent.cancel()
            await until(lambda: engines["a"].cancelled == 1)
            await until(lambda: records)
            assert router.backends["a"].outcomes == {"client_gone": 1}
            assert router.backends["a"].in_flight == 0

    run(test())


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b"{}", 404)])
def test_what_cannot_be_routed_is_answered_as_openai_does(body, status):
    async def test():
        async with running(("a",)) as (session, *_), session.post("/v1/completions", data=body) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["message"]

    run(test())


def test_models_and_metrics_tell_what_is_behind():
    async def test():
        async with running(**TASKS) as (session, engines, *_):
            engines["a"].free()
            async with session.post("/v1/completions", json=BODY, headers={"X-Task": "x"}) as answer:
                await answer.read()
            async with session.get("/v1/models") as answer:
                assert [one["id"] for one in (await answer.json())["data"]] == ["model-a", "model-b"]
            async with session.get("/metrics") as answer:
                assert 'router_requests_total{engine="a",outcome="ok"} 1' in await answer.text()

    run(test())


def test_a_model_is_described_as_openais_clients_expect():
    async def test():
        async with running(**TASKS) as (session, *_):
            async with session.get("/v1/models") as answer:
                cards = (await answer.json())["data"]
            for card in cards:
                assert set(card) == {"id", "object", "created", "owned_by"}
                assert isinstance(card["created"], int) and abs(card["created"] - time.time()) < 60
                for prefix in ("", "/task/x", "/words/some", "/task/x/words/some"):
                    async with session.get(f"{prefix}/v1/models/{card['id']}") as answer:
                        assert (answer.status, await answer.json()) == (200, card)
            async with session.get("/v1/models/nobody/at-all") as answer:
                assert answer.status == 404 and "nobody/at-all" in (await answer.json())["error"]["message"]

    run(test())


def test_a_model_whose_name_has_a_slash_is_found():
    async def test():
        config = RouterConfig.of({"backends": [{"name": "a", "url": "http://127.0.0.1:1", "model": "Org/Model:awq"}]})
        runner = web.AppRunner(Router(config).app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with aiohttp.ClientSession(base) as session:
                for name in ("Org/Model:awq", "Org%2FModel%3Aawq"):
                    async with session.get(URL(f"{base}/v1/models/{name}", encoded=True)) as answer:
                        assert (await answer.json())["id"] == "Org/Model:awq"
        finally:
            await runner.cleanup()

    run(test())


def test_brackets_nested_too_deep_are_no_json():
    async def test():
        deep = b"[" * 200_000
        async with running(("a",)) as (session, *_), session.post("/v1/completions", data=deep) as answer:
            assert answer.status == 400 and "not JSON" in (await answer.json())["error"]["message"]

    run(test())


def test_headers_of_one_hop_stay_there_and_the_engine_is_told_json():
    async def test():
        async with running(("a",), default="a") as (session, engines, *_):
            engines["a"].free()
            sent = {"Content-Type": "application/x-www-form-urlencoded", "Expect": "100-continue",
                    "Connection": "keep-alive, X-Hop", "X-Hop": "1", "X-End": "2",
                    "Authorization": "Bearer k"}  # fmt: skip
            async with session.post("/v1/completions", data=json.dumps(BODY), headers=sent) as answer:
                assert answer.status == 200
            seen = engines["a"].seen[0]["headers"]
            assert seen["Content-Type"] == "application/json" and seen["Accept-Encoding"] == "identity"
            assert seen["X-End"] == "2" and seen["Authorization"] == "Bearer k"
            assert not {"X-Hop", "Expect"} & set(seen)

    run(test())


def test_an_engine_that_hangs_is_given_up_and_frees_its_slot():
    async def test():
        async with running(("a",), default="a", silence_timeout_s=0.1) as (session, engines, router, _):
            async with session.post("/v1/completions", json=BODY) as answer:
                assert answer.status == 503
            engines["a"].go.set()  # now it begins an answer and falls silent in it
            with pytest.raises(aiohttp.ClientError):
                async with session.post("/v1/completions", json=BODY) as answer:
                    await answer.read()
            await until(lambda: router.backends["a"].in_flight == 0)
            assert router.backends["a"].outcomes == {"unreachable": 1, "broken_stream": 1}

    run(test())


def test_an_engine_given_with_v1_is_found_again():
    async def test():
        async with running(("a",), default="a") as (session, engines, *_):
            config = {"backends": [{"name": "a", "url": f"http://127.0.0.1:{engines['a'].port}/v1"}],
                      "default": "a", "retry_down_s": 0.05}  # fmt: skip
            router = Router(RouterConfig.of(config))
            runner = web.AppRunner(router.app(), shutdown_timeout=0.1)
            await runner.setup()
            try:
                router.backends["a"].alive = False
                await until(lambda: router.backends["a"].alive)
            finally:
                await runner.cleanup()

    run(test())


def test_metrics_of_one_name_stand_together():
    async def test():
        async with running(**TASKS) as (session, *_), session.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        names = [line.split()[2] if line.startswith("# TYPE") else line.partition("{")[0].split()[0] for line in lines]
        assert [name for place, name in enumerate(names) if place and name != names[place - 1]] == list(
            dict.fromkeys(names)
        )[1:]
        assert 'router_engine_up{engine="b"} 1' in lines

    run(test())
