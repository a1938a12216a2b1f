"""What goes wrong in one call stays there: slow readers, vanished clients, deadlines, NaN, failed steps, calls that are superseded or lose their session."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

from cellstate.v1.inference_pb2 import ManyToManyRequest, OneToManyRequest, OneToOneRequest, Program, RunRequest
from cellstate.v1.session_pb2 import DeleteSessionRequest
from cellstate.v1.types_pb2 import EMIT_ALL, EMIT_NONE, OUTPUT_FORM_TOKENS
from cellstate_service.clock import SystemClock
from tests.integration.serving import Served, link_models, serving
from tests.integration.stubs import (
    STOP,
    Refusal,
    array,
    chunk,
    generate,
    generation,
    many_to_one,
    on_model,
    on_session,
    open_many,
    options,
    read_refusal,
    refusal,
    responses,
    text,
    values,
)
from tests.models_on_disk import write_recurrent
from tests.oracle import Sampling

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = 2048
FOREVER = 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("isolation"), "lstm-text", "gru-series", "rnn_tanh-series")
    write_recurrent(folder / "wide", cell="gru", input_kind="numeric", features=WIDE, hidden_size=8, seed=50, start=[0.5] * WIDE)
    path = write_recurrent(folder / "steep", cell="rnn_relu", input_kind="numeric", hidden_size=8, seed=51) / "weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"rnn.weight_ih_l0": 1e4 * weights["rnn.weight_ih_l0"]}, path)
    async with serving(folder) as served:
        yield served


numbers = itertools.count()


@pytest.fixture
def name() -> str:
    return f"session-{next(numbers)}"


async def stands_still(server: Served, name: str) -> int:
    """Wait until a session does not move any more and return its position."""
    async with asyncio.timeout(20):
        before = -1
        while (position := (await server.get(name)).position) != before:
            before = position
            await asyncio.sleep(0.15)
    return position


async def moves(server: Served, name: str, beyond: int = 0) -> None:
    async with asyncio.timeout(20):
        while (await server.get(name)).position <= beyond:
            await asyncio.sleep(0.005)


async def is_free(server: Served, name: str) -> None:
    async with asyncio.timeout(20):
        while (await server.get(name)).busy:
            await asyncio.sleep(0.005)


# -- slow readers


@pytest.mark.parametrize("kind", ["one_to_many", "many_to_many"])
async def test_a_slow_reader_pauses_generation_and_loses_nothing(server: Served, name: str, kind: str) -> None:
    """The numbers of the wide model are such that more waits than one message holds."""
    await server.create("wide", name)
    steps = 3000
    if kind == "one_to_many":
        call = server.stubs.inference.OneToMany(OneToManyRequest(target=on_session(name), generation=generation(steps)))
    else:
        call = server.stubs.inference.ManyToMany(iter([open_many(on_session(name)), generate(generation(steps))]))
    answer = await call.read()
    assert answer.opened.position == 0
    paused_at = await stands_still(server, name)
    assert 0 < paused_at < steps / 2
    other = await server.stubs.inference.ManyToOne(iter(many_to_one(on_model("wide"), values(np.zeros((1, WIDE))))))
    assert other.completion.position == 1
    assert (await server.get(name)).position == paused_at
    at, rows = 1, []
    while answer is not grpc.aio.EOF:
        if answer.HasField("output"):
            assert answer.output.first_position == at
            at = answer.output.position
            rows.append(array(answer.output)[:, 0].copy())
        answer = await call.read()
    generated = np.concatenate(rows)
    assert at == steps + 1
    assert len(generated) == steps
    session = server.oracle("wide").session()
    np.testing.assert_allclose(generated[:50], session.generate(50)[:, 0], rtol=1e-3, atol=1e-3)


async def test_a_reader_that_takes_nothing_bounds_what_is_consumed(server: Served, name: str) -> None:
    """Inputs of a stream whose outputs nobody reads are not taken without end."""
    await server.create("wide", name)
    call = server.stubs.inference.ManyToMany()
    await call.write(open_many(on_session(name), emit=EMIT_ALL))
    await call.read()
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(4000):
            await call.write(chunk(values(np.zeros((1, WIDE)))))
            written += 1

    writing = asyncio.create_task(write())
    await moves(server, name)
    assert await stands_still(server, name) < 4000
    read = 0
    while read < 4000:
        answer = await call.read()
        assert answer.output.first_position == read
        read = answer.output.position
    await writing
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


# -- clients that go


@pytest.mark.parametrize("kind", ["one_to_many", "many_to_many"])
async def test_a_vanished_client_ends_its_generation_and_frees_the_session(server: Served, name: str, kind: str) -> None:
    await server.create("lstm-text", name, seed=1)
    if kind == "one_to_many":
        request = OneToManyRequest(target=on_session(name), input=text("Once"), generation=generation(FOREVER))
        call = server.stubs.inference.OneToMany(request)
    else:
        call = server.stubs.inference.ManyToMany()
        await call.write(open_many(on_session(name), emit=EMIT_NONE))
        await call.write(chunk(text("Once")))
        await call.write(generate(generation(FOREVER)))
    await call.read()
    await moves(server, name, 30)
    beside = asyncio.create_task(_written(server, on_model("lstm-text"), 80))
    call.cancel()
    await is_free(server, name)
    ended_at = await stands_still(server, name)
    assert await beside == await _written(server, on_model("lstm-text"), 80)
    oracle = server.oracle("lstm-text")
    session = oracle.session(seed=1)
    session.consume(oracle.encode("Once"))
    if ended_at < 2000:  # the oracle is slow
        session.generate(ended_at - 4, Sampling())
        assert await _written(server, on_session(name, position=ended_at), 5, temperature=1) == oracle.decode(session.generate(5, Sampling()))


async def _written(server: Served, target: Any, steps: int, **sampling: Any) -> str:
    request = OneToManyRequest(target=target, generation=generation(steps, **sampling or {"seed": 4}))
    return "".join([answer.output.values.text async for answer in server.stubs.inference.OneToMany(request)])


async def test_slots_of_calls_without_a_session_are_freed_when_clients_vanish(server: Served) -> None:
    before = await server.metric("cellstate_slots_in_use", model="lstm-text")
    calls = [server.stubs.inference.OneToMany(OneToManyRequest(target=on_model("lstm-text"), generation=generation(FOREVER))) for _ in range(10)]
    for call in calls:
        await call.read()
    assert await server.metric("cellstate_slots_in_use", model="lstm-text") == before + 10
    for call in calls:
        call.cancel()
    async with asyncio.timeout(20):
        while await server.metric("cellstate_slots_in_use", model="lstm-text") != before:
            await asyncio.sleep(0.01)


async def test_a_deadline_ends_the_call_between_two_steps(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    request = OneToManyRequest(target=on_session(name), generation=generation(FOREVER))
    call = server.stubs.inference.OneToMany(request, timeout=0.4)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await is_free(server, name)
    ended_at = await stands_still(server, name)
    assert ended_at > 0
    answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, position=ended_at), input=text("T")))
    assert answer.completion.position == ended_at + 1


# -- steps that fail


async def test_a_row_that_overflows_fails_alone_and_keeps_its_state(server: Served, name: str) -> None:
    await server.create("steep", name)
    rng = np.random.default_rng(0)
    programs = [Program(target=on_model("steep"), input=values(rng.normal(size=60)), emit=EMIT_ALL) for _ in range(16)]
    good = (await server.stubs.inference.Run(RunRequest(programs=programs))).results
    poisoned = rng.normal(size=60)
    poisoned[25] = 3e38
    programs.insert(7, Program(target=on_session(name), input=values(poisoned), emit=EMIT_ALL))
    before = await server.metric("cellstate_batch_rows_count", model="steep")
    results = list((await server.stubs.inference.Run(RunRequest(programs=programs))).results)
    assert await server.metric("cellstate_batch_rows_count", model="steep") - before < 16 * 60 / 2, "the programs shared no batches"
    bad = results.pop(7)
    assert [result.emitted for result in results] == [result.emitted for result in good]
    assert (bad.failure.code, bad.failure.position) == (grpc.StatusCode.INTERNAL.value[0], 25)
    assert "NaN" in bad.failure.message
    expected = server.oracle("steep").session().consume([*poisoned[:25], 5.0])[25]
    answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, position=25), input=values([5.0])))
    np.testing.assert_allclose(array(answer.output)[0], expected, rtol=1e-3)


async def test_a_session_goes_on_after_a_row_that_failed(server: Served, name: str) -> None:
    await server.create("steep", name)
    call = server.stubs.inference.ManyToMany(iter([open_many(on_session(name)), chunk(values([1.0, 2.0])), *(chunk(values([x])) for x in (3e38, 3.0, 4.0))]))
    told = await refusal(call)
    assert (told.code, told.reason, told.metadata["position"]) == (grpc.StatusCode.INTERNAL, "STEP_FAILED", "2")
    assert (await server.get(name)).position == 2, "chunks behind a failed one were taken"
    expected = server.oracle("steep").session().consume([1.0, 2.0, 5.0])[2]
    answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, position=2), input=values([5.0])))
    np.testing.assert_allclose(array(answer.output)[0], expected, rtol=1e-4)


async def test_a_failed_step_fails_its_batch_and_the_engine_goes_on(server: Served, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.create("rnn_tanh-series", name)
    call = server.stubs.inference.ManyToMany()
    await call.write(open_many(on_session(name)))
    await call.read()
    await call.write(chunk(values([1.0, 2.0])))
    taken = 0
    while taken < 2:
        taken = (await call.read()).output.position
    network = server.app.engines["rnn_tanh-series"].model.network
    step = type(network).step
    failures = iter([True])

    def fails_once(*given: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("injected")
        return step(network, *given)

    monkeypatch.setattr(network, "step", fails_once)
    await call.write(chunk(values([3.0, 4.0])))
    answers, told = await ending(call)
    assert not answers
    assert (told.code, told.reason, told.metadata["position"]) == (grpc.StatusCode.INTERNAL, "STEP_FAILED", "2")
    assert "injected" not in told.message
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_session(name, position=2)), chunk(values([3.0, 4.0]))])))
    expected = server.oracle("rnn_tanh-series").session().consume([1.0, 2.0, 3.0, 4.0])[2:]
    np.testing.assert_allclose(np.concatenate([array(answer.output) for answer in answers]), expected, atol=1e-4)


async def ending(call: Any) -> tuple[list[Any], Refusal]:
    """Read a stream that must fail to its end."""
    answers = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer)
    return answers, read_refusal(caught.value)


# -- one writer


async def test_a_second_call_is_refused_while_the_first_runs(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    call = await _generating(server, name)
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name), input=text("T"))))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, stream_token="another"), input=text("T"))))
    assert told.reason == "SESSION_BUSY"
    await call.write(STOP)
    await call.done_writing()
    while (answer := await call.read()) is not grpc.aio.EOF:
        stopped = answer
    assert (await server.get(name)).position == stopped.stopped.position


async def _generating(server: Served, name: str, **opening: Any) -> Any:
    """Return a stream on a session that generates without end."""
    call = server.stubs.inference.ManyToMany()
    await call.write(open_many(on_session(name), output=options(OUTPUT_FORM_TOKENS), **opening))
    call.opened = (await call.read()).opened
    await call.write(generate(generation(FOREVER)))
    await moves(server, name, 5)
    return call


@pytest.mark.parametrize("by", ["stream_token", "take_over"])
async def test_a_newer_call_supersedes_and_both_agree_on_the_position(server: Served, name: str, by: str) -> None:
    await server.create("lstm-text", name, seed=9)
    old = await _generating(server, name)
    reference = {"take_over": True} if by == "take_over" else {"stream_token": old.opened.stream_token}
    new = server.stubs.inference.ManyToMany()
    await new.write(open_many(on_session(name, **reference), output=options(OUTPUT_FORM_TOKENS)))
    opened = (await new.read()).opened
    assert opened.stream_token != old.opened.stream_token
    answers, told = await ending(old)
    assert (told.code, told.reason) == (grpc.StatusCode.ABORTED, "SUPERSEDED")
    assert int(told.metadata["position"]) == answers[-1].output.position == opened.position
    await new.write(generate(generation(3)))
    await new.done_writing()
    answers = []
    while (answer := await new.read()) is not grpc.aio.EOF:
        answers.append(answer)
    assert answers[0].output.first_position == opened.position
    assert answers[-1].completion.position == opened.position + 3


async def test_what_a_superseded_call_still_sends_is_not_taken(server: Served, name: str) -> None:
    """Its writer waits for a reader that takes nothing, so it learns late that it was superseded."""
    await server.create("wide", name)
    old = server.stubs.inference.ManyToMany()
    await old.write(open_many(on_session(name)))
    await old.read()
    await old.write(generate(generation(FOREVER)))
    await stands_still(server, name)
    new = server.stubs.inference.ManyToMany()
    await new.write(open_many(on_session(name, take_over=True)))
    position = (await new.read()).opened.position
    for _ in range(3):
        await old.write(chunk(values(np.zeros((1, WIDE)))))
    await new.write(chunk(values(np.zeros((1, WIDE)))))
    answer = await new.read()
    assert (answer.output.first_position, answer.output.position) == (position, position + 1)
    assert await stands_still(server, name) == position + 1
    new.cancel()
    old.cancel()


async def test_deleting_a_session_ends_the_call_on_it(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    in_use = await server.metric("cellstate_slots_in_use", model="lstm-text")
    call = await _generating(server, name)
    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))
    _, told = await ending(call)
    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_CLOSED")
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name), input=text("T"))))
    assert told.reason == "SESSION_CLOSED"
    assert await server.metric("cellstate_slots_in_use", model="lstm-text") == in_use - 1
    created = await server.create("lstm-text", name)
    assert created.position == 0


# -- the server as a whole


async def test_others_are_served_while_one_model_generates_without_end(server: Served, name: str) -> None:
    """Health and other sessions answer beside a call that never ends."""
    await server.create("lstm-text", name)
    call = await _generating(server, name)
    for _ in range(5):
        answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_model("gru-series"), input=values([1.0])), timeout=5)
        assert answer.completion.position == 1
    assert len(await asyncio.gather(*(_written(server, on_model("lstm-text"), 20) for _ in range(5)))) == 5
    call.cancel()


async def test_a_stopped_server_ends_running_calls(models: Path, tmp_path: Path) -> None:
    async with serving(link_models(models, tmp_path, "lstm-text"), grace_s=0.2) as served:
        await served.create("lstm-text", "forever")
        call = await _generating(served, "forever")
        began_s = SystemClock().monotonic()
        await served.app.stop()
        assert SystemClock().monotonic() - began_s < 5
        with pytest.raises(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert not served.app.engines["lstm-text"].alive


async def test_a_wrong_message_ends_the_stream_after_what_came_before(server: Served, name: str) -> None:
    await server.create("gru-series", name)
    call = server.stubs.inference.ManyToMany(iter([open_many(on_session(name)), chunk(values([1.0, 2.0])), ManyToManyRequest(), chunk(values([3.0]))]))
    answers, told = await ending(call)
    assert told.reason == "STREAM_PROTOCOL"
    assert answers[-1].output.position == 2
    await is_free(server, name)
    assert (await server.get(name)).position == 2
