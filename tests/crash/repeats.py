"""Duplicates: requests sent raw a second time, at once or later, as a network or a proxy might. They are answered again or refused, never applied twice.

That one was not applied is seen by what follows: any step too many changes all outputs after it. What is compared here is an answer that came again.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

import cellstate
from cellstate._aio.transport import to_error
from cellstate._convert import from_output
from cellstate._resume import can_go_on
from cellstate.outputs import join_outputs
from cellstate.v1 import inference_pb2, session_pb2, types_pb2
from tests.crash.lives import Life
from tests.crash.records import Exchange

REMEMBERED = 4
LIMIT_S = 20.0
REFUSED = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass
class Sent:
    """A request and how it was answered; where the library has `acknowledged` all of that, the server need not keep it."""

    method: str
    request: Any
    exchange: Exchange
    acknowledged: bool


class Repeats:
    """Sends duplicates through connections of its own.

    Args:
        clients: One for each door.
    """

    def __init__(self, clients: list[cellstate.AsyncClient]) -> None:
        self._clients = clients
        self._sent: dict[str, deque[Sent]] = {}

    def remember(self, life: Life, method: str, request: Any, exchange: Exchange, *, acknowledged: bool = False) -> None:
        """Keep a request that was answered in full. It has the position at which it began."""
        self._sent.setdefault(life.transcript.name, deque(maxlen=REMEMBERED)).append(Sent(method, request, exchange, acknowledged))

    def forget(self, life: Life) -> None:
        self._sent.pop(life.transcript.name, None)

    async def send(self, life: Life) -> None:
        """Send one again: mostly the newest, sometimes one from long ago. Returns once the server is through with it."""
        sent = self._sent.get(life.transcript.name)
        if not sent:
            return
        chosen = sent[-1] if life.random.random() < 0.7 else life.random.choice(sent)
        client = self._clients[life.random.randrange(len(self._clients))]
        life.tally.repeats_sent += 1
        try:
            outputs = await self._answers(client, chosen)
        except grpc.aio.AioRpcError as error:
            life.tally.repeats_refused += error.code() in REFUSED
            if can_go_on(to_error(error)) or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                await self._until_free(client, life)
            elif error.code() not in REFUSED:
                life.tally.wrong.append(f"{life.transcript.name}: a duplicate was refused with {error.code().name}: {error.details()}")
            return
        life.tally.repeats_answered += 1
        now = _content([(output.first_position, output.position, output.data) for output in outputs])
        before = _content([piece for piece in chosen.exchange.pieces if piece[1] > now[0]], now[0])
        if before != now and not (chosen.acknowledged and now[-1] is None):
            life.tally.wrong.append(f"{life.transcript.name}: a duplicate of {chosen.method} was answered otherwise: {now!r:.200}, first {before!r:.200}")

    async def _answers(self, client: cellstate.AsyncClient, sent: Sent) -> list[cellstate.Output]:
        stub = getattr(client.raw.inference, sent.method)
        form = cellstate.Form(sent.exchange.form)
        if sent.method == "OneToOne":
            return [from_output((await stub(sent.request, timeout=LIMIT_S)).output, form)]
        answers = stub(_as_sent(sent.request), timeout=LIMIT_S)
        return [from_output(response.output, form) async for response in answers if response.output.HasField("values")]

    async def _until_free(self, client: cellstate.AsyncClient, life: Life) -> None:
        """Wait until what is left of a duplicate does not hold the session any more: nobody but this harness would call in between."""
        until_s = time.monotonic() + LIMIT_S
        request = session_pb2.GetSessionRequest(name=life.transcript.name)
        while time.monotonic() < until_s:
            try:
                if not (await client.raw.sessions.GetSession(request, timeout=5.0)).session.busy:
                    return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return
            await asyncio.sleep(0.1)


async def _as_sent(request: inference_pb2.OneToManyRequest) -> AsyncIterator[inference_pb2.ManyToManyRequest]:
    """Yield a generation as the library sends it on a session."""
    opening = inference_pb2.ManyToManyOpen(target=request.target, output=request.output, emit=types_pb2.EMIT_NONE)
    yield inference_pb2.ManyToManyRequest(open=opening)
    if request.HasField("input"):
        yield inference_pb2.ManyToManyRequest(input=inference_pb2.InputChunk(values=request.input))
    yield inference_pb2.ManyToManyRequest(generate=inference_pb2.GenerateDirective(generation=request.generation))


def _content(pieces: Any, first: int = 0) -> tuple[Any, ...]:
    """Return what came from a position on, however it was cut into messages: of what a caller acknowledged, the server keeps nothing."""
    outputs = [cellstate.Output(_form(data), data, since, after) for since, after, data in pieces if data is not None]
    if not outputs:
        return first, 0, None
    joined = join_outputs(outputs)
    skipped = max(first - joined.first_position, 0)
    data: Any = joined.data
    return joined.first_position + skipped, joined.position, data[skipped:].tobytes() if isinstance(data, np.ndarray) else data[skipped:]


def _form(data: Any) -> cellstate.Form:
    return cellstate.Form.TEXT if isinstance(data, str) else cellstate.Form.VALUES
