"""The engine's thread: commands in order, answers to the loop, faults that do not end it, and its end."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from cellstate_service.clock import SystemClock
from cellstate_service.engine.core import StepLimits
from cellstate_service.engine.engine import Engine, EngineConfig
from cellstate_service.engine.outbox import Emitted, Outbox
from cellstate_service.engine.processors import Processors
from cellstate_service.engine.request import Emit, Finished, Form, Generation, Request
from cellstate_service.errors import Exhausted, NotFound, Unavailable
from cellstate_service.models.loading import LoadedModel
from cellstate_service.observability.metrics import Metrics
from tests.unit.engine.asking import next_item


@pytest.fixture
async def engine(tokens_model: LoadedModel) -> AsyncIterator[Engine]:
    running = Engine(tokens_model, EngineConfig(StepLimits(4), slots=3), Processors(1, SystemClock()), Metrics(), SystemClock())
    running.start(asyncio.get_running_loop())
    yield running
    await running.stop()
    assert not running.alive


def generating(steps: int, window: int = 1 << 20) -> Request:
    return Request(Outbox(window, 64), generation=Generation(steps), form=Form.TOKENS)


async def finished(request: Request) -> Finished:
    while not isinstance(item := await next_item(request.outbox), Finished):
        assert isinstance(item, Emitted)
    return item


async def test_requests_are_answered_in_order_beside_each_other(engine: Engine) -> None:
    residents = [engine.new_resident(seed) for seed in range(3)]
    requests = [[generating(steps) for steps in (5, 1, 9)] for _ in residents]
    for resident, own in zip(residents, requests, strict=True):
        for request in own:
            engine.submit(resident, request)
    for own in requests:
        assert [(await finished(request)).position for request in own] == [6, 7, 16]
    assert [await engine.position(resident) for resident in residents] == [16] * 3


async def test_a_question_is_answered_between_two_steps_of_a_long_generation(engine: Engine) -> None:
    resident, request = engine.new_resident(1), generating(1_000_000)
    engine.submit(resident, request)
    await next_item(request.outbox)
    state = await engine.read(resident)
    assert state.position > 0
    assert state.last_output is not None
    fork = engine.new_resident(2)
    assert await engine.fork(resident, fork) >= state.position
    engine.cancel(resident, request.outbox)
    position = await engine.position(resident)
    assert await engine.position(resident) == position


async def test_errors_of_commands_reach_who_asked_and_nobody_else(engine: Engine) -> None:
    residents = [engine.new_resident(seed) for seed in range(4)]
    for resident in residents[:3]:
        await engine.acquire(resident)
    with pytest.raises(Exhausted):
        await engine.acquire(residents[3])
    with pytest.raises(NotFound):
        await engine.read(residents[3])
    assert (await engine.read(residents[0])).position == 0


async def test_a_command_that_raises_does_not_end_the_thread(engine: Engine) -> None:
    engine.release(None)  # type: ignore[arg-type]
    resident = engine.new_resident(0)
    request = generating(2)
    engine.submit(resident, request)
    assert (await finished(request)).generated_steps == 2


async def test_who_stops_waiting_for_an_answer_does_no_harm(engine: Engine) -> None:
    resident, request = engine.new_resident(0), generating(1_000_000)
    engine.submit(resident, request)
    asking = [asyncio.create_task(engine.read(resident)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    assert all(isinstance(result, asyncio.CancelledError) for result in await asyncio.gather(*asking, return_exceptions=True))
    assert (await engine.read(resident)).seed == 0
    engine.release(resident)


async def test_an_answer_without_waiting_for_more(engine: Engine) -> None:
    """An idle engine answers at once: one step of one session."""
    resident = engine.new_resident(0)
    request = Request(Outbox(9, 9), inputs=np.array([1]), emit=Emit.LAST, form=Form.LOGITS)
    engine.submit(resident, request)
    item = await next_item(request.outbox)
    assert isinstance(item, Emitted)
    assert (item.first_position, item.position) == (0, 1)


async def test_stopping_fails_what_runs_waits_and_is_asked_later(tokens_model: LoadedModel) -> None:
    engine = Engine(tokens_model, EngineConfig(StepLimits(1), slots=9), Processors(1, SystemClock()), Metrics(), SystemClock())
    engine.start(asyncio.get_running_loop())
    requests = [generating(1_000_000) for _ in range(3)]
    residents = [engine.new_resident(seed) for seed in range(3)]
    for resident, request in zip(residents, requests, strict=True):
        engine.submit(resident, request)
    await next_item(requests[0].outbox)
    await engine.stop()
    assert not engine.alive
    for request in requests:
        with pytest.raises(Unavailable):
            await finished(request)
    with pytest.raises(Unavailable):
        await engine.read(residents[0])
