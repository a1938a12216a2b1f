"""What goes wrong in one call stays there: slow readers, vanished clients, deadlines, NaN, failed steps, calls that are superseded or lose their session."""

import asyncio
import contextlib
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
from cellstate.v1.types_pb2 import EMIT_ALL, EMIT_NONE
from cellstate_service.clock import SystemClock
from cellstate_service.engine.runner import Runner
from tests.integration.serving import Served, ending, eventually, generating_without_end, is_free, link_models, moves, serving, stands_still
from tests.integration.stubs import (
    array,
    chunk,
    generate,
    generation,
    many_to_one,
    on_model,
    on_session,
    open_many,
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

    async def freed() -> bool:
        return await server.metric("cellstate_slots_in_use", model="lstm-text") == before

    await eventually(freed)


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
    steps = await server.metric("cellstate_steps_total", model="steep", kind="consumed")
    results = list((await server.stubs.inference.Run(RunRequest(programs=programs))).results)
    assert await server.metric("cellstate_batch_rows_count", model="steep") - before < 16 * 60 / 2, "the programs shared no batches"
    assert await server.metric("cellstate_steps_total", model="steep", kind="consumed") - steps == 16 * 60 + 25
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


class FailsOnce:
    """Stands before what steps a model, and raises the first time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._failures = iter([True])

    def consume(self, *given: Any, **parts: Any) -> Any:
        if next(self._failures, False):
            raise RuntimeError("injected")
        return self._runner.consume(*given, **parts)


async def test_a_failed_step_fails_its_batch_and_the_engine_goes_on(server: Served, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.create("rnn_tanh-series", name)
    call = server.stubs.inference.ManyToMany()
    await call.write(open_many(on_session(name)))
    await call.read()
    await call.write(chunk(values([1.0, 2.0])))
    taken = 0
    while taken < 2:
        taken = (await call.read()).output.position
    batch = server.app.fleet.engines["rnn_tanh-series"]._core._batch
    monkeypatch.setattr(batch, "_runner", FailsOnce(batch._runner))
    await call.write(chunk(values([3.0, 4.0])))
    answers, told = await ending(call)
    assert not answers
    assert (told.code, told.reason, told.metadata["position"]) == (grpc.StatusCode.INTERNAL, "STEP_FAILED", "2")
    assert "injected" not in told.message
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_session(name, position=2)), chunk(values([3.0, 4.0]))])))
    expected = server.oracle("rnn_tanh-series").session().consume([1.0, 2.0, 3.0, 4.0])[2:]
    np.testing.assert_allclose(np.concatenate([array(answer.output) for answer in answers]), expected, atol=1e-4)


# -- the server as a whole


async def test_others_are_served_while_one_model_generates_without_end(server: Served, name: str) -> None:
    """Health and other sessions answer beside a call that never ends."""
    await server.create("lstm-text", name)
    call = await generating_without_end(server, name)
    for _ in range(5):
        answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_model("gru-series"), input=values([1.0])), timeout=5)
        assert answer.completion.position == 1
    assert len(await asyncio.gather(*(_written(server, on_model("lstm-text"), 20) for _ in range(5)))) == 5
    call.cancel()


async def test_a_stopped_server_ends_running_calls(models: Path, tmp_path: Path) -> None:
    async with serving(link_models(models, tmp_path, "lstm-text"), grace_s=0.2) as served:
        await served.create("lstm-text", "forever")
        call = await generating_without_end(served, "forever")
        began_s = SystemClock().monotonic()
        await served.app.stop()
        assert SystemClock().monotonic() - began_s < 5
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert not served.app.fleet.engines["lstm-text"].alive


async def test_a_wrong_message_ends_the_stream_after_what_came_before(server: Served, name: str) -> None:
    await server.create("gru-series", name)
    call = server.stubs.inference.ManyToMany(iter([open_many(on_session(name)), chunk(values([1.0, 2.0])), ManyToManyRequest(), chunk(values([3.0]))]))
    answers, told = await ending(call)
    assert told.reason == "STREAM_PROTOCOL"
    assert answers[-1].output.position == 2
    await is_free(server, name)
    assert (await server.get(name)).position == 2
