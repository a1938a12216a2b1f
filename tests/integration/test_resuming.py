"""Streams and generators on sessions go on by themselves through cut connections: each output once, in order, the values of a run that nothing interrupted.

Calls that read a caller's iterable, and gateways, are in `test_resuming_uploads.py`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

import cellstate
from cellstate._stream_core import ACKNOWLEDGED_BYTES, ACKNOWLEDGED_STEPS
from cellstate_service.engine.journal import KEPT_BYTES, KEPT_REQUESTS, OUTPUTS_BYTES
from tests.integration.serving import Served, eventually, link_models, serving
from tests.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
SEED = 11


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(link_models(models, tmp_path_factory.mktemp("resuming"))) as served:
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


async def position(direct: str, name: str) -> int:
    async with cellstate.AsyncClient(direct) as other:
        return (await (await other.open_session(name)).info()).position


async def until(direct: str, name: str, least: int) -> int:
    """Wait until a session has come so far, and return how far."""
    found = 0

    async def there() -> bool:
        nonlocal found
        found = await position(direct, name)
        return found >= least

    await eventually(there)
    return found


async def uncut(direct: str, steps: int, prompt: str = "Hello") -> list[int]:
    async with cellstate.AsyncClient(direct) as client, client.session("lstm-text", seed=SEED) as session:
        return (await session.one_to_many(prompt, max_steps=steps, form="tokens").collect()).tokens.tolist()


async def test_a_generator_goes_on_through_cuts(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    async with client.session("lstm-text", seed=SEED) as session:
        tokens: list[int] = []
        cuts = iter([40, 300, 700, 1100])
        next_cut = next(cuts)
        async for output in session.one_to_many("Hello", max_steps=1500, form="tokens"):
            tokens += output.tokens.tolist()
            if len(tokens) >= next_cut:
                proxy.cut()
                next_cut = next(cuts, 10**9)
        assert proxy.cuts == 4
        assert session.position == 1505
        assert (await session.info()).position == 1505
        assert tokens == await uncut(direct, 1500)
        again = await session.generate(max_steps=10, form="tokens").collect()
    assert again.first_position == 1505


async def test_outputs_that_were_lost_on_the_way_come_again(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    """The server generates on while nothing reaches its caller; then the connection is cut."""
    async with client.session("lstm-text", seed=SEED) as session:
        tokens: list[int] = []
        generating = session.one_to_many("Hello", max_steps=600, form="tokens")
        tokens += (await anext(generating)).tokens.tolist()
        proxy.hold_answers()
        assert await until(direct, session.name, 500) > len(tokens) + 5
        proxy.cut()
        proxy.pass_answers()
        async for output in generating:
            assert output.first_position == 5 + len(tokens)
            tokens += output.tokens.tolist()
        assert tokens == await uncut(direct, 600)


async def test_a_stream_goes_on_where_several_chunks_were_in_flight(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    values = [float(number % 7) for number in range(60)]
    async with client.session("lstm-series") as session, session.stream() as stream:
        outputs = []
        await stream.send(values[:10])
        for _ in range(2):
            if sum(len(output.values) for output in outputs) < 10:
                outputs.append(await stream.receive())
        proxy.hold_answers()
        for first in range(10, 40, 5):
            await stream.send(values[first : first + 5])
        assert await until(direct, session.name, 40) == 40
        proxy.cut()
        proxy.pass_answers()
        await stream.send(values[40:])
        await stream.half_close()
        while (event := await stream.receive()) is not None:
            outputs.append(event)
        assert session.position == 60
    got = [value for output in outputs if isinstance(output, cellstate.Output) for value in output.values.tolist()]
    assert [output.first_position for output in outputs] == sorted({output.first_position for output in outputs})
    async with cellstate.AsyncClient(direct) as other, other.session("lstm-series") as fresh:
        assert got == (await fresh.many_to_many(values).collect()).values.tolist()


async def test_directives_of_a_stream_go_on(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    async def talk(stream: cellstate.AsyncStream, cut: Any) -> list[Any]:
        told: list[Any] = []
        for turn in range(4):
            await stream.send("And now ")
            await stream.generate(max_steps=50, stop=["q"])
            async for output in stream.until_completion():
                told += output.tokens.tolist()
                cut(turn, len(told))
            completion = stream.completion
            assert completion is not None
            told.append((completion.reason, completion.position, completion.generated_steps))
        return told

    cut_at: set[int] = set()

    def cut(turn: int, count: int) -> None:
        if turn not in cut_at:
            cut_at.add(turn)
            proxy.cut()

    async with client.session("lstm-text", seed=SEED) as session, session.stream(form="tokens", emit="none") as stream:
        interrupted = await talk(stream, cut)
    async with cellstate.AsyncClient(direct) as other, other.session("lstm-text", seed=SEED) as session, session.stream(form="tokens", emit="none") as stream:
        assert interrupted == await talk(stream, lambda turn, count: None)
    assert len(cut_at) == 4


async def test_a_stop_is_answered_after_a_cut(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    async with client.session("lstm-text", seed=SEED) as session, session.stream(form="tokens") as stream:
        await stream.generate(max_steps=1_000_000)
        tokens = (await stream.receive()).tokens.tolist()
        proxy.hold_answers()
        stopping = asyncio.ensure_future(stream.stop())
        await asyncio.sleep(0.3)
        proxy.cut()
        proxy.pass_answers()
        stopped = await stopping
        await stream.half_close()
        async for output in stream:
            tokens += output.tokens.tolist()
        assert stopped == session.position == await position(direct, session.name)
        assert len(tokens) == stopped - 1, "the start value took the first step"


async def test_a_large_stream_acknowledges_by_itself(client: cellstate.AsyncClient, proxy: Proxy) -> None:
    """Logits of many steps: more than the server keeps without an acknowledgement."""
    steps = 10_000
    async with client.session("lstm-text", seed=SEED) as session, session.stream(form="logits") as stream:
        received = 0
        cuts = [2000, 5000]
        for first in range(0, steps, 400):
            await stream.send([number % 5 for number in range(first, first + 400)])
        await stream.half_close()
        async for output in stream:
            assert output.first_position == received
            received = output.position
            assert output.logits.shape[1] * 4 * steps > 2 * KEPT_BYTES
            if cuts and received >= cuts[0]:
                cuts.pop(0)
                proxy.cut()
        assert received == steps
    assert cuts == []


async def test_a_stream_of_single_tokens_acknowledges_in_time(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    """Many more steps than the server keeps: it waits for acknowledgements, and they come."""
    assert ACKNOWLEDGED_STEPS * OUTPUTS_BYTES + 2 * ACKNOWLEDGED_BYTES <= KEPT_BYTES
    steps = 3 * KEPT_BYTES // OUTPUTS_BYTES
    async with client.session("lstm-text", seed=SEED) as session, session.stream(form="tokens", emit="none") as stream:
        await stream.send("Hello")
        await stream.generate(max_steps=steps)
        tokens: list[int] = []
        async for output in stream.until_completion():
            tokens += output.tokens.tolist()
            if proxy.cuts < len(tokens) // 5000:
                proxy.cut()
        assert proxy.cuts == 2
        assert tokens == await uncut(direct, steps)


async def test_a_long_stream_of_text_goes_on(client: cellstate.AsyncClient, proxy: Proxy, direct: str) -> None:
    """Where chunks of text end only the server knows: it is asked on the way, so that not all of them need be sent again."""
    text = "abc " * 350
    async with client.session("lstm-text", seed=SEED) as session, session.stream(form="tokens") as stream:
        tokens: list[int] = []
        for number, letter in enumerate(text):
            await stream.send(letter)
            output = await stream.receive()
            assert isinstance(output, cellstate.Output)
            assert output.position == number + 1
            tokens += output.tokens.tolist()
            if number == len(text) - 20:
                proxy.cut()
        assert len(stream._core._log) < KEPT_REQUESTS / 4  # type: ignore[arg-type]
    assert proxy.cuts == 1
    async with cellstate.AsyncClient(direct) as other, other.session("lstm-text", seed=SEED) as session:
        assert tokens == [token async for output in session.many_to_many([text], form="tokens") for token in output.tokens.tolist()]


async def test_what_grpc_cancels_by_itself_goes_on(client: cellstate.AsyncClient) -> None:
    async with client.session("lstm-series") as session, session.stream() as stream:
        for position in (1, 2):
            await stream.send([1.0])
            assert (await stream.receive()).position == position  # type: ignore[union-attr]
            stream._duplex._answers.cancel()
    async with client.session("lstm-series") as session, client.gateway() as gateway:
        channel = await gateway.open(session)
        for position in (1, 2):
            assert (await gateway.step({channel: [1.0]}))[channel].position == position
            gateway._carrier._answers.cancel()


async def test_a_server_that_stays_away_is_told_after_the_limit(proxy: Proxy) -> None:
    async with cellstate.AsyncClient(proxy.address, resume_s=0.5) as client:
        session = await client.session("lstm-text", seed=SEED, keep=True).create()
        generating = session.generate(max_steps=100_000, form="tokens")
        await anext(generating)
        proxy.refuse()
        proxy.cut()
        with pytest.raises(cellstate.Unavailable):
            async for _ in generating:
                pass
        proxy.refuse(False)
        assert session.position > 0


async def test_resuming_can_be_turned_off(proxy: Proxy) -> None:
    async with cellstate.AsyncClient(proxy.address, resume_s=0) as client:
        session = await client.session("lstm-text", seed=SEED, keep=True).create()
        generating = session.generate(max_steps=100_000, form="tokens")
        await anext(generating)
        proxy.cut()
        with pytest.raises(cellstate.Unavailable):
            async for _ in generating:
                pass


async def test_without_a_session_a_cut_is_an_error(client: cellstate.AsyncClient, proxy: Proxy) -> None:
    generating = client.one_to_many("lstm-text", "Hello", max_steps=100_000, form="tokens")
    await anext(generating)
    proxy.cut()
    with pytest.raises(cellstate.Unavailable):
        async for _ in generating:
            pass


async def test_a_step_whose_answer_was_lost_is_answered_again(client: cellstate.AsyncClient, proxy: Proxy, direct: str, server: Served) -> None:
    repeats = await server.metric("cellstate_repeats_answered_total", model="lstm-series")
    async with client.session("lstm-series") as session:
        await session.step(1.0)
        proxy.hold_answers()
        step = asyncio.ensure_future(session.step(2.0))
        assert await until(direct, session.name, 2) == 2
        proxy.cut()
        proxy.pass_answers()
        result = await step
        assert (session.position, await position(direct, session.name)) == (2, 2)
        async with cellstate.AsyncClient(direct) as other, other.session("lstm-series") as fresh:
            assert result.output.values.tolist() == (await fresh.many_to_one([1.0, 2.0])).output.values.tolist()
    assert await server.metric("cellstate_repeats_answered_total", model="lstm-series") == repeats + 1


def _sync_generation(address: str, at: Iterator[threading.Event]) -> tuple[list[int], int]:
    with cellstate.Client(address) as client, client.session("lstm-text", seed=SEED) as session:
        tokens: list[int] = []
        for output in session.one_to_many("Hello", max_steps=1500, form="tokens"):
            tokens += output.tokens.tolist()
            if len(tokens) > 300:
                next(at).set()
        return tokens, session.position


async def test_the_sync_face_goes_on_as_well(proxy: Proxy, direct: str) -> None:
    here = threading.Event()
    generating = asyncio.to_thread(_sync_generation, proxy.address, iter(lambda: here, None))
    task = asyncio.ensure_future(generating)
    await asyncio.to_thread(here.wait, 20)
    proxy.cut()
    tokens, reached = await task
    assert (tokens, reached) == (await uncut(direct, 1500), 1505)
    assert proxy.cuts == 1


def _sync_stream(address: str, begun: threading.Event, cut: threading.Event) -> list[int]:
    with cellstate.Client(address) as client, client.session("lstm-text", seed=SEED) as session, session.stream(form="tokens", emit="none") as stream:
        tokens: list[int] = []
        stream.send("Hello")
        stream.generate(max_steps=700)
        for output in stream.until_completion():
            tokens += output.tokens.tolist()
            begun.set()
            cut.wait(10)
        stream.generate(max_steps=100)
        for output in stream.until_completion():
            tokens += output.tokens.tolist()
        return tokens


async def test_a_stream_of_the_sync_face_goes_on_as_well(proxy: Proxy, direct: str) -> None:
    begun, cut = threading.Event(), threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(_sync_stream, proxy.address, begun, cut))
    await asyncio.to_thread(begun.wait, 20)
    proxy.cut()
    cut.set()
    assert await task == await uncut(direct, 800)
    assert proxy.cuts == 1
