"""One call writes to a session at a time; repeated requests take effect once."""

from typing import Any

import grpc
import grpc.aio
import pytest

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest, Program, RunRequest
from cellstate.v1.session_pb2 import (
    ForkSessionRequest,
    ResetSessionRequest,
)
from tests.integration.serving import Served
from tests.integration.sessions.calls import feed, step, update
from tests.integration.snapshots import export
from tests.integration.stubs import (
    chunk,
    generation,
    many_to_one,
    on_model,
    on_session,
    open_many,
    refusal,
    text,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_busy_session_refuses_other_calls_and_answers_what_only_reads(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name)
    stream = server.stubs.inference.ManyToMany()
    await stream.write(open_many(on_session(name)))
    opened = (await stream.read()).opened
    assert (opened.uid, opened.position, opened.seed) == (created.uid, 0, created.seed)
    calls, sessions = server.stubs.inference, server.stubs.sessions

    for call in (
        calls.OneToOne(OneToOneRequest(target=on_session(name), input=text("a"))),
        calls.OneToMany(OneToManyRequest(target=on_session(name))),
        calls.ManyToOne(iter(many_to_one(on_session(name, stream_token="another")))),
        calls.ManyToMany(iter([open_many(on_session(name))])),
        sessions.ResetSession(ResetSessionRequest(name=name)),
    ):
        told = await refusal(call)
        assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    (result,) = (await calls.Run(RunRequest(programs=[Program(target=on_session(name), input=text("a"))]))).results
    assert result.failure.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]

    assert (await server.get(name)).busy
    await update(server, name, labels={"a": "b"})
    await sessions.ForkSession(ForkSessionRequest(name=name))
    await export(server.stubs, name)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert not (await server.get(name)).busy


@pytest.mark.parametrize("by", ["stream_token", "take_over"])
async def test_a_newer_call_supersedes_an_older_one(server: Served, name: str, by: str) -> None:
    await server.create("lstm-text", name)
    old = server.stubs.inference.ManyToMany()
    await old.write(open_many(on_session(name)))
    token = (await old.read()).opened.stream_token
    reference: dict[str, Any] = {"take_over": True} if by == "take_over" else {"stream_token": token}

    answer = await feed(server, name, text("abc"), **reference)

    assert answer.completion.position == 3
    told = await refusal(_drain(old))
    assert (told.code, told.reason, told.metadata["position"]) == (grpc.StatusCode.ABORTED, "SUPERSEDED", "0")
    told = await refusal(step(server, f"{name}-none", **reference))
    assert told.reason == "SESSION_NOT_FOUND"


async def test_a_refused_call_supersedes_nobody(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    old = server.stubs.inference.ManyToMany()
    await old.write(open_many(on_session(name)))
    await old.read()
    target = on_session(name, take_over=True)

    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=target, input=text("ab"))))
    assert told.fields == ["input"]
    told = await refusal(server.stubs.inference.OneToMany(OneToManyRequest(target=target, generation=generation(0))))
    assert told.fields == ["generation.max_steps"]

    await old.write(chunk(text("a")))
    assert (await old.read()).output.position == 1
    await old.done_writing()
    assert await old.read() is grpc.aio.EOF


async def test_programs_whose_answers_do_not_fit_one_message_take_no_step(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    programs = [Program(target=on_model("lstm-text"), generation=generation(400_000)) for _ in range(2)]
    told = await refusal(server.stubs.inference.Run(RunRequest(programs=[Program(target=on_session(name), input=text("a")), *programs])))
    assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["programs"])
    assert (await server.get(name)).position == 0


async def _drain(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass
    if await stream.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(await stream.code(), await stream.initial_metadata(), await stream.trailing_metadata(), await stream.details())
