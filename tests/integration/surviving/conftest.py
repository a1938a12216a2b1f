"""A Redis server, and servers that share it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.integration.serving import link_models
from tests.integration.surviving.replicas import Replicas
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def some(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_models(models, tmp_path_factory.mktemp("some"), "lstm-text", "gru-series")


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


@pytest.fixture
async def replicas(some: Path, redis: RedisServer) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(some, redis, stack)
