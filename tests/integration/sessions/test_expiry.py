"""Sessions end when their time runs out, and their owner is told why one is gone."""

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.session_pb2 import (
    ForkSessionRequest,
    ResetSessionRequest,
)
from tests.fake_clock import FakeClock
from tests.integration.serving import Served
from tests.integration.sessions.calls import feed, listed, missing, stamp
from tests.integration.snapshots import export
from tests.integration.stubs import (
    chunk,
    on_session,
    open_many,
    responses,
    text,
    values,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_an_unused_session_expires_and_its_owner_is_told(server: Served, clock: FakeClock, name: str) -> None:
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
async def test_uses_renew_the_expiry(server: Served, clock: FakeClock, name: str, use: str) -> None:
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


async def test_reading_and_listing_do_not_renew(server: Served, clock: FakeClock, name: str) -> None:
    created = await server.create("lstm-text", name, ttl=Duration(seconds=10))
    clock.turn(6)

    await listed(server)

    assert (await server.get(name)).expire_time == created.expire_time
    assert (await server.get(name)).expire_time == created.expire_time


async def test_an_absolute_end_is_not_renewed(server: Served, clock: FakeClock, name: str) -> None:
    created = await server.create("lstm-text", name, expire_time=stamp(clock.now_s + 10))
    assert not created.HasField("idle_ttl")
    clock.turn(6)

    await feed(server, name, text("a"))

    assert (await server.get(name)).expire_time == created.expire_time
    clock.turn(5)
    assert (await missing(server, name)).reason == "SESSION_EXPIRED"


async def test_an_open_stream_keeps_its_session(server: Served, clock: FakeClock, name: str) -> None:
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


async def test_a_session_made_as_all_others_expire_lives(server: Served, clock: FakeClock, name: str) -> None:
    await server.create("lstm-text", f"{name}-old")
    clock.turn(2 * 7 * 86400)

    await server.create("lstm-text", name)

    assert await listed(server) == [[name]]
    await feed(server, name, text("a"))


async def test_a_name_of_another_boot_is_told_as_lost(server: Served) -> None:
    made = (await server.create("lstm-text", "")).name
    boot = made.split("-")[1]
    other = "00000000" if boot != "00000000" else "00000001"

    assert (await missing(server, f"s-{other}-{'0' * 24}")).reason == "SESSION_LOST"
    assert (await missing(server, f"s-{boot}-{'0' * 24}")).reason == "SESSION_NOT_FOUND"
    assert (await missing(server, f"s-{other}-0")).reason == "SESSION_NOT_FOUND"
    assert (await missing(server, "never-there")).reason == "SESSION_NOT_FOUND"
