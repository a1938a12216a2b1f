"""A new version of a model: running sessions stay on theirs, new ones get the new, and nobody goes on with other weights unawares."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.types_pb2 import OUTPUT_FORM_LOGITS
from cellstate_service.settings import EngineSettings
from tests.integration.serving import Served, eventually, serving
from tests.integration.stubs import chunk, on_model, on_session, open_many, options, read_refusal, text
from tests.models_on_disk import write_recurrent


def step(server: Served, target: Any) -> Any:
    return server.stubs.inference.OneToOne(OneToOneRequest(target=target, input=text("a"), output=options(OUTPUT_FORM_LOGITS)))


def replace(models: Path, seed: int) -> None:
    shutil.rmtree(models / "tiny")
    write_recurrent(models / "tiny", hidden_size=16, seed=seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_recurrent(tmp_path / "models" / "tiny", hidden_size=16, seed=1)
    write_recurrent(tmp_path / "models" / "still", hidden_size=16, seed=1)
    return tmp_path / "models"


async def test_sessions_stay_on_their_version_until_they_end(folder: Path) -> None:
    async with serving(folder) as server:
        old = await server.create("tiny", "old", seed=1)
        twin = await server.create("tiny", "twin", seed=1)
        stream = server.stubs.inference.ManyToMany()
        await stream.write(open_many(on_session("old"), output=options(OUTPUT_FORM_LOGITS)))
        await stream.read()
        before = (await step(server, on_model("tiny"))).output
        expected = [(await step(server, on_session("twin"))).output for _ in range(2)]

        replace(folder, 2)
        assert await server.app.fleet.reload() == ["tiny"]

        fresh = await server.create("tiny", "new", seed=1)
        assert fresh.model_digest != old.model_digest == twin.model_digest
        assert (await step(server, on_model("tiny"))).output == (await step(server, on_session("new"))).output != before
        await stream.write(chunk(text("a")))
        assert (await stream.read()).output == expected[0]
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert (await step(server, on_session("old"))).output == expected[1]
        assert await server.app.fleet.reload() == []

        engine = next(iter(server.app.fleet.engines.retired()))
        for name in ("old", "twin"):
            assert engine.alive
            await server.app.sessions.manager.delete("anonymous", name, "")

        async def stopped() -> bool:
            return not engine.alive

        await eventually(stopped)
        await step(server, on_session("new"))


async def test_after_their_time_sessions_of_a_replaced_version_are_refused_with_a_reason(folder: Path) -> None:
    async with serving(folder, engine=EngineSettings(retire_s=0.0, warm_rows=0).model_dump()) as server:
        await server.create("tiny", "old", seed=1)
        stream = server.stubs.inference.ManyToMany()
        await stream.write(open_many(on_session("old")))
        await stream.read()
        replace(folder, 2)
        await server.app.fleet.reload()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(20):
                await stream.read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION

        async def refused() -> bool:
            try:
                await step(server, on_session("old"))
            except grpc.aio.AioRpcError as error:
                told = read_refusal(error)
                assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SNAPSHOT_MISMATCH")
                return True
            return False

        await eventually(refused)


async def test_a_broken_folder_changes_nothing(folder: Path) -> None:
    async with serving(folder) as server:
        (folder / "tiny" / "weights.safetensors").write_bytes(b"broken")
        assert await server.app.fleet.reload() == []
        await step(server, on_model("tiny"))
