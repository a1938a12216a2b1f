"""One server for all tests of this folder, and two sessions beside them that must not notice."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from cellstate.v1.session_pb2 import CreateSessionRequest, Session
from cellstate_service.app import start
from cellstate_service.settings import LimitsSettings, Settings, StoreSettings
from tests.integration.bad_input.cases import MAX_MESSAGE_BYTES, MAX_PROGRAMS, MAX_STEPS, SUBJECT
from tests.integration.canary import Canary, canary_on, read_session
from tests.integration.stubs import Stubs, many_to_one, text
from tests.models_on_disk import write_recurrent


@pytest.fixture(scope="package")
def models_and_a_steep_one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, and one whose numbers overflow."""
    folder = tmp_path_factory.mktemp("models-and-a-steep-one")
    for model in models.iterdir():
        (folder / model.name).symlink_to(model)
    numbers: dict[str, Any] = {"kind": "numeric", "features": 1, "normalization": {"mean": [0.0], "scale": [1e-6]}}
    write_recurrent(folder / "steep", name="steep", cell="rnn_relu", input_kind="numeric", hidden_size=20, input=numbers)
    return folder


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def stubs(models_and_a_steep_one: Path) -> AsyncIterator[Stubs]:
    """Stubs of a server with small limits and a session `subject`, five steps in."""
    limits = LimitsSettings(max_input_steps=MAX_STEPS, max_programs=MAX_PROGRAMS, max_message_bytes=MAX_MESSAGE_BYTES)
    store = StoreSettings(kind="memory")  # other durability than MEMORY is bad input there
    app = await start(Settings(port=0, metrics_port=None, models=models_and_a_steep_one, grace_s=0.1, limits=limits, store=store))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        stubs = Stubs(channel)
        await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(name="subject", model="lstm-text", seed=3)))
        await stubs.inference.ManyToOne(iter(many_to_one(SUBJECT, text("Hello"))))
        yield stubs
    await app.stop()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def canary(stubs: Stubs) -> AsyncIterator[Canary]:
    """A session with an open stream, which still steps when all is over."""
    async with canary_on(stubs, "lstm-text") as canary:
        yield canary
        await canary.assert_steps()


@pytest_asyncio.fixture(loop_scope="package", autouse=True)
async def untouched(stubs: Stubs, canary: Canary) -> AsyncIterator[None]:
    """After each test the sessions beside it have the same bits as before."""
    before = await read_session(stubs, "subject")
    yield
    await canary.assert_untouched()
    after = await read_session(stubs, "subject")
    assert (after.state_digest, after.uid, after.busy, dict(after.labels)) == (before.state_digest, before.uid, False, dict(before.labels))
