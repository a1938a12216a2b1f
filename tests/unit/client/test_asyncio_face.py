"""The asyncio face over a socket."""

import asyncio
import gc

import numpy as np
import pytest

import cellstate


@pytest.fixture
async def client(server):
    async with cellstate.AsyncClient(server.address, timeout_s=20) as made:
        yield made


async def chunks(*values):
    for value in values:
        yield value


async def never_ending():
    yield 1.0
    await asyncio.Event().wait()


async def as_coroutine(awaitable):
    return await awaitable


async def wait_for(event):
    return await asyncio.to_thread(event.wait, 10)


async def test_one_to_one(client):
    result = await client.one_to_one("digits", np.array([1, 2], np.float16))
    assert result.values.tolist() == [[1, 2]]
    assert (result.labels, result.position) == (("a",), 1)


@pytest.mark.parametrize("make", [lambda: [1.0, 2.0, 3.0], lambda: chunks(1.0, [2.0, 3.0]), lambda: iter([1.0, 2.0, 3.0])])
async def test_many_to_one(client, make):
    assert (await client.many_to_one("sunspots", make())).position == 3


async def test_one_to_many_iterates_and_completes(client):
    outputs = client.one_to_many("shakespeare", "R", max_steps=3, seed=1)
    assert [output.text async for output in outputs] == ["a", "b", "c"]
    assert outputs.completion.seed == 1
    assert await client.one_to_many("shakespeare", "R").text() == "abcdefghij"


async def test_many_to_many(client):
    outputs = [output.values.reshape(-1).tolist() async for output in client.many_to_many("sunspots", chunks(1.0, [2.0, 3.0]))]
    assert outputs == [[1], [2, 3]]


async def test_leaving_early_cancels(client, server):
    async with client.one_to_many("shakespeare", "R", max_steps=1) as outputs:
        assert (await anext(outputs)).text == "a"
    assert await wait_for(server.cancelled)
    assert [output async for output in outputs] == []


async def test_dropping_the_iterator_cancels(client, server):
    async for _ in client.one_to_many("shakespeare", "R", max_steps=1):
        break
    gc.collect()
    assert await wait_for(server.cancelled)


async def test_cancelling_while_another_task_waits_ends_iteration(client):
    outputs = client.one_to_many("shakespeare", "R", max_steps=1)
    await anext(outputs)
    waiting = asyncio.create_task(outputs.collect())
    asyncio.get_running_loop().call_soon(outputs.cancel)
    assert (await waiting).text == ""


async def test_a_cancelled_task_cancels_the_call(client, server):
    outputs = client.one_to_many("shakespeare", "R", max_steps=1)
    await anext(outputs)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(outputs)
    assert await wait_for(server.cancelled)


async def test_what_the_callers_iterable_raises_comes_out(client):
    async def broken():
        yield 1.0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await client.many_to_one("sunspots", broken())
    with pytest.raises(ZeroDivisionError):
        await client.many_to_many("sunspots", broken()).collect()
    with pytest.raises(cellstate.InvalidInput):
        await client.many_to_one("sunspots", [np.zeros(1), np.zeros((1, 1, 1))])


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.one_to_one("fails", 1.0),
        lambda client: client.many_to_one("fails", [1.0]),
        lambda client: client.one_to_many("fails", 1.0).collect(),
        lambda client: client.many_to_many("fails", [1.0]).collect(),
        lambda client: anext(client.stream("fails")),
    ],
)
async def test_errors_of_all_four_kinds_are_typed(client, call):
    with pytest.raises(cellstate.SessionBusy) as raised:
        await call(client)
    assert raised.value.position == 41


async def test_deadlines(client):
    with pytest.raises(cellstate.DeadlineExceeded):
        await client.one_to_many("shakespeare", "R", max_steps=1, timeout_s=0.2).collect()


async def test_run_and_models(client):
    failed, result = await client.run([cellstate.Program(model="fails", input=[1.0]), cellstate.Program(model="m", input=[1.0])])
    assert isinstance(failed, cellstate.NotFound)
    assert result.values.tolist() == [1]
    assert [model.name for model in await client.models()] == ["m"]
    await client.wait_until_ready(10)


async def test_reads_are_repeated_while_the_server_is_unavailable(client, server):
    server.unavailable = 2
    assert (await client.model("m")).name == "m"


async def test_wait_until_ready_ends(server):
    async with cellstate.AsyncClient("localhost:1") as nobody:
        with pytest.raises(cellstate.DeadlineExceeded):
            await nobody.wait_until_ready(0.2)


async def test_a_closed_client_says_so(client):
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.models()


@pytest.mark.parametrize(
    "many", [lambda client, given: client.many_to_one("fails", given), lambda client, given: client.many_to_many("fails", given).collect()]
)
async def test_a_refusal_while_chunks_are_being_written_is_the_servers_own(client, many):
    async def flood():
        for _ in range(3000):
            yield np.zeros(64)

    for _ in range(10):
        with pytest.raises(cellstate.SessionBusy):
            await many(client, flood())


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.many_to_one("m", never_ending()),
        lambda client: client.one_to_many("m", "R", max_steps=1).collect(),
        lambda client: client.many_to_many("m", never_ending()).collect(),
        lambda client: client.stream("m").until_completion().__anext__(),
    ],
)
async def test_closing_the_client_ends_a_running_call_with_a_typed_error(client, call):
    running = asyncio.create_task(as_coroutine(call(client)))
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises(cellstate.Cancelled, match="closed"):
        await running


async def test_a_cancelled_upload_leaves_the_next_call_without_a_position(client, server):
    async with client.session("m") as session:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.many_to_one(never_ending()), 0.1)
        await session.step(1.0)
        assert not server.requests[-1].target.session.HasField("position")


async def test_a_session_lives_from_entering_to_leaving(client, server):
    async with client.session("shakespeare", name="mine") as session:
        assert (await session.step(1.0)).position == 1
        assert server.requests[-1].target.session.position == 0
        assert await session.generate(max_steps=2).text() == "ab"
        assert session.position == 3
        assert (await session.info()).position == 3
        assert await session.export() == b"snapshot"
        async with await session.fork(name="twin") as twin:
            assert twin.uid == "fork"
        await session.reset()
        assert (session.uid, session.position) == ("2", 0)
        async with await client.import_session(b"snapshot", name="back") as back:
            assert back.uid == "imported"
    assert type(server.requests[-1]).__name__ == "DeleteSessionRequest"
    assert [info.name async for info in client.sessions()] == ["s0", "s1", "s2"]
    assert (await client.open_session("s")).name == "s"


async def test_a_cut_generation_presents_its_token_next(client, server):
    async with client.session("m") as session:
        async with session.one_to_many("R", max_steps=1) as outputs:
            await anext(outputs)
        await session.step(1.0)
        reference = server.requests[-1].target.session
        assert not reference.HasField("position")
        assert reference.stream_token == "token"


async def test_calls_on_a_session_tell_its_name_for_proxies_on_the_way(client, server):
    await client.models()
    assert "cellstate-session" not in dict(server.metadata)
    async with client.session("m", name="kept") as session:
        assert dict(server.metadata)["cellstate-session"] == "kept"
        for call in (session.info, lambda: session.step([1.0]), lambda: session.many_to_one([1.0])):
            server.metadata = []
            await call()
            assert dict(server.metadata)["cellstate-session"] == session.name


async def test_a_stream_carries_inputs_and_directives(client):
    async with client.session("m") as session, session.stream() as stream:
        await stream.send("ab")
        assert (await stream.receive()).text == "ab"
        await stream.generate(max_steps=2)
        assert [output.text async for output in stream.until_completion()] == ["a", "b"]
        await stream.acknowledge()
        await stream.send("xyz")
        assert await stream.stop() == 8
        assert [(await stream.receive()).text, (await stream.receive()).text] == ["xyz", "s"]
        assert (await stream.receive()).reason == "stop_directive"
        await stream.half_close()
        assert [output async for output in stream] == []
        assert session.position == 8
        with pytest.raises(RuntimeError, match="closed"):
            await stream.send("more")


async def test_a_stream_is_read_by_one_task_while_another_stops_it(client):
    async with client.stream("m") as stream:

        async def read():
            return [output.text async for output in stream]

        reader = asyncio.create_task(read())
        await stream.send("abc")
        assert await stream.stop() == 4
        await stream.half_close()
        assert await reader == ["abc", "s"]


async def test_closing_a_stream_ends_whoever_reads_it(client):
    stream = client.stream("m")
    reader = asyncio.create_task(stream.receive())
    await stream.send("x")
    assert (await reader).text == "x"
    reader = asyncio.create_task(stream.receive())
    asyncio.get_running_loop().call_soon(stream.cancel)
    assert await reader is None


async def test_sending_much_before_reading_does_not_block(client):
    async with client.stream("m") as stream:
        for _ in range(2000):
            await stream.send("x")
        await stream.half_close()
        assert sum([output.steps async for output in stream]) == 2000
