"""Short ways to use, read and list sessions."""

from typing import Any

import grpc
import grpc.aio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest
from cellstate.v1.session_pb2 import (
    GetSessionRequest,
    ListSessionsRequest,
    Session,
    UpdateSessionRequest,
)
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS, Sequence
from tests.integration.serving import Served
from tests.integration.stubs import (
    Refusal,
    generation,
    many_to_one,
    on_session,
    options,
    refusal,
    text,
)


async def feed(server: Served, name: str, sequence: Sequence, **reference: Any) -> Any:
    """Consume inputs and return the answer."""
    return await server.stubs.inference.ManyToOne(iter(many_to_one(on_session(name, **reference), sequence)))


def step(server: Served, name: str, **reference: Any) -> Any:
    """Consume one character in one message, so that a refusal meets no message on its way."""
    return server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name, **reference), input=text("a")))


async def generated(server: Served, name: str, steps: int = 12) -> list[int]:
    """Generate tokens in a session."""
    request = OneToManyRequest(target=on_session(name), output=options(OUTPUT_FORM_TOKENS), generation=generation(steps))
    return [token async for answer in server.stubs.inference.OneToMany(request) for token in answer.output.values.tokens.ids]


async def missing(server: Served, name: str) -> Refusal:
    """Read a session that is not there and return what is told; calls are told the same."""
    told = await refusal(server.stubs.sessions.GetSession(GetSessionRequest(name=name)))
    by_call = await refusal(step(server, name))
    assert told.code is by_call.code is grpc.StatusCode.NOT_FOUND
    assert (told.reason, told.metadata) == (by_call.reason, by_call.metadata)
    return told


async def listed(server: Served, query: str = "", size: int = 0) -> list[list[str]]:
    """The names on each page of a listing."""
    pages, token = [], ""
    while True:
        page = await server.stubs.sessions.ListSessions(ListSessionsRequest(filter=query, page_size=size, page_token=token))
        pages.append([session.name for session in page.sessions])
        token = page.next_page_token
        if not token:
            return pages


def stamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds))


async def update(server: Served, name: str, *paths: str, **session: Any) -> Session:
    request = UpdateSessionRequest(session=Session(name=name, **session), update_mask=FieldMask(paths=paths))
    answer: Session = (await server.stubs.sessions.UpdateSession(request)).session
    return answer
