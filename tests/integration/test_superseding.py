"""One writer: a second call on a session is refused or takes over, and what the older one still sends is not taken."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.session_pb2 import DeleteSessionRequest
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS
from tests.integration.serving import Served, ending, generating_without_end, link_models, serving, stands_still
from tests.integration.stubs import (
    STOP,
    chunk,
    generate,
    generation,
    on_session,
    open_many,
    options,
    refusal,
    text,
    values,
)
from tests.models_on_disk import write_recurrent

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = 2048


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("writers"), "lstm-text")
    write_recurrent(folder / "wide", cell="gru", input_kind="numeric", features=WIDE, hidden_size=8, seed=50, start=[0.5] * WIDE)
    async with serving(folder) as served:
        yield served


numbers = itertools.count()


@pytest.fixture
def name() -> str:
    return f"session-{next(numbers)}"


async def test_a_second_call_is_refused_while_the_first_runs(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    call = await generating_without_end(server, name)
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name), input=text("T"))))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, stream_token="another"), input=text("T"))))
    assert told.reason == "SESSION_BUSY"
    await call.write(STOP)
    await call.done_writing()
    while (answer := await call.read()) is not grpc.aio.EOF:
        stopped = answer
    assert (await server.get(name)).position == stopped.stopped.position


@pytest.mark.parametrize("by", ["stream_token", "take_over"])
async def test_a_newer_call_supersedes_and_both_agree_on_the_position(server: Served, name: str, by: str) -> None:
    await server.create("lstm-text", name, seed=9)
    old = await generating_without_end(server, name)
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
    await old.write(generate(generation(1_000_000)))
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
    call = await generating_without_end(server, name)
    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))
    _, told = await ending(call)
    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_CLOSED")
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name), input=text("T"))))
    assert told.reason == "SESSION_CLOSED"
    assert await server.metric("cellstate_slots_in_use", model="lstm-text") == in_use - 1
    created = await server.create("lstm-text", name)
    assert created.position == 0
