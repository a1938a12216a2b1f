"""Calls that read a caller's iterable, and gateways, go on through cut connections: the iterable is read once, each output comes once, in order."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

import cellstate
from tests.integration.serving import Served, eventually, link_models, serving
from tests.models_on_disk import write_recurrent
from tests.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
SEED = 11
CHUNKS = [[float((7 * number + step) % 5) for step in range(number % 4 + 1)] for number in range(40)]
STEPS = sum(map(len, CHUNKS))
MODEL = "lstm-series"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("uploads"), MODEL, "lstm-text")
    write_recurrent(folder / "generator", name="generator", modes=["one_to_many"])
    async with serving(folder) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(server: Served) -> AsyncIterator[Proxy]:
    async with Proxy(server.app.port) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def client(proxy: Proxy) -> AsyncIterator[cellstate.AsyncClient]:
    async with cellstate.AsyncClient(proxy.address) as made:
        yield made


@pytest.fixture
def direct(server: Served) -> str:
    """Past the proxy."""
    return f"127.0.0.1:{server.app.port}"


class Read:
    """A caller's iterable, and how often each chunk of it was read."""

    def __init__(self, at: dict[int, Callable[[], Any]]) -> None:
        self.read: list[int] = []
        self.at = at

    async def each(self) -> AsyncIterator[list[float]]:
        for index, chunk in enumerate(CHUNKS):
            self.read.append(index)
            if index in self.at:
                await self.at.pop(index)()
            yield chunk

    def __iter__(self) -> Iterator[list[float]]:
        for index, chunk in enumerate(CHUNKS):
            self.read.append(index)
            if index in self.at:
                self.at.pop(index)()
            yield chunk


async def uncut(direct: str) -> tuple[list[list[float]], cellstate.Result]:
    async with cellstate.AsyncClient(direct) as client, client.session(MODEL) as session, client.session(MODEL) as other:
        outputs = await session.many_to_many(iter(CHUNKS)).collect()
        return outputs.values.tolist(), await other.many_to_one(iter(CHUNKS))


async def comes_to(server: Served, name: str, position: int) -> None:
    async def there() -> bool:
        return (await server.get(name)).position >= position

    await eventually(there)


async def test_many_to_one_reads_its_iterable_once_through_cuts(client: cellstate.AsyncClient, proxy: Proxy, server: Served, direct: str) -> None:
    async with client.session(MODEL) as session:
        await session.step(1.0)
        await session.reset()

        async def applied_then_cut() -> None:
            await comes_to(server, session.name, sum(map(len, CHUNKS[:20])))
            proxy.cut()

        async def cut() -> None:
            proxy.cut()

        read = Read({5: cut, 20: applied_then_cut, 21: cut, 39: cut})
        result = await session.many_to_one(read.each())
        _, wanted = await uncut(direct)
        assert read.read == list(range(len(CHUNKS)))
        assert result.values.tolist() == wanted.values.tolist()
        assert (result.completion.consumed_steps, result.completion.reason) == (STEPS, wanted.completion.reason)
        assert session.position == (await session.info()).position == STEPS
        assert proxy.cuts >= 3


async def test_many_to_one_whose_answer_was_lost_is_answered_again(client: cellstate.AsyncClient, proxy: Proxy, server: Served, direct: str) -> None:
    async with client.session(MODEL) as session:
        await session.step(1.0)
        await session.reset()
        proxy.hold_answers()
        waiting = asyncio.ensure_future(session.many_to_one(iter(CHUNKS)))
        await comes_to(server, session.name, STEPS)
        proxy.cut()
        proxy.pass_answers()
        assert (await waiting).values.tolist() == (await uncut(direct))[1].values.tolist()
        assert (await session.info()).position == STEPS


async def test_many_to_one_goes_on_beyond_what_the_server_remembers(client: cellstate.AsyncClient, proxy: Proxy, server: Served) -> None:
    """More chunks than the server's journal has requests."""
    chunks = [float(number % 7) for number in range(3000)]
    async with client.session(MODEL) as session, client.session(MODEL) as other:

        async def each() -> AsyncIterator[float]:
            for number, chunk in enumerate(chunks):
                if number == 2500:
                    await comes_to(server, session.name, 2400)
                    proxy.cut()
                yield chunk

        result = await session.many_to_one(each())
        assert result.completion.consumed_steps == len(chunks)
        assert result.values.tolist() == (await other.many_to_one(chunks)).values.tolist()


async def test_many_to_many_reads_its_iterable_once_through_cuts(client: cellstate.AsyncClient, proxy: Proxy, server: Served, direct: str) -> None:
    async with client.session(MODEL) as session:

        async def cut() -> None:
            proxy.cut()

        read = Read({3: cut, 17: cut, 18: cut})
        got: list[list[float]] = []
        async for output in session.many_to_many(read.each()):
            assert output.first_position == len(got)
            got += output.values.tolist()
            if len(got) == STEPS - 2:
                proxy.cut()
        assert (read.read, got) == (list(range(len(CHUNKS))), (await uncut(direct))[0])
        assert session.position == (await session.info()).position == STEPS


async def test_what_the_callers_iterable_raises_comes_out_after_a_cut(client: cellstate.AsyncClient, proxy: Proxy) -> None:
    async def broken() -> AsyncIterator[float]:
        yield 1.0
        proxy.cut()
        yield 2.0
        raise ZeroDivisionError

    async with client.session(MODEL) as session:
        with pytest.raises(ZeroDivisionError):
            await session.many_to_one(broken())
        with pytest.raises(ZeroDivisionError):
            await session.many_to_many(broken()).collect()
        await session.step(1.0)


async def test_an_iterable_whose_own_wait_is_cancelled_ends_its_call(client: cellstate.AsyncClient) -> None:
    async def waiting(waited: asyncio.Future[None]) -> AsyncIterator[float]:
        yield 1.0
        await waited

    async with client.session(MODEL) as session, asyncio.timeout(20):
        for call in (session.many_to_one, lambda chunks: session.many_to_many(chunks).collect()):
            waited = asyncio.get_running_loop().create_future()
            calling = asyncio.ensure_future(call(waiting(waited)))
            await asyncio.sleep(0.1)
            waited.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        await session.step(1.0)


async def test_many_to_one_on_a_model_is_not_made_again(client: cellstate.AsyncClient, proxy: Proxy) -> None:
    async def cut() -> AsyncIterator[float]:
        yield 1.0
        await asyncio.sleep(0.05)
        proxy.cut()
        await asyncio.Event().wait()

    with pytest.raises(cellstate.Unavailable):
        await client.many_to_one(MODEL, cut())


def _of_a_generator(address: str) -> tuple[int, int]:
    with cellstate.Client(address) as client, client.session("generator", seed=SEED) as session:
        assert session.one_to_many("ab", max_steps=5).collect().steps == 5
        return session.generate(max_steps=3).collect().position, session.position


async def test_a_model_that_does_not_serve_streams_generates_on_a_session_all_the_same(client: cellstate.AsyncClient, direct: str) -> None:
    async with client.session("generator", seed=SEED) as session:
        outputs = session.one_to_many("ab", max_steps=5)
        assert (await outputs.collect()).steps == 5
        assert outputs.completion is not None
        assert (outputs.completion.consumed_steps, session.position) == (2, 7)
        assert (await session.generate(max_steps=3).collect()).first_position == 7
    assert await asyncio.to_thread(_of_a_generator, direct) == (10, 10)


def _sync_uploads(address: str, cut: Callable[[], None]) -> tuple[list[int], list[list[float]], cellstate.Result]:
    with cellstate.Client(address) as client, client.session(MODEL) as session, client.session(MODEL) as other:
        read = Read({5: cut, 20: cut, 38: cut})
        got = [row for output in session.many_to_many(read) for row in output.values.tolist()]
        again = Read({2: cut, 30: cut})
        result = other.many_to_one(again)
        assert read.read == again.read
        return read.read, got, result


async def test_uploads_of_the_sync_face_go_on_as_well(proxy: Proxy, direct: str) -> None:
    loop = asyncio.get_running_loop()
    read, got, result = await asyncio.to_thread(_sync_uploads, proxy.address, lambda: asyncio.run_coroutine_threadsafe(_cut(proxy), loop).result())
    outputs, wanted = await uncut(direct)
    assert (read, got) == (list(range(len(CHUNKS))), outputs)
    assert (result.values.tolist(), result.completion.consumed_steps) == (wanted.values.tolist(), STEPS)


async def _cut(proxy: Proxy) -> None:
    proxy.cut()


# -- gateways


async def test_a_gateways_channels_go_on_through_cuts(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    sessions = [await client.session(MODEL, keep=True).create() for _ in range(5)]
    got: dict[str, list[Any]] = {session.name: [] for session in sessions}
    async with client.gateway() as gateway:
        channels = {await gateway.open(session): session for session in sessions}
        for turn in range(60):
            if turn in (7, 30, 31, 59):
                proxy.cut()
            for channel, output in (await gateway.step({channel: [float(turn % 5)] for channel in channels})).items():
                assert isinstance(output, cellstate.Output), output
                got[channels[channel].name] += output.values.tolist()
        await gateway.finish()
    async with cellstate.AsyncClient(direct) as other, other.session(MODEL) as session:
        wanted = (await session.many_to_many([float(turn % 5) for turn in range(60)]).collect()).values.tolist()
    for session in sessions:
        assert got[session.name] == wanted
        assert session.position == (await session.info()).position == 60
        await session.delete()
    assert proxy.cuts >= 4


async def test_a_gateways_channels_generate_on_through_cuts(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    async def generated(gateway: cellstate.AsyncGateway, session: cellstate.AsyncSession, cut: Callable[[int], Any]) -> list[int]:
        channel = await gateway.open(session, form="tokens", emit="none")
        await channel.send("Hello")
        await channel.generate(max_steps=600)
        tokens: list[int] = []
        async for output in channel.until_completion():
            tokens += output.tokens.tolist()
            cut(len(tokens))
        assert await channel.close() == session.position == 605
        return tokens

    limits = [50, 200, 400]

    def cut(count: int) -> None:
        if limits and count > limits[0]:
            limits.pop(0)
            proxy.cut()

    async with client.session("lstm-text", seed=SEED) as one, client.session("lstm-text", seed=SEED) as two, client.gateway() as gateway:
        first, second = await asyncio.gather(generated(gateway, one, cut), generated(gateway, two, cut))
        await gateway.finish()
    async with cellstate.AsyncClient(direct) as other, other.session("lstm-text", seed=SEED) as session:
        wanted = (await session.one_to_many("Hello", max_steps=600, form="tokens").collect()).tokens.tolist()
    assert first == second == wanted
    assert limits == []


async def test_channels_on_models_fail_and_those_on_sessions_go_on(client: cellstate.AsyncClient, proxy: Proxy) -> None:
    async with client.session(MODEL) as session, client.gateway() as gateway:
        lasting, fresh = await gateway.open(session), await gateway.open(MODEL)
        await gateway.step({lasting: [1.0], fresh: [1.0]})
        proxy.cut()
        results = await gateway.step({lasting: [2.0], fresh: [2.0]})
        assert isinstance(results[lasting], cellstate.Output)
        assert isinstance(results[fresh], cellstate.Unavailable)
        again = await gateway.open(MODEL)
        assert isinstance((await gateway.step({again: [1.0]}))[again], cellstate.Output)
        await gateway.finish()


async def test_a_gateway_of_models_alone_ends_with_its_connection(client: cellstate.AsyncClient, proxy: Proxy) -> None:
    async with client.gateway() as gateway:
        channel = await gateway.open(MODEL)
        proxy.cut()
        with pytest.raises(cellstate.Unavailable):
            await channel.receive()
        with pytest.raises(cellstate.Unavailable):
            await gateway.open(MODEL)


def _sync_gateway(address: str, cut: Callable[[], None]) -> list[Any]:
    with cellstate.Client(address) as client, client.session(MODEL) as session, client.gateway() as gateway:
        channel, fresh = gateway.open(session), gateway.open(MODEL)
        got: list[Any] = []
        for turn in range(60):
            if turn in (7, 30, 59):
                cut()
            output = gateway.step({channel: [float(turn % 5)]})[channel]
            assert isinstance(output, cellstate.Output), output
            got += output.values.tolist()
        with pytest.raises(cellstate.Unavailable):
            fresh.receive()
        gateway.finish()
        assert session.position == session.info().position == 60
        return got


async def test_a_gateway_of_the_sync_face_goes_on_as_well(proxy: Proxy, direct: str) -> None:
    loop = asyncio.get_running_loop()
    got = await asyncio.to_thread(_sync_gateway, proxy.address, lambda: asyncio.run_coroutine_threadsafe(_cut(proxy), loop).result())
    async with cellstate.AsyncClient(direct) as other, other.session(MODEL) as session:
        assert got == (await session.many_to_many([float(turn % 5) for turn in range(60)]).collect()).values.tolist()


async def test_no_thread_is_left_behind(direct: str) -> None:
    before = set(threading.enumerate())

    def uploads() -> None:
        with cellstate.Client(direct) as client, client.session(MODEL) as session:
            session.many_to_one(iter(CHUNKS))
            list(session.many_to_many(iter(CHUNKS)))

    await asyncio.to_thread(uploads)

    async def none_left() -> bool:
        return not [thread for thread in set(threading.enumerate()) - before if thread.name == "cellstate-pump"]

    await eventually(none_left)
