"""The lifecycle of sessions: create, read, list, change, reset, fork, expire, delete, and why one is gone."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest, Program, RunRequest
from cellstate.v1.model_pb2 import GetModelRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_MEMORY,
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    InitialState,
    ListSessionsRequest,
    ResetSessionRequest,
    Session,
    UpdateSessionRequest,
)
from cellstate.v1.snapshot_pb2 import Snapshot, SnapshotEnvelope
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS, Sequence
from cellstate_service.app import start
from cellstate_service.settings import Settings
from tests.fake_clock import FakeClock
from tests.integration.serving import Served, link_models
from tests.integration.snapshots import export
from tests.integration.stubs import (
    Refusal,
    Stubs,
    array,
    chunk,
    generate,
    generation,
    many_to_one,
    on_session,
    open_many,
    options,
    refusal,
    responses,
    text,
    values,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TTL_S = 3600
clock = FakeClock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("sessions"), "lstm-text", "gru-series", "pairs")
    app = await start(Settings(port=0, metrics_port=0, models=folder, grace_s=0.5), clock)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        yield Served(app, Stubs(channel), folder)
    await app.stop()


numbers = itertools.count()


@pytest.fixture
def name() -> str:
    return f"session-{next(numbers)}"


async def feed(server: Served, name: str, sequence: Sequence, **reference: Any) -> Any:
    """Consume inputs and return the answer."""
    return await server.stubs.inference.ManyToOne(iter(many_to_one(on_session(name, **reference), sequence)))


async def generated(server: Served, name: str, steps: int = 12) -> list[int]:
    """Generate tokens in a session."""
    request = OneToManyRequest(target=on_session(name), output=options(OUTPUT_FORM_TOKENS), generation=generation(steps))
    return [token async for answer in server.stubs.inference.OneToMany(request) for token in answer.output.values.tokens.ids]


async def missing(server: Served, name: str) -> Refusal:
    """Read a session that is not there and return what is told; calls are told the same."""
    told = await refusal(server.stubs.sessions.GetSession(GetSessionRequest(name=name)))
    by_call = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name), input=text("a"))))
    assert told.code is by_call.code is grpc.StatusCode.NOT_FOUND
    assert (told.reason, told.metadata) == (by_call.reason, by_call.metadata)
    return told


async def listed(server: Served, query: str = "", size: int = 0) -> list[list[str]]:
    """The names on each page of a listing."""
    pages, token = [], ""
    while True:
        page = await server.stubs.sessions.ListSessions(ListSessionsRequest(filter=query, page_size=size, page_token=token))
        pages.append([session.name for session in page.sessions])
        token = page.next_page_token
        if not token:
            return pages


def stamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds))


# -- create and read


async def test_a_session_of_ones_own_name(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name, seed=5, labels={"user": "7", "tier/x": ""})

    model = (await server.stubs.models.GetModel(GetModelRequest(name="lstm-text"))).model
    assert (created.name, created.model, created.owner, created.position, created.seed, created.busy) == (name, "lstm-text", "anonymous", 0, 5, False)
    assert (created.model_digest, created.numerics_id, created.state_bytes) == (model.digest, model.numerics_id, model.state_bytes)
    assert re.fullmatch("[0-9a-f]{32}", created.uid)
    assert dict(created.labels) == {"user": "7", "tier/x": ""}
    assert created.durability == DURABILITY_MEMORY
    assert created.create_time == created.use_time == stamp(clock.now_s)
    assert (created.expire_time, created.idle_ttl) == (stamp(clock.now_s + TTL_S), Duration(seconds=TTL_S))
    read = await server.get(name)
    assert re.fullmatch("[0-9a-f]{64}", read.state_digest)
    read.ClearField("state_digest")
    assert read == created


async def test_the_server_makes_names_and_seeds_that_nobody_guesses(server: Served) -> None:
    first, second = [await server.create("lstm-text", "") for _ in range(2)]

    assert re.fullmatch("s-[0-9a-f]{8}-[0-9a-f]{24}", first.name)
    assert len({first.name, second.name}) == len({first.uid, second.uid}) == len({first.seed, second.seed}) == 2


async def test_a_session_begins_from_a_given_state(server: Served, name: str) -> None:
    await server.create("gru-series", name)
    await feed(server, name, values([0.1, 0.7, 0.3]))
    anchor = Snapshot.FromString(SnapshotEnvelope.FromString(await export(server.stubs, name)).payload).anchors[-1]
    copy = Session(name=f"{name}-copy", model="gru-series")

    created = await server.stubs.sessions.CreateSession(CreateSessionRequest(session=copy, initial_state=InitialState(tensors=anchor.state)))

    assert created.session.position == 0
    outputs = [array((await feed(server, each, values([0.5]))).output) for each in (name, copy.name)]
    np.testing.assert_array_equal(outputs[0], outputs[1])


async def test_equal_digests_mean_equal_bits(server: Served, name: str) -> None:
    names = [f"{name}-{index}" for index in range(3)]
    for each in names:
        await server.create("lstm-text", each)
    fresh = {(await server.get(each)).state_digest for each in names}
    assert len(fresh) == 1
    for each, sequences in zip(names, (["abcd"], ["a", "bc", "d"], ["abce"]), strict=True):
        for sequence in sequences:
            await feed(server, each, text(sequence))

    digests = [(await server.get(each)).state_digest for each in names]

    assert digests[0] == digests[1]
    assert len({*digests, *fresh}) == 3


# -- list


async def test_listing_goes_in_pages_in_the_order_of_creation(server: Served, name: str) -> None:
    names = [f"{name}-{index}" for index in (3, 1, 4, 0, 2)]
    for index, each in enumerate(names):
        await server.create("pairs" if index % 2 else "lstm-text", each, labels={"test": name, "odd": str(index % 2)})

    mine = f'labels.test="{name}"'
    assert await listed(server, mine) == [names]
    assert await listed(server, mine, 2) == [names[:2], names[2:4], names[4:]]
    assert await listed(server, mine, 5) == [names]
    assert await listed(server, f'{mine} AND model="pairs"', 1) == [[names[1]], [names[3]]]
    assert await listed(server, f'{mine} AND labels.odd="0"') == [names[::2]]
    assert await listed(server, f'{mine} AND model="gru-series"') == [[]]
    assert await listed(server, f"{mine} AND busy=true") == [[]]
    stream = server.stubs.inference.ManyToMany()
    await stream.write(open_many(on_session(names[2])))
    await stream.read()
    assert await listed(server, f"{mine} AND busy=true") == [[names[2]]]
    assert await listed(server, f"{mine}   AND   busy = false") == [[*names[:2], *names[3:]]]
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_a_page_token_holds_while_sessions_come_and_go(server: Served, name: str) -> None:
    names = [f"{name}-{index}" for index in range(4)]
    for each in names:
        await server.create("pairs", each, labels={"test": name})
    query = f'labels.test="{name}"'
    first = await server.stubs.sessions.ListSessions(ListSessionsRequest(filter=query, page_size=2))

    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=names[1]))
    await server.create("pairs", f"{name}-new", labels={"test": name})

    second = await server.stubs.sessions.ListSessions(ListSessionsRequest(filter=query, page_size=9, page_token=first.next_page_token))
    assert [session.name for session in second.sessions] == [*names[2:], f"{name}-new"]


# -- update


async def update(server: Served, name: str, *paths: str, **session: Any) -> Session:
    request = UpdateSessionRequest(session=Session(name=name, **session), update_mask=FieldMask(paths=paths))
    answer: Session = (await server.stubs.sessions.UpdateSession(request)).session
    return answer


async def test_an_update_changes_what_its_mask_names(server: Served, name: str) -> None:
    before = await server.create("lstm-text", name, labels={"a": "b"})

    after = await update(server, name, "ttl", ttl=Duration(seconds=60), labels={"x": "y"})
    assert (after.idle_ttl, after.expire_time, after.labels) == (Duration(seconds=60), stamp(clock.now_s + 60), before.labels)

    after = await update(server, name, "expire_time", "labels", expire_time=stamp(clock.now_s + 90))
    assert (after.HasField("idle_ttl"), after.expire_time, dict(after.labels)) == (False, stamp(clock.now_s + 90), {})

    after = await update(server, name, ttl=Duration(seconds=30), labels={"c": "d"}, durability=DURABILITY_MEMORY)
    assert (after.idle_ttl, dict(after.labels), after.uid, after.position) == (Duration(seconds=30), {"c": "d"}, before.uid, 0)

    unchanged = await update(server, name)
    assert unchanged == after


# -- delete, reset, fork


async def test_a_deleted_session_is_gone_and_its_name_free(server: Served, name: str) -> None:
    first = await server.create("lstm-text", name)
    await feed(server, name, text("abc"))

    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name, uid=first.uid))

    told = await missing(server, name)
    assert (told.reason, told.metadata["position"]) == ("SESSION_CLOSED", "3")
    assert (await refusal(server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name)))).reason == "SESSION_CLOSED"
    second = await server.create("lstm-text", name)
    assert (second.position, second.uid != first.uid) == (0, True)
    told = await refusal(feed(server, name, text("a"), uid=first.uid))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UID_MISMATCH")


async def test_a_reset_session_is_as_new_under_another_uid(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name, seed=11)
    fresh = (await server.get(name)).state_digest
    first = await generated(server, name)

    reset = (await server.stubs.sessions.ResetSession(ResetSessionRequest(name=name, uid=created.uid))).session

    assert (reset.name, reset.position, reset.seed) == (name, 0, 11)
    assert reset.uid != created.uid
    assert (await server.get(name)).state_digest == fresh
    assert (await refusal(feed(server, name, text("a"), uid=created.uid))).reason == "UID_MISMATCH"
    assert await generated(server, name) == first
    reset = (await server.stubs.sessions.ResetSession(ResetSessionRequest(name=name, seed=12))).session
    assert reset.seed == 12
    assert await generated(server, name) != first


async def test_a_fork_has_its_own_seed_and_future(server: Served, name: str) -> None:
    source = await server.create("lstm-text", name, seed=1, labels={"a": "b"}, ttl=Duration(seconds=77))
    await feed(server, name, text("Hello"))
    digest = (await server.get(name)).state_digest

    async def fork(suffix: str, **session: Any) -> Session:
        request = ForkSessionRequest(name=name, uid=source.uid, position=5, session=Session(name=name + suffix, **session))
        answer: Session = (await server.stubs.sessions.ForkSession(request)).session
        return answer

    twin, other, drawn = await fork("-twin", seed=1), await fork("-other", seed=2, labels={"c": "d"}), await fork("-drawn")

    assert (twin.position, twin.model, twin.idle_ttl, dict(twin.labels)) == (5, "lstm-text", Duration(seconds=77), {"a": "b"})
    assert dict(other.labels) == {"c": "d"}
    assert drawn.seed not in {1, 2}
    assert len({source.uid, twin.uid, other.uid}) == 3
    assert {(await server.get(each.name)).state_digest for each in (twin, other, drawn)} == {digest}
    tokens = await generated(server, name)
    assert {(await server.get(each.name)).state_digest for each in (twin, other, drawn)} == {digest}
    assert await generated(server, twin.name) == tokens
    assert await generated(server, other.name) != tokens


async def test_a_fork_while_a_stream_generates_disturbs_nothing(server: Served, name: str) -> None:
    reference = f"{name}-reference"
    for each in (name, reference):
        await server.create("lstm-text", each, seed=3)
    stream = server.stubs.inference.ManyToMany(
        iter([open_many(on_session(name), output=options(OUTPUT_FORM_TOKENS)), generate(generation(600))]),
    )
    reading = asyncio.ensure_future(responses(stream))

    forks = [(await server.stubs.sessions.ForkSession(ForkSessionRequest(name=name, session=Session(seed=3)))).session for _ in range(3)]

    tokens = [token for answer in await reading for token in answer.output.values.tokens.ids]
    expected = await generated(server, reference, 605)
    assert tokens == expected[:600]
    for fork in forks:
        assert fork.name != name
        assert await generated(server, fork.name, 5) == expected[fork.position : fork.position + 5]


async def test_a_busy_session_is_forked_at_the_position_it_has(server: Served, name: str) -> None:
    await server.create("gru-series", name)
    stream = server.stubs.inference.ManyToMany()
    await stream.write(open_many(on_session(name)))
    await stream.write(chunk(values([1.0, 2.0]), emit=2))
    await stream.read()
    await stream.read()

    fork = (await server.stubs.sessions.ForkSession(ForkSessionRequest(name=name, position=2))).session

    assert (fork.position, fork.busy, (await server.get(name)).busy) == (2, False, True)
    stream.cancel()


# -- expiry


async def test_an_unused_session_expires_and_its_owner_is_told(server: Served, name: str) -> None:
    await server.create("lstm-text", name, ttl=Duration(seconds=10))
    await feed(server, name, text("ab"))
    before = await server.metric("cellstate_sessions_ended_total", model="lstm-text", reason="expired") if await ended(server) else 0.0

    clock.turn(9)
    assert (await server.get(name)).position == 2
    clock.turn(1)

    told = await missing(server, name)
    assert (told.reason, told.metadata["position"]) == ("SESSION_EXPIRED", "2")
    assert name not in (await listed(server, size=1000))[0]
    assert await server.metric("cellstate_sessions_ended_total", model="lstm-text", reason="expired") == before + 1
    again = await server.create("lstm-text", name)
    assert (await server.get(name)).uid == again.uid


async def ended(server: Served) -> bool:
    """Whether a session has expired yet: a family without samples says nothing."""
    try:
        await server.metric("cellstate_sessions_ended_total", model="lstm-text", reason="expired")
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("use", ["call", "open stream", "fork", "export", "reset"])
async def test_uses_renew_the_expiry(server: Served, name: str, use: str) -> None:
    await server.create("lstm-text", name, ttl=Duration(seconds=10))
    clock.turn(6)

    if use == "call":
        await feed(server, name, text("a"))
    elif use == "open stream":
        await responses(server.stubs.inference.ManyToMany(iter([open_many(on_session(name))])))
    elif use == "fork":
        await server.stubs.sessions.ForkSession(ForkSessionRequest(name=name))
    elif use == "export":
        await export(server.stubs, name)
    else:
        await server.stubs.sessions.ResetSession(ResetSessionRequest(name=name))

    renewed = await server.get(name)
    assert (renewed.expire_time, renewed.use_time) == (stamp(clock.now_s + 10), stamp(clock.now_s))
    clock.turn(6)
    assert await server.get(name)
    clock.turn(6)
    assert (await missing(server, name)).reason == "SESSION_EXPIRED"


async def test_reading_and_listing_do_not_renew(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name, ttl=Duration(seconds=10))
    clock.turn(6)

    await listed(server)

    assert (await server.get(name)).expire_time == created.expire_time
    assert (await server.get(name)).expire_time == created.expire_time


async def test_an_absolute_end_is_not_renewed(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name, expire_time=stamp(clock.now_s + 10))
    assert not created.HasField("idle_ttl")
    clock.turn(6)

    await feed(server, name, text("a"))

    assert (await server.get(name)).expire_time == created.expire_time
    clock.turn(5)
    assert (await missing(server, name)).reason == "SESSION_EXPIRED"


async def test_an_open_stream_keeps_its_session(server: Served, name: str) -> None:
    await server.create("gru-series", name, ttl=Duration(seconds=10))
    stream = server.stubs.inference.ManyToMany()
    await stream.write(open_many(on_session(name)))
    await stream.read()

    clock.turn(1000)
    await listed(server)

    await stream.write(chunk(values([1.0])))
    assert (await stream.read()).output.position == 1
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert (await server.get(name)).expire_time == stamp(clock.now_s + 10)
    clock.turn(11)
    assert (await missing(server, name)).reason == "SESSION_EXPIRED"


async def test_a_session_made_as_all_others_expire_lives(server: Served, name: str) -> None:
    await server.create("lstm-text", f"{name}-old")
    clock.turn(2 * 7 * 86400)

    await server.create("lstm-text", name)

    assert await listed(server) == [[name]]
    await feed(server, name, text("a"))


# -- why a session is not there


async def test_a_name_of_another_boot_is_told_as_lost(server: Served) -> None:
    made = (await server.create("lstm-text", "")).name
    boot = made.split("-")[1]
    other = "00000000" if boot != "00000000" else "00000001"

    assert (await missing(server, f"s-{other}-{'0' * 24}")).reason == "SESSION_LOST"
    assert (await missing(server, f"s-{boot}-{'0' * 24}")).reason == "SESSION_NOT_FOUND"
    assert (await missing(server, f"s-{other}-0")).reason == "SESSION_NOT_FOUND"
    assert (await missing(server, "never-there")).reason == "SESSION_NOT_FOUND"


# -- one writer


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
        calls.ManyToOne(iter(many_to_one(on_session(name, stream_token="another"), text("a")))),
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
    told = await refusal(feed(server, f"{name}-none", text("a"), **reference))
    assert told.reason == "SESSION_NOT_FOUND"


async def _drain(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass
    if await stream.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(await stream.code(), await stream.initial_metadata(), await stream.trailing_metadata(), await stream.details())
