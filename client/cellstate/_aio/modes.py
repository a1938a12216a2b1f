"""The four modes on a model or a session: what `AsyncClient` and `AsyncSession` share."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from cellstate import _calls
from cellstate._aio.streams import AsyncOutputs
from cellstate._aio.transport import Transport
from cellstate._convert import split
from cellstate._exchange import Uploader
from cellstate._tracking import Handle
from cellstate.inputs import AsyncChunks, Input
from cellstate.outputs import Result
from cellstate.programs import CallOptions, GenerationOptions, StreamOptions


async def one_to_one(transport: Transport, model: str | Handle, value: Input, options: CallOptions) -> Result:
    """Take one step."""
    return await transport.unary(_calls.one_to_one(model, value, options))


async def many_to_one(transport: Transport, model: str | Handle, inputs: AsyncChunks, options: CallOptions) -> Result:
    """Consume a sequence."""
    whole = split(inputs)
    call, uploader = _calls.many_to_one(model, options, whole=whole is not None)
    return await transport.upload(call, _messages(uploader, inputs if whole is None else whole))


def one_to_many(transport: Transport, model: str | Handle, value: Input | None, options: GenerationOptions) -> AsyncOutputs:
    """Generate a sequence."""
    call, reader = _calls.one_to_many(model, value, options)
    regenerating = _calls.regenerating(call, reader, transport.connection.resume_s)
    return AsyncOutputs(call, reader, transport.download(call), again=transport.download, regenerating=regenerating)


def many_to_many(transport: Transport, model: str | Handle, inputs: AsyncChunks, options: StreamOptions) -> AsyncOutputs:
    """Answer inputs as they arrive."""
    whole = split(inputs)
    call, uploader, reader = _calls.many_to_many(model, options)
    answers, source = transport.duplex(call, _messages(uploader, inputs if whole is None else whole))
    return AsyncOutputs(call, reader, answers, source)


async def _messages(uploader: Uploader, chunks: Any) -> AsyncIterator[Any]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            for message in uploader.messages(chunk):
                yield message
    else:
        for chunk in chunks:
            for message in uploader.messages(chunk):
                yield message
    for message in uploader.end():
        yield message
