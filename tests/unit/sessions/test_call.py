"""What a call owes is answered in order, however its half-close and the engine's events fall together."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.outbox import Item, Outbox
from cellstate_service.engine.request import Event, Failed, Finish, Finished, Request, StopTaken
from cellstate_service.errors import StepFailed
from cellstate_service.sessions.call import Call, CallBounds


class Engine:
    """Takes requests, and lets the test answer them."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(network=SimpleNamespace(output_size=4))
        self.asked = 0

    def submit(self, resident: Any, request: Request) -> None:
        self.asked += 1

    def stop_generation(self, resident: Any, outbox: Outbox) -> None:
        self.asked += 1


def finished(position: int) -> Event:
    return Finished(Finish.MAX_STEPS, position, 0, 0, None, None, 0.0, 0.0, Request(None).emit, generates=True)  # type: ignore[arg-type]


def deliver(call: Call, event: Event) -> None:
    call.outbox.push(event)
    call.outbox.wake()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def call(engine: Any) -> Call:
    return Call(engine, SimpleNamespace(seed=0), None, CallBounds())  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(["ask", "stop", "answer", "tick", "close"]), max_size=30))
async def test_items_come_in_order_whenever_the_stream_closes(script: list[str]) -> None:
    engine: Any = Engine()
    call = Call(engine, SimpleNamespace(seed=0), None, CallBounds())  # type: ignore[arg-type]
    taken: list[Item] = []

    async def take() -> None:
        while (item := await call.next()) is not None:
            taken.append(item)
            await asyncio.sleep(0)  # the writer's turn

    taking = asyncio.ensure_future(take())
    answered = 0
    closed = False
    for action in [*script, "close"]:
        if action == "ask" and not closed:
            call.submit(Request(call.outbox))
        elif action == "stop" and not closed:
            call.stop_generation()
        elif action == "answer" and answered < engine.asked:
            deliver(call, finished(answered) if answered % 2 else StopTaken(answered))
            answered += 1
        elif action == "close":
            closed = True
            call.half_close()
        else:
            await asyncio.sleep(0)
    for position in range(answered, engine.asked):
        assert not taking.done()
        deliver(call, finished(position))
    async with asyncio.timeout(5):
        await taking
    assert [item.position for item in taken] == list(range(engine.asked))
    assert not call.owes


async def test_an_error_comes_after_what_was_emitted(call: Call) -> None:
    call.submit(Request(call.outbox))
    call.submit(Request(call.outbox))
    deliver(call, finished(1))
    deliver(call, Failed(StepFailed("it failed")))
    item = await call.next()
    assert item is not None
    assert item.position == 1
    with pytest.raises(StepFailed):
        await call.next()


async def test_a_listener_hears_of_every_arrival(call: Call) -> None:
    heard = 0

    def listen() -> None:
        nonlocal heard
        heard += 1

    call.listen(listen)
    call.ask_position()
    deliver(call, StopTaken(7))
    assert heard == 1
    assert (item := call.next_ready())
    assert item.position == 7
    deliver(call, Failed(StepFailed("it failed")))
    assert call.next_ready() is None
    assert isinstance(call.failure, StepFailed)
    assert heard == 2
