"""What a many-to-many stream owes is answered in order, however its half-close and the engine's events fall together."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cellstate_service.engine.outbox import Emitted, Item, Outbox
from cellstate_service.engine.request import Emit, Finish, Finished, Outputs
from cellstate_service.rpc.inference import _Progress

END = Finished(Finish.MAX_STEPS, 0, 0, 0, None, None, 0.0, 0.0, Emit.NONE, generates=True)


class Scripted:
    """A call whose events the test delivers."""

    def __init__(self) -> None:
        self.outbox = Outbox(window=1000, coalesced=1)

    async def next(self) -> Item:
        return await self.outbox.next()

    def next_ready(self) -> Item | None:
        return self.outbox.next_ready()


@given(st.lists(st.sampled_from(["step", "tick", "close"]), max_size=30))
async def test_items_come_in_order_whenever_the_stream_closes(script: list[str]) -> None:
    call: Any = Scripted()
    progress = _Progress()
    progress.expect()
    taken: list[Item] = []

    async def take() -> None:
        async for item in progress.items(call):
            taken.append(item)
            await asyncio.sleep(0)  # the writer's turn

    taking = asyncio.ensure_future(take())
    steps = 0
    for action in script:
        if action == "step":
            call.outbox.push(Outputs(steps, [steps], "", [], generated=True))
            call.outbox.wake()
            steps += 1
        elif action == "close":
            progress.close()
        else:
            await asyncio.sleep(0)
    call.outbox.push(END)
    call.outbox.wake()
    progress.close()
    async with asyncio.timeout(5):
        await taking

    assert [item.first_position for item in taken[:-1] if isinstance(item, Emitted)] == list(range(steps))
    assert taken[-1] is END
