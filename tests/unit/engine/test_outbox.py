"""The outbox: order, coalescing, its window, and what becomes of errors and of callers that stop waiting."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.outbox import Emitted, Outbox
from cellstate_service.engine.request import Emit, Failed, Finish, Finished, Outputs, StopTaken
from cellstate_service.errors import StepFailed


def step(position: int, *, generated: bool = True, text: str = "", log: float | None = None) -> Outputs:
    return Outputs(position, [position + 100], text, [] if log is None else [log], generated)


def finished(position: int) -> Finished:
    return Finished(Finish.MAX_STEPS, position, 0, position, None, None, 0.0, 0.0, Emit.NONE, generates=True)


def emit(outbox: Outbox, event: Outputs) -> None:
    """What engine and loop do with one step."""
    outbox.sent += 1
    outbox.push(event)


def test_contiguous_steps_of_a_kind_become_one_item() -> None:
    outbox = Outbox(100, 100)
    emit(outbox, step(0, generated=False, log=-1.0))
    emit(outbox, step(1, generated=False, text="b"))
    emit(outbox, step(2, text="c"))
    emit(outbox, step(4, text="e", log=-2.0))
    emit(outbox, step(5, text="f", log=-3.0))
    items = [outbox.next_ready() for _ in range(4)]
    assert items[:3] == [
        Emitted(0, 2, False, [100, 101], ["b"], [-1.0]),
        Emitted(2, 3, True, [102], ["c"], []),
        Emitted(4, 6, True, [104, 105], ["e", "f"], [-2.0, -3.0]),
    ]
    assert items[3] is None


@given(st.lists(st.sampled_from(["step", "consumed", "finish", "stop", "take"]), max_size=60), st.integers(1, 5))
def test_nothing_is_lost_repeated_or_put_out_of_order(events: list[str], coalesced: int) -> None:
    outbox = Outbox(1000, coalesced)
    pushed: list[object] = []
    taken: list[object] = []

    def take() -> bool:
        item = outbox.next_ready()
        if isinstance(item, Emitted):
            assert 1 <= len(item.values) <= coalesced
            assert item.position - item.first_position == len(item.values)
            taken.extend((item.first_position + index, item.generated) for index in range(len(item.values)))
        elif item is not None:
            taken.append(item)
        return item is not None

    position = 0
    for event in events:
        if event == "take":
            take()
        elif event in {"step", "consumed"}:
            emit(outbox, step(position, generated=event == "step"))
            pushed.append((position, event == "step"))
            position += 1
        else:
            pushed.append(finished(position) if event == "finish" else StopTaken(position))
            outbox.push(pushed[-1])  # type: ignore[arg-type]
    while take():
        pass
    assert taken == pushed
    assert outbox.sent == outbox.taken == position


def test_the_window_fills_with_steps_and_has_room_when_half_is_free() -> None:
    outbox = Outbox(4, 1)
    for position in range(4):
        assert not outbox.full
        emit(outbox, step(position))
    assert outbox.full
    outbox.next_ready()
    assert (outbox.full, outbox.has_room_again) == (False, False)
    outbox.next_ready()
    assert (outbox.full, outbox.has_room_again) == (False, True)


def test_a_window_of_one_pauses_after_each_step() -> None:
    outbox = Outbox(1, 1)
    emit(outbox, step(0))
    assert outbox.full
    assert not outbox.has_room_again
    outbox.next_ready()
    assert outbox.has_room_again


async def test_an_error_comes_after_what_was_emitted_and_stays() -> None:
    outbox = Outbox(9, 9)
    emit(outbox, step(0))
    outbox.push(finished(1))
    outbox.push(Failed(StepFailed("first")))
    outbox.push(step(1))
    outbox.push(Failed(StepFailed("second")))
    assert isinstance(await outbox.next(), Emitted)
    assert isinstance(await outbox.next(), Finished)
    for _ in range(2):
        with pytest.raises(StepFailed, match="first"):
            await outbox.next()
    assert outbox.next_ready() is None


async def test_next_waits_until_woken() -> None:
    outbox = Outbox(9, 9)
    waiting = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    outbox.push(finished(0))
    await asyncio.sleep(0)
    assert not waiting.done(), "a push alone does not wake: the engine's events come in one go"
    outbox.wake()
    assert await waiting == finished(0)


async def test_an_error_wakes_who_waits() -> None:
    outbox = Outbox(9, 9)
    waiting = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    outbox.push(Failed(StepFailed("broken")))
    outbox.wake()
    with pytest.raises(StepFailed):
        await waiting


async def test_waking_a_caller_that_was_cancelled_does_no_harm() -> None:
    outbox = Outbox(9, 9)
    waiting = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    waiting.cancel()
    outbox.push(finished(0))
    outbox.wake()
    outbox.wake()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    outbox.wake()
    assert await outbox.next() == finished(0), "what was pushed is still there for the next one to wait"


async def test_waking_twice_before_the_caller_runs_is_waking_once() -> None:
    outbox = Outbox(9, 9)
    waiting = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    outbox.wake()
    outbox.wake()
    await asyncio.sleep(0)
    assert not waiting.done(), "woken with nothing there, it waits again"
    outbox.push(finished(0))
    outbox.wake()
    assert await waiting == finished(0)
