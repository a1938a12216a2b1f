"""Streams that carry one session: what reads them beside what answers them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable

import structlog

from cellstate.v1 import inference_pb2
from cellstate_service.engine.outbox import Emitted, Item
from cellstate_service.engine.request import Emit, Request, StopTaken
from cellstate_service.errors import CellstateError, InvalidInput, Reason
from cellstate_service.rpc.encode import fill_completion, fill_nothing, fill_output
from cellstate_service.rpc.intake import Intake, unfold
from cellstate_service.rpc.programs import Opening
from cellstate_service.rpc.status import unexpected
from cellstate_service.sessions.call import Call

_log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def pumping(call: Call, pump: Awaitable[None]) -> AsyncIterator[None]:
    """Run what reads a stream beside what answers it. Its error takes its turn behind all that it handed over before."""

    async def guarded() -> None:
        try:
            await pump
        except CellstateError as error:
            call.submit(Request(call.outbox, refusal=error))
        except Exception:
            fault = unexpected()
            _log.exception("unexpected fault in a stream", log_id=fault.metadata["log_id"])
            call.fail(fault)

    task = asyncio.ensure_future(guarded())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def pump_many_to_many(first: inference_pb2.ManyToManyRequest, requests: AsyncIterator[inference_pb2.ManyToManyRequest], intake: Intake) -> None:
    """Hand over what comes on a stream of one session, until it is half-closed; a stream whose inputs are not consumed yet is not read any further.

    Raises:
        InvalidInput: A message is refused.
    """
    call = intake.opening.call
    further = unfold(first)
    next(further)  # the opening itself
    for message in further:
        await _take(call, intake, message)
    async for message in requests:
        if message.more:
            for each in unfold(message):
                await _take(call, intake, each)
        else:
            await _take(call, intake, message)
    call.half_close()


async def _take(call: Call, intake: Intake, message: inference_pb2.ManyToManyRequest) -> None:
    if message.channel:
        text = "channel: a stream that opened channel 0 carries that one only; a gateway's stream begins with another channel"
        raise InvalidInput(text, Reason.STREAM_PROTOCOL, field="channel")
    if not call.has_room:
        await call.room()
    await intake.take(message)


def field_of(item: Item) -> int | None:
    """Return the number of the response's field that tells an item; None where nothing does: the end of a chunk whose outputs were answered."""
    if isinstance(item, Emitted):
        return _OUTPUT
    if isinstance(item, StopTaken):
        return _STOPPED
    if item.generates:
        return _COMPLETION
    return _OUTPUT if item.emit is Emit.NONE else None


def fill(response: inference_pb2.ManyToManyResponse, item: Item, opening: Opening) -> None:
    """Put an item that has a field into a response."""
    if isinstance(item, Emitted):
        fill_output(response.output, item, opening.form, opening.call.model)
    elif isinstance(item, StopTaken):
        response.stopped.position = item.position
    elif item.generates:
        fill_completion(response.completion, item)
    else:
        fill_nothing(response.output, item)
    if (safe := opening.call.secured_news()) is not None:
        response.safe_position = safe


_OUTPUT = inference_pb2.ManyToManyResponse.OUTPUT_FIELD_NUMBER
_COMPLETION = inference_pb2.ManyToManyResponse.COMPLETION_FIELD_NUMBER
_STOPPED = inference_pb2.ManyToManyResponse.STOPPED_FIELD_NUMBER
