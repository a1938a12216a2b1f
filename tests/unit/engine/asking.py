"""Short ways to ask a core for things and to take what it answers."""

from typing import Any

import numpy as np

from cellstate_service.engine.core import EngineCore
from cellstate_service.engine.outbox import Outbox
from cellstate_service.engine.request import Emit, Event, Failed, Form, Generation, Outputs, Request
from cellstate_service.engine.resident import Resident
from cellstate_service.models.loading import LoadedModel

WIDE_OPEN = 1 << 30


def resident_of(model: LoadedModel, seed: int = 0) -> Resident:
    return Resident(seed, None if model.tokenizer is None else model.tokenizer.decoder())


def outbox(window: int = WIDE_OPEN) -> Outbox:
    return Outbox(window, 64)


def consume(box: Outbox, *tokens: int, emit: Emit = Emit.ALL, **parts: Any) -> Request:
    return Request(box, inputs=np.array(tokens, dtype=np.int64), emit=emit, form=Form.LOGITS, **parts)


def generating(box: Outbox, steps: int, **parts: Any) -> Request:
    return Request(box, generation=Generation(steps), form=Form.TOKENS, **parts)


def taken(core: EngineCore, box: Outbox | None = None) -> list[Event]:
    """Take the events of one call (or all) that the core holds."""
    mine = [event for owner, event in core.events if box is None or owner is box]
    core.events = [(owner, event) for owner, event in core.events if box is not None and owner is not box]
    return mine


def run(core: EngineCore, most: int = 10_000) -> None:
    while core.has_work:
        core.step()
        most -= 1
        assert most, "the core does not come to an end"


def positions(events: list[Event]) -> list[int]:
    return [position for event in events if isinstance(event, Outputs) for position in range(event.first_position, event.position)]


def values(events: list[Event]) -> list[Any]:
    """What the events emit, one for each step."""
    return [value for event in events if isinstance(event, Outputs) for value in event.values]


def failure(events: list[Event]) -> Any:
    """The error that the events end with."""
    assert [isinstance(event, Failed) for event in events] == [False] * (len(events) - 1) + [True]
    last = events[-1]
    assert isinstance(last, Failed)
    return last.error
