"""The library's loops go on while the server drains and restarts, or dies and comes back older: each output once, in order, the same bits."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cellstate
from cellstate_service.app import App, start
from cellstate_service.settings import Settings, StoreSettings
from tests.integration.surviving.wreck import wreck_app
from tests.redis_server import free_port

STEPS = 600


@asynccontextmanager
async def stopped(app: App) -> AsyncIterator[App]:
    try:
        yield app
    finally:
        await app.stop()


async def serve(models: Path, port: int, path: Path, **store: Any) -> App:
    limits = {"max_wait_s": 60.0}
    settings = Settings(
        port=port, metrics_port=None, models=models, grace_s=5.0, engine={"warm_rows": 0}, limits=limits, store=StoreSettings(path=path, **store)
    )
    return await start(settings)


class Restarts:
    """A port on which servers come and go."""

    def __init__(self, models: Path, folder: Path) -> None:
        self._models = models
        self._folder = folder
        self._port = free_port()
        self._life = 0
        self.app: App

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def begin(self, **store: Any) -> None:
        self.app = await serve(self._models, self._port, self._folder / "0.db", **store)

    async def drain(self) -> float:
        """Stop in order, start anew, and return the seconds that the stop took."""
        began = time.perf_counter()
        await self.app.stop()
        took = time.perf_counter() - began
        self.app = await serve(self._models, self._port, self.app.settings.store.path)
        return took

    async def crash(self, **store: Any) -> None:
        """Go on from the store as it is now, as after kill -9: whatever the server does later is gone."""
        self._life += 1
        path = self._folder / f"{self._life}.db"
        await wreck_app(self.app, path)
        await self.app.server.stop(0)
        await self.app.stop()
        self.app = await serve(self._models, self._port, path, **store)


@pytest.fixture
async def server(models: Path, tmp_path: Path) -> AsyncIterator[Restarts]:
    made = Restarts(models, tmp_path)
    await made.begin(checkpoint_s=0.2)
    yield made
    await made.app.stop()
    shutil.rmtree(tmp_path, ignore_errors=True)


async def generated(session: Any) -> list[int]:
    return (await session.one_to_many("Hello", max_steps=STEPS, form="tokens").collect()).tokens.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["drain", "crash"])
async def test_a_generation_goes_on(server: Restarts, way: str) -> None:
    async with cellstate.AsyncClient(server.address) as client, client.session("lstm-text", seed=5) as session, client.session("lstm-text", seed=5) as twin:
        tokens: list[int] = []
        due = [50, 250]
        async for output in session.one_to_many("Hello", max_steps=STEPS, form="tokens"):
            tokens += output.tokens.tolist()
            if due and len(tokens) >= due[0]:
                due.pop(0)
                await getattr(server, way)()
        assert tokens == await generated(twin)
        assert (await session.info()).state_digest == (await twin.info()).state_digest


@pytest.mark.parametrize("way", ["drain", "crash"])
async def test_a_closed_loop_goes_on(server: Restarts, way: str) -> None:
    async with cellstate.AsyncClient(server.address) as client, client.session("pairs") as session, client.session("pairs") as twin:
        outputs, value = [], np.array([0.5, -0.5], dtype=np.float32)
        for number in range(60):
            if number in {20, 45}:
                await getattr(server, way)()
            value = (await session.step(value)).values[-1]
            outputs.append(value.tobytes())
        value, expected = np.array([0.5, -0.5], dtype=np.float32), []
        for _ in range(60):
            value = (await twin.step(value)).values[-1]
            expected.append(value.tobytes())
        assert outputs == expected


async def test_a_stop_holds_after_a_crash(server: Restarts) -> None:
    async with cellstate.AsyncClient(server.address) as client, client.session("lstm-text", seed=5) as session:
        before: list[int] = []
        async with session.stream(form="tokens") as stream:
            await stream.send("Hello", emit="none")
            await stream.generate(max_steps=100_000)
            async for event in stream:
                before += event.tokens.tolist() if isinstance(event, cellstate.Output) and event.data is not None else []
                if len(before) > 60:
                    break
            position = await stream.stop()
        await server.crash()
        after = (await session.generate(max_steps=40, form="tokens").collect()).tokens.tolist()
        assert session.position == position + 40
    async with cellstate.AsyncClient(server.address) as client, client.session("lstm-text", seed=5) as twin:
        whole = (await twin.one_to_many("Hello", max_steps=position - 5 + 40, form="tokens").collect()).tokens.tolist()
        assert whole[-40:] == after


async def test_a_drain_takes_no_longer_than_it_must(server: Restarts) -> None:
    async with cellstate.AsyncClient(server.address) as client, client.session("lstm-text", seed=5) as session, session.stream(form="tokens") as stream:
        await stream.generate(max_steps=1_000_000)
        reading = asyncio.ensure_future(_read(stream, 3000))
        await asyncio.sleep(0.2)
        assert await server.drain() < 4.0, "the stream was told to go on elsewhere"
        assert await reading >= 3000


@pytest.mark.parametrize("way", ["drain", "crash"])
async def test_a_long_stream_of_text_goes_on(server: Restarts, way: str) -> None:
    """Only the server knows how many steps a chunk has; the client has acknowledged more than it knows the end of."""
    chunk, count = "Hello.", 200
    async with cellstate.AsyncClient(server.address) as client, client.session("lstm-text", seed=5) as session, client.session("lstm-text", seed=5) as twin:
        tokens: list[int] = []
        async with session.stream(form="tokens") as stream:
            for number in range(count):
                await stream.send(chunk)
                while len(tokens) < len(chunk) * (number + 1):
                    output = await stream.receive()
                    assert isinstance(output, cellstate.Output)
                    tokens += output.tokens.tolist()
                if number in (50, 100, 120, 180):
                    await getattr(server, way)()
        whole = await twin.many_to_many([chunk * count], form="tokens").collect()
        assert tokens == whole.tokens.tolist()


async def test_gateways_go_on_through_a_drain(server: Restarts) -> None:
    async with cellstate.AsyncClient(server.address) as client, client.session("lstm-text", seed=5) as session, client.gateway() as gateway:
        channel = await gateway.open(session)
        async with client.gateway() as idle:
            for position in (1, 2):
                output = (await gateway.step({channel: "a"}))[channel]
                assert isinstance(output, cellstate.Output)
                assert output.position == position
                assert await server.drain() < 4.0, "gateways were told to go on elsewhere"
            await channel.close()
            channel = await idle.open(session)
            assert (await idle.step({channel: "a"}))[channel].position == 3


async def _read(stream: Any, steps: int) -> int:
    count = 0
    async for event in stream:
        count += len(event.tokens) if isinstance(event, cellstate.Output) else 0
        if count >= steps:
            break
    return count


async def test_a_handle_without_a_log_is_told_of_a_rollback(models: Path, tmp_path: Path) -> None:
    server = Restarts(models, tmp_path)
    await server.begin(checkpoint_s=3600.0)
    try:
        async with cellstate.AsyncClient(server.address) as client:
            session = await client.session("pairs", name="kept", keep=True).create()
            other = await client.open_session("kept")
            for _ in range(5):
                await session.step([0.1, 0.2])
            await other.info()
            await server.crash()
            with pytest.raises(cellstate.SessionRolledBack) as caught:
                await other.step([0.1, 0.2])
            assert caught.value.position == 0
            await other.step([0.1, 0.2])
            assert other.position == 1
    finally:
        await server.app.stop()
