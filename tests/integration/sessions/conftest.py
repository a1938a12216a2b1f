"""One server for all tests of this folder, with a clock that they turn."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from cellstate_service.app import start
from cellstate_service.settings import Settings, StoreSettings
from tests.fake_clock import FakeClock
from tests.integration.serving import Served, link_models
from tests.integration.stubs import Stubs

TTL_S = 3600
numbers = itertools.count()


@pytest.fixture(scope="package")
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory, clock: FakeClock) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("sessions"), "lstm-text", "gru-series", "pairs")
    app = await start(Settings(port=0, metrics_port=0, models=folder, grace_s=0.5, store=StoreSettings(path=folder / "sessions.db")), clock)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        yield Served(app, Stubs(channel), folder)
    await app.stop()


@pytest.fixture
def name() -> str:
    """A name that no other test has."""
    return f"session-{next(numbers)}"
