"""A real server on a free port, over models that are written for the test session."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cellstate_service.app import App, start
from cellstate_service.clock import Clock
from cellstate_service.settings import Settings, StoreSettings
from tests.integration.stubs import Stubs
from tests.models_on_disk import write_feed_forward, write_recurrent

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")

StartServer = Callable[..., Awaitable[App]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: of each cell one that takes text and one that takes numbers, and some with a twist."""
    folder = tmp_path_factory.mktemp("models")
    for index, cell in enumerate(CELLS):
        write_recurrent(folder / f"{cell}-text", name=f"{cell}-text", cell=cell, num_layers=2, hidden_size=24, seed=index)
        write_recurrent(folder / f"{cell}-series", name=f"{cell}-series", cell=cell, input_kind="numeric", hidden_size=20, seed=10 + index)
    write_recurrent(folder / "pairs", name="pairs", input_kind="numeric", features=2, hidden_size=33, num_layers=2, proj_size=8, seed=20)
    write_recurrent(folder / "ids", name="ids", vocabulary_size=50, hidden_size=16, seed=21)
    write_recurrent(folder / "nostart", name="nostart", hidden_size=16, seed=22, start=None)
    write_recurrent(folder / "counts", name="counts", input_kind="numeric", features=3, outputs=2, hidden_size=16, seed=23)
    write_feed_forward(folder / "flowers", name="flowers", hidden_sizes=[16], features=4, outputs=3, labels=["a", "b", "c"], seed=30)
    return folder


@pytest.fixture
async def start_server(models: Path, tmp_path: Path) -> AsyncIterator[StartServer]:
    """Start servers with settings of one's own; they are stopped at the end."""
    apps: list[App] = []
    stores = (tmp_path / f"sessions-{number}.db" for number in itertools.count())

    async def make(clock: Clock | None = None, **settings: Any) -> App:
        values: dict[str, Any] = {"port": 0, "metrics_port": 0, "models": models, "grace_s": 0.5, "store": StoreSettings(path=next(stores))} | settings
        app = await start(Settings(**values), clock)
        apps.append(app)
        return app

    yield make
    for app in apps:
        await app.stop()


@pytest.fixture
async def app(start_server: StartServer) -> App:
    """A server with default settings."""
    return await start_server()


@pytest.fixture
async def stubs(app: App) -> AsyncIterator[Stubs]:
    """Raw stubs of a channel to it."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        yield Stubs(channel)
