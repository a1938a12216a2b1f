"""Servers that share a Redis, for tests, and what is often asked of them."""

import contextlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_MEMORY,
    DURABILITY_PERIODIC,
    DURABILITY_SYNC,
    GetSessionRequest,
    ListSessionsRequest,
)
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS
from tests.integration.serving import Served, eventually, serving
from tests.integration.stubs import generation, on_session, options, text
from tests.redis_server import RedisServer

LEASE_S = 1.0
DURABILITIES = (DURABILITY_MEMORY, DURABILITY_PERIODIC, DURABILITY_SYNC)


class Replicas:
    """Servers on one Redis."""

    def __init__(self, models: Path, redis: RedisServer, stack: AsyncExitStack) -> None:
        self._models = models
        self._redis = redis
        self._stack = stack

    async def add(self, port: int | None = None, **store: Any) -> Served:
        """Start one, that reaches Redis by a port of its own where one is given."""
        url = self._redis.url if port is None else f"redis://127.0.0.1:{port}/0"
        values = {"kind": "redis", "url": url, "lease_s": LEASE_S, "timeout_s": 1.0, **store}
        return await self._stack.enter_async_context(serving(self._models, store=values))


async def step(server: Served, name: str, **reference: Any) -> Any:
    """Take a step and return what it gives."""
    return (await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, **reference), input=text("a")))).output


async def generated(server: Served, name: str, steps: int) -> list[int]:
    request = OneToManyRequest(target=on_session(name), output=options(OUTPUT_FORM_TOKENS), generation=generation(steps))
    return [token async for answer in server.stubs.inference.OneToMany(request) for token in answer.output.values.tokens.ids]


async def names(server: Served) -> list[str]:
    return [session.name for session in (await server.stubs.sessions.ListSessions(ListSessionsRequest())).sessions]


def get(server: Served, name: str) -> Any:
    return server.stubs.sessions.GetSession(GetSessionRequest(name=name))


async def lapsed(server: Served) -> None:
    """Wait until a server's lease has lapsed."""
    lease = server.app.sessions._lease

    async def lapses() -> bool:
        return not lease.runs

    await eventually(lapses)


async def runs(server: Served) -> None:
    """Wait until a server has its lease again."""
    lease = server.app.sessions._lease

    async def has() -> bool:
        return bool(lease.runs)

    await eventually(has)


async def steps_again(server: Served, name: str) -> Any:
    """Take a step as soon as the store can be used again."""
    taken: list[Any] = []

    async def steps() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            taken.append(await step(server, name))
        return bool(taken)

    await eventually(steps)
    return taken[0]
