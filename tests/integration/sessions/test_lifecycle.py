"""Create, read, list, change, delete, reset and fork sessions."""

import asyncio
import re
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.model_pb2 import GetModelRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_PERIODIC,
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    InitialState,
    ListSessionsRequest,
    ResetSessionRequest,
    Session,
)
from cellstate.v1.snapshot_pb2 import Snapshot, SnapshotEnvelope
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS
from tests.fake_clock import FakeClock
from tests.integration.serving import Served
from tests.integration.sessions.calls import feed, generated, listed, missing, stamp, step, update
from tests.integration.sessions.conftest import TTL_S
from tests.integration.snapshots import export
from tests.integration.stubs import (
    array,
    chunk,
    generate,
    generation,
    on_session,
    open_many,
    options,
    refusal,
    responses,
    text,
    values,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_session_of_ones_own_name(server: Served, clock: FakeClock, name: str) -> None:
    created = await server.create("lstm-text", name, seed=5, labels={"user": "7", "tier/x": ""})

    model = (await server.stubs.models.GetModel(GetModelRequest(name="lstm-text"))).model
    assert (created.name, created.model, created.owner, created.position, created.seed, created.busy) == (name, "lstm-text", "anonymous", 0, 5, False)
    assert (created.model_digest, created.numerics_id, created.state_bytes) == (model.digest, model.numerics_id, model.state_bytes)
    assert re.fullmatch("[0-9a-f]{32}", created.uid)
    assert dict(created.labels) == {"user": "7", "tier/x": ""}
    assert created.durability == DURABILITY_PERIODIC
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


async def test_listing_goes_in_pages_by_name(server: Served, name: str) -> None:
    names = [f"{name}-{index}" for index in range(5)]
    for index in (3, 1, 4, 0, 2):
        await server.create("pairs" if index % 2 else "lstm-text", names[index], labels={"test": name, "odd": str(index % 2)})

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


async def test_an_update_changes_what_its_mask_names(server: Served, clock: FakeClock, name: str) -> None:
    before = await server.create("lstm-text", name, labels={"a": "b"})

    after = await update(server, name, "ttl", ttl=Duration(seconds=60), labels={"x": "y"})
    assert (after.idle_ttl, after.expire_time, after.labels) == (Duration(seconds=60), stamp(clock.now_s + 60), before.labels)

    after = await update(server, name, "expire_time", "labels", expire_time=stamp(clock.now_s + 90))
    assert (after.HasField("idle_ttl"), after.expire_time, dict(after.labels)) == (False, stamp(clock.now_s + 90), {})

    after = await update(server, name, ttl=Duration(seconds=30), labels={"c": "d"}, durability=DURABILITY_PERIODIC)
    assert (after.idle_ttl, dict(after.labels), after.uid, after.position) == (Duration(seconds=30), {"c": "d"}, before.uid, 0)

    unchanged = await update(server, name)
    assert unchanged == after


async def test_a_deleted_session_is_gone_and_its_name_free(server: Served, name: str) -> None:
    first = await server.create("lstm-text", name)
    await feed(server, name, text("abc"))

    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name, uid=first.uid))

    told = await missing(server, name)
    assert (told.reason, told.metadata["position"]) == ("SESSION_CLOSED", "3")
    assert (await refusal(server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name)))).reason == "SESSION_CLOSED"
    second = await server.create("lstm-text", name)
    assert (second.position, second.uid != first.uid) == (0, True)
    told = await refusal(step(server, name, uid=first.uid))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UID_MISMATCH")


async def test_a_reset_session_is_as_new_under_another_uid(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name, seed=11)
    fresh = (await server.get(name)).state_digest
    first = await generated(server, name)

    reset = (await server.stubs.sessions.ResetSession(ResetSessionRequest(name=name, uid=created.uid))).session

    assert (reset.name, reset.position, reset.seed) == (name, 0, 11)
    assert reset.uid != created.uid
    assert (await server.get(name)).state_digest == fresh
    assert (await refusal(step(server, name, uid=created.uid))).reason == "UID_MISMATCH"
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
        assert await generated(server, fork.name, 5) == expected[max(0, fork.position - 1) :][:5]  # the start value was consumed at position 0


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
