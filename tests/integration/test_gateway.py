"""The client's gateways, both faces, against a real server; values are those of the oracle."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

import cellstate
from tests.integration.serving import Served, is_free, link_models, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
STEPS = 10


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(link_models(models, tmp_path_factory.mktemp("gateway"), "lstm-series", "lstm-text", "pairs")) as served:
        yield served


@pytest.fixture
def address(server: Served) -> str:
    return f"127.0.0.1:{server.app.port}"


def inputs(number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(number).normal(size=(STEPS, 2)).astype(np.float32)


def check(server: Served, number: int, outputs: list[Any]) -> None:
    wanted = server.oracle("pairs").session(0).consume(inputs(number))
    np.testing.assert_allclose(np.concatenate([output.values for output in outputs]), wanted, atol=1e-4)


async def test_steps_of_many_sessions_asyncio(server: Served, address: str) -> None:
    async with cellstate.AsyncClient(address) as client, client.gateway() as gateway:
        channels = await asyncio.gather(*(gateway.open("pairs") for _ in range(32)))
        outputs: dict[Any, list[Any]] = {channel: [] for channel in channels}
        for step in range(STEPS):
            for channel, output in (await gateway.step({channel: inputs(number)[step] for number, channel in enumerate(channels)})).items():
                outputs[channel].append(output)
        for number, channel in enumerate(channels):
            check(server, number, outputs[channel])
        assert await channels[0].close() == STEPS
        await gateway.finish()
        assert await channels[1].receive() is None
        assert channels[1].position == STEPS


async def test_an_error_is_its_channels_own_asyncio(server: Served, address: str) -> None:
    async with cellstate.AsyncClient(address) as client, client.session("pairs") as session, client.gateway() as gateway:
        good, bad = await asyncio.gather(gateway.open("pairs"), gateway.open(session))
        results = await gateway.step({good: [1.0, 2.0], bad: [1.0, 2.0, 3.0]})
        assert isinstance(results[good], cellstate.Output)
        assert isinstance(results[bad], cellstate.InvalidInput)
        results = await gateway.step({good: [1.0, 2.0], bad: [1.0, 2.0]})
        assert isinstance(results[bad], cellstate.InvalidInput)
        with pytest.raises(cellstate.NotFound):
            await gateway.open("none")
        again = await gateway.open(session)
        with pytest.raises(cellstate.SessionBusy):
            await gateway.open(session)
        assert isinstance((await gateway.step({again: [1.0, 2.0]}))[again], cellstate.Output)
        assert await again.close() == 1
        assert session.position == 1
        assert (await session.step([3.0, 4.0])).position == 2


async def test_generation_and_stop_on_channels_asyncio(server: Served, address: str) -> None:
    async with cellstate.AsyncClient(address) as client, client.gateway() as gateway:
        texts, endless = await gateway.open("lstm-text", seed=7), await gateway.open("lstm-text")
        await endless.generate(max_steps=1_000_000)
        await texts.send("Hello", emit="none")
        await texts.generate(max_steps=30, seed=7)
        assert (await texts.receive()).position == 5  # type: ignore[union-attr]
        text = "".join([output.text async for output in texts.until_completion()])
        assert text == await client.one_to_many("lstm-text", "Hello", max_steps=30, seed=7).text()
        assert texts.completion is not None
        position = await endless.stop()
        async for _ in endless.until_completion():
            pass
        assert endless.completion is not None
        assert endless.completion.position == position


async def begun_and_cancelled(work: Any) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_stops_waiting_leaves_nothing_to_the_next(server: Served, address: str) -> None:
    async with cellstate.AsyncClient(address) as client, client.session("pairs") as session, client.gateway() as gateway:
        channels = await asyncio.gather(*(gateway.open("pairs") for _ in range(3)))
        await begun_and_cancelled(gateway.step({channel: inputs(number)[0] for number, channel in enumerate(channels)}))
        for step in range(1, STEPS):
            taken = await gateway.step({channel: inputs(number)[step] for number, channel in enumerate(channels)})
            assert [output.position for output in taken.values()] == [step + 1] * len(channels)

        endless = await gateway.open("lstm-text")
        await endless.generate(max_steps=1_000_000)
        await begun_and_cancelled(endless.stop())
        await endless.generate(max_steps=1_000_000)
        position = await endless.stop()
        for _ in range(2):
            async for _ in endless.until_completion():
                pass
        assert endless.completion is not None
        assert endless.completion.position == position

        await begun_and_cancelled(gateway.open(session))
        async with asyncio.timeout(20):
            while True:
                try:
                    channel = await gateway.open(session)
                    break
                except cellstate.SessionBusy:  # the channel before is being closed
                    await asyncio.sleep(0.01)
        assert (await gateway.step({channel: [1.0, 2.0]}))[channel].position == 1


async def test_many_tasks_share_a_gateway(server: Served, address: str) -> None:
    async def run(gateway: cellstate.AsyncGateway, number: int) -> None:
        channel = await gateway.open("pairs")
        outputs = []
        for step in inputs(number):
            await channel.send(step[None])
            outputs.append(await channel.receive())
        await channel.close()
        check(server, number, outputs)

    async with cellstate.AsyncClient(address) as client, client.gateway() as gateway:
        await asyncio.gather(*(run(gateway, number) for number in range(16)))


async def test_what_nobody_holds_ends_asyncio(server: Served, address: str) -> None:
    async with cellstate.AsyncClient(address) as client, client.session("pairs") as session:
        gateway = client.gateway()
        channel = await gateway.open(session)
        await gateway.step({channel: [1.0, 2.0]})
        del gateway, channel
        gc.collect()
        await is_free(server, session.name)
        assert (await session.step([1.0, 2.0])).position == 2


async def test_leaving_a_gateway_cancels_and_waiters_end(server: Served, address: str) -> None:
    async with cellstate.AsyncClient(address) as client:
        async with client.gateway() as gateway:
            channel = await gateway.open("pairs")
            waiting = asyncio.ensure_future(channel.receive())
            await asyncio.sleep(0)
        assert await waiting is None
        with pytest.raises(RuntimeError):
            await channel.send([[1.0, 2.0]])
        with pytest.raises(RuntimeError):
            await gateway.open("pairs")
        async with client.gateway(timeout_s=0.2) as late:
            channel = await late.open("pairs")
            with pytest.raises(cellstate.DeadlineExceeded):
                await channel.receive()


def talk(server: Served, address: str) -> dict[str, Any]:
    """Use a gateway by the sync face."""
    with cellstate.Client(address) as client, client.session("pairs") as session, client.gateway() as gateway:
        channels = [gateway.open("pairs") for _ in range(8)]
        outputs: dict[Any, list[Any]] = {channel: [] for channel in channels}
        for step in range(STEPS):
            for channel, output in gateway.step({channel: inputs(number)[step] for number, channel in enumerate(channels)}).items():
                outputs[channel].append(output)
        for number, channel in enumerate(channels):
            check(server, number, outputs[channel])
        bad = gateway.open(session)
        results = gateway.step({bad: [1.0], channels[0]: [1.0, 2.0]})
        with pytest.raises(cellstate.NotFound):
            gateway.open("none")
        text = gateway.open("lstm-text")
        text.send("Hello", emit="none")
        text.generate(max_steps=1_000_000)
        stopped = text.stop()
        assert text.receive().position == 5  # type: ignore[union-attr]
        for _ in text.until_completion():
            pass
        assert text.completion is not None
        assert text.completion.position == stopped
        threads = [threading.Thread(target=lambda channel=channel: channel.send([[1.0, 2.0]]) or channel.receive()) for channel in channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        closed = channels[1].close()
        gateway.finish()
        return {"bad": results[bad], "good": results[channels[0]], "closed": closed, "ended": channels[2].receive()}


async def test_the_sync_face(server: Served, address: str) -> None:
    got = await asyncio.to_thread(talk, server, address)
    assert isinstance(got["bad"], cellstate.InvalidInput)
    assert isinstance(got["good"], cellstate.Output)
    assert got["closed"] == STEPS + 1
    assert got["ended"] is None
