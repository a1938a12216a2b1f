"""What must not happen when something inside fails, or somebody means harm: nobody waits for ever, nobody is slowed down."""

import asyncio
import contextlib
import gc

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest, Program, RunRequest
from cellstate.v1.session_pb2 import CreateSessionRequest, ForkSessionRequest, InitialState, Session, UpdateSessionRequest
from cellstate.v1.types_pb2 import DATA_TYPE_FLOAT32, EMIT_ALL, OUTPUT_FORM_LOGITS, NamedTensor, Sampling, Tensor
from cellstate_service.app import App
from cellstate_service.engine.core import EngineCore
from cellstate_service.sessions.call import MAX_QUEUED_REQUESTS, Call
from tests.integration.conftest import StartServer
from tests.integration.serving import Served, eventually
from tests.integration.stubs import STOP, Stubs, chunk, generation, on_model, on_session, open_many, options, refusal, text, values


@pytest.fixture
def server(app: App, stubs: Stubs) -> Served:
    return Served(app, stubs, app.settings.models)


async def test_a_fault_between_two_steps_fails_the_calls_and_the_engine_goes_on(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineCore, "_observe", lambda *_: 1 / 0)
    told = await refusal(server.stubs.inference.OneToMany(OneToManyRequest(target=on_model("lstm-text"), generation=generation(5))))
    assert told.reason == "STEP_FAILED"
    monkeypatch.undo()
    answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_model("lstm-series"), input=values([1.0])), timeout=5)
    assert answer.completion.position == 1


async def test_a_request_that_cannot_begin_is_told(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineCore, "_prepare", lambda *_: 1 / 0)
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_model("lstm-series"), input=values([1.0])), timeout=5))
    assert told.reason == "STEP_FAILED"


async def test_health_tells_of_an_engine_that_died(start_server: StartServer) -> None:
    app = await start_server()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        engine = app.fleet.engines["lstm-text"]
        await engine.stop()

        async def told() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest())
            return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

        await eventually(told)


async def test_a_flood_of_stops_waits_its_turn(server: Served) -> None:
    """They count as requests that wait, so the stream is not read any further and others are served as ever."""
    stream = server.stubs.inference.ManyToMany()
    await stream.write(open_many(on_model("lstm-text"), output=options(OUTPUT_FORM_LOGITS)))
    await stream.write(chunk(text("a" * 20_000)))

    async def flood() -> None:
        for _ in range(20_000):
            await stream.write(STOP)

    flooding = asyncio.create_task(flood())
    for _ in range(20):
        await server.stubs.inference.OneToOne(OneToOneRequest(target=on_model("lstm-series"), input=values([1.0])), timeout=5)
    assert 1 < _most_queued("lstm-text") <= MAX_QUEUED_REQUESTS + 1
    flooding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flooding
    stream.cancel()


def _most_queued(model: str) -> int:
    """Requests and stops that wait in the longest queue of a model's calls."""
    return max(len(found._queued) for found in gc.get_objects() if type(found) is Call and found.model.name == model)


async def test_a_call_on_a_session_whose_fork_is_taken_back_ends(server: Served) -> None:
    await server.create("lstm-text", "source")
    stream = server.stubs.inference.ManyToMany()
    await stream.write(open_many(on_session("source")))
    await stream.read()
    for _ in range(20):
        fork = ForkSessionRequest(name="source", position=77, session=Session(name="fork"))
        told, answer = await asyncio.gather(
            refusal(server.stubs.sessions.ForkSession(fork)),
            server.stubs.inference.Run(RunRequest(programs=[Program(target=on_session("fork"), input=text("abc"))]), timeout=5),
        )
        assert told.reason == "POSITION_MISMATCH"
        assert len(answer.results) == 1
    stream.cancel()


async def test_the_settings_of_generation_do_not_draw_from_inputs(server: Served) -> None:
    program = Program(target=on_model("lstm-text"), input=text("Hello there"), emit=EMIT_ALL, sampling=Sampling(temperature=0))
    (greedy,) = (await server.stubs.inference.Run(RunRequest(programs=[program]))).results
    program.generation.CopyFrom(generation(5, temperature=50.0, seed=9))
    (both,) = (await server.stubs.inference.Run(RunRequest(programs=[program]))).results
    assert both.emitted.values.text == greedy.emitted.values.text
    assert both.completion.seed == 9


async def test_the_start_value_is_not_emitted(server: Served) -> None:
    program = Program(target=on_model("lstm-text"), emit=EMIT_ALL, generation=generation(5))
    (result,) = (await server.stubs.inference.Run(RunRequest(programs=[program]))).results
    assert not result.HasField("emitted")
    assert (result.completion.consumed_steps, result.completion.generated_steps) == (1, 5)


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0, 2**62], [-1]])
async def test_absurd_shapes_of_nothing_are_refused(server: Served, shape: list[int]) -> None:
    tensors = [NamedTensor(name=name, tensor=Tensor(dtype=DATA_TYPE_FLOAT32, shape=shape)) for name in ("h", "c")]
    request = CreateSessionRequest(session=Session(model="lstm-text"), initial_state=InitialState(tensors=tensors))
    told = await refusal(server.stubs.sessions.CreateSession(request))
    assert told.reason == "INVALID_TENSOR"


async def test_counts_are_looked_at_before_what_they_count(server: Served) -> None:
    tensors = [NamedTensor(name=str(number)) for number in range(1000)]
    request = CreateSessionRequest(session=Session(model="lstm-text"), initial_state=InitialState(tensors=tensors))
    assert (await refusal(server.stubs.sessions.CreateSession(request))).fields == ["initial_state.tensors"]
    await server.create("lstm-text", "masked")
    update = UpdateSessionRequest(session=Session(name="masked"))
    update.update_mask.paths.extend(f"path{number}" for number in range(1000))
    assert (await refusal(server.stubs.sessions.UpdateSession(update))).fields == ["update_mask"]
