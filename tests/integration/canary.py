"""A session in use beside everything that is refused: it must not notice."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from cellstate.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, Session
from tests.integration.stubs import Stubs, chunk, on_session, open_many, text


@dataclass
class Canary:
    """A session with an open stream.

    Attributes:
        name: Its name.
        digest: Of its state.
    """

    stubs: Stubs
    stream: Any
    name: str
    digest: str

    async def assert_untouched(self) -> None:
        """Assert that the server lives, and that the session is busy and has the same bits as before."""
        session = await read_session(self.stubs, self.name)
        assert session.busy
        assert session.state_digest == self.digest

    async def assert_steps(self) -> None:
        """Assert that its stream goes on."""
        before = await read_session(self.stubs, self.name)
        await self.stream.write(chunk(text("o")))
        answer = await self.stream.read()
        assert (answer.output.first_position, answer.output.position) == (before.position, before.position + 1)


@asynccontextmanager
async def canary_on(stubs: Stubs, model: str, name: str = "canary") -> AsyncIterator[Canary]:
    """Hold a session of a text model, some steps in, with an open stream."""
    await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(name=name, model=model, seed=7)))
    stream = stubs.inference.ManyToMany()
    await stream.write(open_many(on_session(name)))
    await stream.write(chunk(text("Hello"), emit=2))
    await stream.read()
    await stream.read()
    yield Canary(stubs, stream, name, (await read_session(stubs, name)).state_digest)
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def read_session(stubs: Stubs, name: str) -> Session:
    """Read a session with its digest."""
    response = await stubs.sessions.GetSession(GetSessionRequest(name=name))
    session: Session = response.session
    return session
