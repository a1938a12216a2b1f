"""Sessions outlive the server: what was answered or promised is there again, and nobody is silently given an older state."""

from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_MEMORY,
    DURABILITY_PERIODIC,
    DURABILITY_SYNC,
    CreateSessionRequest,
    DeleteSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    ResetSessionRequest,
    Session,
    UpdateSessionRequest,
)
from cellstate.v1.types_pb2 import EMIT_NONE, OUTPUT_FORM_TOKENS
from tests.integration.serving import Served, eventually, is_free, serving
from tests.integration.stubs import Refusal, chunk, generate, generation, on_session, open_many, options, refusal, text, values
from tests.integration.surviving.wreck import checkpointed, wreck

SELDOM = {"checkpoint_s": 3600.0}


async def step(server: Served, name: str, character: str = "a", **reference: Any) -> Any:
    return await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, **reference), input=text(character)))


async def generated(server: Served, name: str, steps: int, **reference: Any) -> list[int]:
    request = OneToManyRequest(target=on_session(name, **reference), output=options(OUTPUT_FORM_TOKENS), generation=generation(steps))
    return [token async for answer in server.stubs.inference.OneToMany(request) for token in answer.output.values.tokens.ids]


async def gone(server: Served, name: str) -> Refusal:
    return await refusal(server.stubs.sessions.GetSession(GetSessionRequest(name=name)))


async def rest(stream: Any) -> list[Any]:
    answers = []
    while (answer := await stream.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


def lasting(session: Session) -> Session:
    """A session without what a restart may change."""
    copy = Session()
    copy.CopyFrom(session)
    copy.ClearField("safe_position")
    return copy


async def test_an_orderly_restart_takes_nothing(models: Path, tmp_path: Path) -> None:
    store = {"path": tmp_path / "kept.db"} | SELDOM
    async with serving(models, store=store) as server:
        for name, durability in (("m", DURABILITY_MEMORY), ("p", DURABILITY_PERIODIC), ("s", DURABILITY_SYNC)):
            await server.create("lstm-text", name, durability=durability, seed=3, labels={"who": name}, ttl=Duration(seconds=500))
            await step(server, name)
            await generated(server, name, 7)
        before = [await server.get(name) for name in "mps"]
        expected = [await generated(server, name, 20) for name in "mps"]
        for name in "mps":
            await is_free(server, name)
        whole = [await server.get(name) for name in "mps"]
    assert [session.position for session in before] == [8, 8, 8]
    async with serving(models, store=store) as server:
        assert [lasting(await server.get(name)) for name in "mps"] == [lasting(session) for session in whole]
        assert [session.name for session in (await server.stubs.sessions.ListSessions(ListSessionsRequest())).sessions] == ["m", "p", "s"]
        after = [await generated(server, name, 20) for name in "mps"]
        assert after != expected
        assert await server.metric("cellstate_returns_total", how="clean") == 3


@pytest.mark.parametrize("model", ["lstm-text", "gru-series", "rnn_tanh-text"])
async def test_after_a_crash_a_session_stands_where_it_was_saved_and_says_so(models: Path, tmp_path: Path, model: str) -> None:
    async with serving(models, store=SELDOM) as server:
        await server.create(model, "p", seed=3)
        first = text("a") if model.endswith("text") else values([[0.5]])
        request = OneToOneRequest(target=on_session("p"), input=first)
        for _ in range(5):
            await server.stubs.inference.OneToOne(request)
        await checkpointed(server)
        saved = await server.get("p")
        answers = [await server.stubs.inference.OneToOne(request) for _ in range(3)]
        left = await wreck(server, tmp_path)
    async with serving(models, store={"path": left}) as server:
        recovered = await server.get("p")
        assert (recovered.state_digest, recovered.position, recovered.uid) == (saved.state_digest, 5, saved.uid)
        told = await refusal(server.stubs.inference.OneToOne(request))
        assert (told.reason, told.metadata["position"]) == ("SESSION_ROLLED_BACK", "5")
        told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_session("p", position=8), input=first)))
        assert (told.reason, told.metadata["position"]) == ("SESSION_ROLLED_BACK", "5")
        again = [await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session("p", position=5), input=first))]
        again += [await server.stubs.inference.OneToOne(request) for _ in range(2)]
        assert [answer.output for answer in again] == [answer.output for answer in answers]
        assert await server.metric("cellstate_returns_total", how="recovered") == 1
        assert await server.metric("cellstate_rollbacks_told_total", model=model) == 2


async def test_outputs_of_synchronous_sessions_are_never_taken_back(models: Path, tmp_path: Path) -> None:
    async with serving(models, store=SELDOM) as server:
        for index in range(4):
            await server.create("lstm-text", f"s{index}", durability=DURABILITY_SYNC, seed=index)
        streams = []
        for index in range(4):
            stream = server.stubs.inference.ManyToMany()
            await stream.write(open_many(on_session(f"s{index}"), output=options(OUTPUT_FORM_TOKENS)))
            await stream.write(generate(generation(100_000)))
            streams.append(stream)
        received = [0] * 4
        for round_ in range(60):
            for index, stream in enumerate(streams):
                answer = await stream.read()
                received[index] = max(received[index], answer.output.position)
            if round_ == 40:
                at_that_moment = list(received)
                left = await wreck(server, tmp_path)
        for stream in streams:
            stream.cancel()
    async with serving(models, store={"path": left}) as server:
        for index in range(4):
            assert (await server.get(f"s{index}")).position >= at_that_moment[index] > 0
            await step(server, f"s{index}")


async def test_what_was_lost_on_the_way_is_answered_again_after_a_crash(models: Path, tmp_path: Path) -> None:
    async with serving(models, store=SELDOM) as server:
        await server.create("lstm-text", "p", seed=3)
        await step(server, "p", position=0)
        tokens = await generated(server, "p", 30, position=1)
        await checkpointed(server)
        left = await wreck(server, tmp_path)
        following = await generated(server, "p", 10)
    async with serving(models, store={"path": left}) as server:
        assert await generated(server, "p", 30, position=1) == tokens
        assert (await server.get("p")).position == 31
        assert await server.metric("cellstate_repeats_answered_total", model="lstm-text") == 1
        assert await generated(server, "p", 10, position=31) == following


async def test_a_caller_that_kept_a_log_gets_what_it_had_not(models: Path, tmp_path: Path) -> None:
    """Rolled back to 12 with outputs up to 40: nothing of them comes again, what follows is as it would have been."""
    async with serving(models, store=SELDOM) as server:
        await server.create("lstm-text", "p", seed=3)
        stream = server.stubs.inference.ManyToMany()
        await stream.write(open_many(on_session("p", position=0), output=options(OUTPUT_FORM_TOKENS)))
        await stream.write(chunk(text("hello"), emit=EMIT_NONE))
        await stream.write(generate(generation(7)))
        position = 0
        while position < 12:
            position = max(position, (answer := await stream.read()).output.position, answer.completion.position)
        await checkpointed(server)
        left = await wreck(server, tmp_path)
        await stream.write(chunk(text("world"), emit=EMIT_NONE))
        await stream.write(generate(generation(50)))
        await stream.done_writing()
        tokens = [token for answer in await rest(stream) for token in answer.output.values.tokens.ids]
        assert len(tokens) == 50
    async with serving(models, store={"path": left}) as server:
        received = 40
        stream = server.stubs.inference.ManyToMany()
        await stream.write(open_many(on_session("p", acknowledged_position=received), output=options(OUTPUT_FORM_TOKENS)))
        opened = (await stream.read()).opened
        assert (opened.position, opened.safe_position) == (12, 12)
        await stream.write(chunk(text("world"), emit=EMIT_NONE, position=12))
        await stream.write(generate(generation(50)))
        await stream.done_writing()
        answers = await rest(stream)
        assert min(answer.output.first_position for answer in answers if answer.output.values.tokens.ids) == received
        assert [token for answer in answers for token in answer.output.values.tokens.ids] == tokens[received - 17 :]


async def test_changes_outlive_a_crash(models: Path, tmp_path: Path) -> None:
    async with serving(models, store=SELDOM) as server:
        for name in ("deleted", "reset", "updated"):
            await server.create("lstm-text", name, seed=3)
            await step(server, name)
        await checkpointed(server)
        await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name="deleted"))
        fresh = (await server.stubs.sessions.ResetSession(ResetSessionRequest(name="reset"))).session
        request = UpdateSessionRequest(session=Session(name="updated", labels={"a": "b"}, durability=DURABILITY_SYNC))
        await server.stubs.sessions.UpdateSession(request)
        left = await wreck(server, tmp_path)
    async with serving(models, store={"path": left}) as server:
        assert (await gone(server, "deleted")).reason == "SESSION_CLOSED"
        reset = await server.get("reset")
        assert (reset.uid, reset.position) == (fresh.uid, 0)
        updated = await server.get("updated")
        assert (dict(updated.labels), updated.durability, updated.position) == ({"a": "b"}, DURABILITY_SYNC, 1)


async def test_a_session_that_was_stored_and_is_of_the_memory_by_now_is_lost_too(models: Path, tmp_path: Path) -> None:
    async with serving(models, store=SELDOM) as server:
        await server.create("lstm-text", "m")
        await server.stubs.sessions.UpdateSession(UpdateSessionRequest(session=Session(name="m", durability=DURABILITY_MEMORY)))
        await step(server, "m")
        left = await wreck(server, tmp_path)
    async with serving(models, store={"path": left}) as server:
        assert (await gone(server, "m")).reason == "SESSION_LOST"
        assert (await gone(server, "m")).reason == "SESSION_LOST"
        await server.create("lstm-text", "m")


async def test_a_session_of_the_memory_is_lost_with_it(models: Path, tmp_path: Path) -> None:
    async with serving(models, store=SELDOM) as server:
        names = [(await server.create("lstm-text", name, durability=DURABILITY_MEMORY)).name for name in ("", "mine")]
        for name in names:
            await step(server, name)
        left = await wreck(server, tmp_path)
    async with serving(models, store={"path": left}) as server:
        for name in names:
            told = await gone(server, name)
            assert (told.reason, "position" in told.metadata) == ("SESSION_LOST", False)
        assert (await gone(server, "another")).reason == "SESSION_NOT_FOUND"
        await server.create("lstm-text", "mine")


async def test_safe_positions_are_told_as_snapshots_are_written(models: Path, tmp_path: Path) -> None:
    async with serving(models, store={"checkpoint_s": 0.05}) as server:
        await server.create("lstm-text", "p", seed=3)
        stream = server.stubs.inference.ManyToMany()
        await stream.write(open_many(on_session("p", position=0)))
        assert (await stream.read()).opened.safe_position == 0
        safe: list[int] = []
        position = 0
        while len(safe) < 3:
            await stream.write(chunk(text("a")))
            answer = await stream.read()
            position = answer.output.position
            if answer.HasField("safe_position"):
                safe.append(answer.safe_position)
                assert answer.safe_position <= position
        assert safe == sorted(set(safe))
        stream.cancel()

        async def secured() -> bool:
            session = await server.get("p")
            return session.safe_position == session.position

        await eventually(secured)


async def test_a_call_that_made_a_session_is_known_again_after_the_servers_death(models: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    create = CreateSessionRequest(session=Session(model="lstm-text", name="made", seed=1), request_id="one")
    reset = ResetSessionRequest(name="made", request_id="two")
    async with serving(models) as server:
        made = (await server.stubs.sessions.CreateSession(create)).session
        fork = ForkSessionRequest(name="made", session=Session(name="copy"), request_id="three")
        copy = (await server.stubs.sessions.ForkSession(fork)).session
        left = await wreck(server, folders[0])
    async with serving(models, store={"path": left}) as server:
        assert (await server.stubs.sessions.CreateSession(create)).session.uid == made.uid
        assert (await server.stubs.sessions.ForkSession(fork)).session.uid == copy.uid
        create.request_id = "another"
        assert (await refusal(server.stubs.sessions.CreateSession(create))).code is grpc.StatusCode.ALREADY_EXISTS
        again = (await server.stubs.sessions.ResetSession(reset)).session
        assert again.uid != made.uid
        left = await wreck(server, folders[1])
    async with serving(models, store={"path": left}) as server:
        await step(server, "made", position=0)
        told = (await server.stubs.sessions.ResetSession(reset)).session
        assert (told.uid, told.position) == (again.uid, 1)
