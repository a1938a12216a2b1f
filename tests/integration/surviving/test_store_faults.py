"""A store that cannot be written or read: clear errors, no wrong answers, and things go on when it can again."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_SYNC,
    CreateSessionRequest,
    DeleteSessionRequest,
    ExportSessionRequest,
    GetSessionRequest,
    ImportSessionOpen,
    ImportSessionRequest,
    Session,
)
from cellstate_service.app import start
from cellstate_service.sessions.keeper import Secured
from cellstate_service.settings import Settings, StoreSettings
from tests.integration.serving import Served, eventually, serving
from tests.integration.stubs import on_session, refusal, text
from tests.integration.surviving.wreck import checkpointed, store_of, wreck
from tests.models_on_disk import write_recurrent


def step(server: Served, name: str, **reference: Any) -> Any:
    return server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, **reference), input=text("a")))


async def pragma(server: Served, statement: str) -> Any:
    store = store_of(server)
    return await store._run(lambda: store._file.database.execute(statement).fetchone())


@asynccontextmanager
async def full_disk(server: Served) -> AsyncIterator[None]:
    """No page more for the file."""
    (pages,) = await pragma(server, "PRAGMA page_count")
    await pragma(server, f"PRAGMA max_page_count = {pages}")
    yield
    await pragma(server, "PRAGMA max_page_count = 1000000000")


async def test_a_full_disk_stops_what_must_be_stored_and_nothing_else(models: Path) -> None:
    async with serving(models, store={"checkpoint_s": 0.05}) as server:
        await server.create("lstm-text", "p", seed=1)
        await server.create("lstm-text", "s", seed=1, durability=DURABILITY_SYNC)
        await step(server, "s")
        async with full_disk(server):
            for number in range(50):  # as long as there is room in the pages that the file has
                told = await asyncio.gather(server.create("lstm-text", f"more-{number}"), return_exceptions=True)
                if isinstance(told[0], BaseException):
                    break
            told = await refusal(server.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text", name="another"))))
            assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert "disk is full" in told.message
            for _ in range(20):
                await step(server, "p")
        await eventually_steps(server, "s")
        assert (await server.create("lstm-text", "another")).position == 0

        async def saved() -> bool:
            session = await server.get("p")
            return session.safe_position == session.position == 20

        await eventually(saved)


async def eventually_steps(server: Served, name: str) -> None:
    async def steps() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await step(server, name)
            return True
        return False

    await eventually(steps)


async def test_an_output_that_cannot_be_secured_is_not_answered_and_not_lost(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(models, store={"checkpoint_s": 3600.0}) as server:
        await server.create("lstm-text", "s", seed=1, durability=DURABILITY_SYNC)
        await server.create("lstm-text", "other", seed=1)
        expected = [(await step(server, "other")).output for _ in range(2)]
        assert (await step(server, "s", position=0)).output == expected[0]
        await pragma(server, "PRAGMA query_only = 1")
        told = await refusal(step(server, "s", position=1))
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        await pragma(server, "PRAGMA query_only = 0")
        assert (await step(server, "s", position=1)).output == expected[1], "applied once, and answered now"
        assert (await server.get("s")).position == 2
        assert await server.metric("cellstate_store_errors_total", operation="save") >= 1


async def test_a_damaged_snapshot_is_told_and_can_be_deleted(models: Path, tmp_path: Path) -> None:
    async with serving(models) as server:
        for name in ("torn", "whole"):
            await server.create("lstm-text", name, seed=1)
            await step(server, name)
        await checkpointed(server)
        left = await wreck(server, tmp_path)
    with contextlib.closing(sqlite3.connect(left)) as database, database:
        (data,) = database.execute("SELECT data FROM sessions WHERE name = 'torn'").fetchone()
        torn = bytearray(data)
        torn[len(torn) // 2] ^= 1
        database.execute("UPDATE sessions SET data = ? WHERE name = 'torn'", (bytes(torn),))
    async with serving(models, store={"path": left}) as server:
        told = await refusal(step(server, "torn", position=1))
        assert (told.code, told.reason) == (grpc.StatusCode.DATA_LOSS, "SNAPSHOT_CORRUPT")
        told = await refusal(server.stubs.sessions.GetSession(GetSessionRequest(name="torn")))
        assert told.code is grpc.StatusCode.DATA_LOSS
        await step(server, "whole", position=1)
        await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name="torn"))
        await server.create("lstm-text", "torn")


async def test_a_session_of_another_version_of_the_model_is_refused_and_can_be_taken_along(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_recurrent(old / "tiny", hidden_size=16, seed=1)
    write_recurrent(new / "tiny", hidden_size=16, seed=2)
    path = tmp_path / "kept.db"
    async with serving(old, store={"path": path}) as server:
        await server.create("tiny", "kept", seed=1)
        await step(server, "kept")
    async with serving(new, store={"path": path}) as server:
        told = await refusal(step(server, "kept"))
        assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SNAPSHOT_MISMATCH")
        assert (await server.get("kept")).position == 1
        data = b"".join([chunk.data async for chunk in server.stubs.sessions.ExportSession(ExportSessionRequest(name="kept"))])
        opening = ImportSessionOpen(session=Session(name="moved"), allow_other_model_digest=True, allow_other_numerics=True)
        moved = await server.stubs.sessions.ImportSession(iter([ImportSessionRequest(open=opening), ImportSessionRequest(data=data)]))
        assert moved.session.position == 1
        await step(server, "moved")
    async with serving(old, store={"path": path}) as server:
        await step(server, "kept", position=1)


async def test_two_servers_do_not_share_a_file(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept.db"
    async with serving(models, store={"path": path}):
        with pytest.raises(ValueError, match="another server"):
            await start(Settings(port=0, metrics_port=None, models=models, store=StoreSettings(path=path)))


async def test_every_call_that_waits_for_one_save_is_told(models: Path) -> None:
    """One that was superseded while it waited, too: else its caller would wait without end."""
    async with serving(models, store={"checkpoint_s": 3600.0}) as server:
        await server.create("lstm-text", "s", seed=1, durability=DURABILITY_SYNC)
        await step(server, "s")
        sessions = server.app.sessions
        session = sessions._book.find("", "s") or sessions._book.residents()[0]
        told: list[tuple[str, object]] = []
        for who in ("old", "new"):
            sessions._keeper.secure(session, Secured(lambda position, who=who: told.append((who, position)), lambda error, who=who: told.append((who, error))))

        async def both() -> bool:
            return len(told) == 2

        await eventually(both)
        assert told == [("old", 1), ("new", 1)]
