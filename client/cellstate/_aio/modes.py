"""The four modes on a model or a session: what `AsyncClient` and `AsyncSession` share."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from cellstate import _calls
from cellstate._aio.duplex import Duplex
from cellstate._aio.outputs import Answers, AsyncOutputs
from cellstate._aio.transport import Transport
from cellstate._aio.upload import Upload
from cellstate._convert import split
from cellstate._exchange import Uploader
from cellstate._generation_core import GenerationCore
from cellstate._stream_core import StreamCore
from cellstate._tracking import Handle
from cellstate._upload_core import UploadCore
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
    chunks: Any = inputs if whole is None else whole
    if call.tracked is None:
        return await transport.upload(call, _messages(uploader, chunks))
    return await Upload(transport, UploadCore(call, uploader.opening, transport.going_on(call)), chunks).result()


def one_to_many(transport: Transport, model: str | Handle, value: Input | None, options: GenerationOptions) -> AsyncOutputs:
    """Generate a sequence."""
    if isinstance(model, Handle):
        core = GenerationCore(model, value, options, transport.connection.resume_s)
        return AsyncOutputs(Duplex(transport, core, core.asked), lambda: _generation(transport, model, value, options))
    return AsyncOutputs(_generation(transport, model, value, options))


def many_to_many(transport: Transport, model: str | Handle, inputs: AsyncChunks, options: StreamOptions) -> AsyncOutputs:
    """Answer inputs as they arrive."""
    whole = split(inputs)
    chunks: Any = inputs if whole is None else whole
    if isinstance(model, Handle):
        return AsyncOutputs(Duplex(transport, StreamCore(model, options, transport.connection.resume_s), chunks=chunks))
    call, uploader, reader = _calls.many_to_many(model, options)
    answers, source = transport.duplex(call, _messages(uploader, chunks))
    return AsyncOutputs(Answers(call, reader, answers, source))


def _generation(transport: Transport, model: str | Handle, value: Input | None, options: GenerationOptions) -> Answers:
    call, reader = _calls.one_to_many(model, value, options)
    return Answers(call, reader, transport.download(call))


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
