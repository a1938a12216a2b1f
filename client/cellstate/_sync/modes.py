"""The four modes on a model or a session: what `Client` and `Session` share."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

from cellstate import _calls
from cellstate._convert import split
from cellstate._exchange import Uploader
from cellstate._generation_core import GenerationCore
from cellstate._stream_core import StreamCore
from cellstate._sync.duplex import Duplex
from cellstate._sync.outputs import Answers, Outputs
from cellstate._sync.transport import Transport
from cellstate._sync.upload import Upload
from cellstate._tracking import Handle
from cellstate._upload_core import UploadCore
from cellstate.inputs import Chunks, Input
from cellstate.outputs import Result
from cellstate.programs import CallOptions, GenerationOptions, StreamOptions


def one_to_one(transport: Transport, model: str | Handle, value: Input, options: CallOptions) -> Result:
    """Take one step."""
    return transport.unary(_calls.one_to_one(model, value, options))


def many_to_one(transport: Transport, model: str | Handle, inputs: Chunks, options: CallOptions) -> Result:
    """Consume a sequence."""
    whole = split(inputs)
    call, uploader = _calls.many_to_one(model, options, whole=whole is not None)
    chunks: Iterable[Any] = cast("Iterable[Any]", inputs) if whole is None else whole
    if call.tracked is None:
        return transport.upload(call, _messages(uploader, chunks))
    return Upload(transport, UploadCore(call, uploader.opening, transport.going_on(call)), chunks).result()


def one_to_many(transport: Transport, model: str | Handle, value: Input | None, options: GenerationOptions) -> Outputs:
    """Generate a sequence."""
    if isinstance(model, Handle):
        core = GenerationCore(model, value, options, transport.connection.resume_s)
        return Outputs(Duplex(transport, core, core.asked), lambda: _generation(transport, model, value, options))
    return Outputs(_generation(transport, model, value, options))


def many_to_many(transport: Transport, model: str | Handle, inputs: Chunks, options: StreamOptions) -> Outputs:
    """Answer inputs as they arrive."""
    whole = split(inputs)
    chunks: Iterable[Any] = cast("Iterable[Any]", inputs) if whole is None else whole
    if isinstance(model, Handle):
        return Outputs(Duplex(transport, StreamCore(model, options, transport.connection.resume_s), chunks=chunks))
    call, uploader, reader = _calls.many_to_many(model, options)
    answers, source = transport.duplex(call, _messages(uploader, chunks))
    return Outputs(Answers(call, reader, answers, source))


def _generation(transport: Transport, model: str | Handle, value: Input | None, options: GenerationOptions) -> Answers:
    call, reader = _calls.one_to_many(model, value, options)
    return Answers(call, reader, transport.download(call))


def _messages(uploader: Uploader, chunks: Iterable[Any]) -> Iterator[Any]:
    for chunk in chunks:
        yield from uploader.messages(chunk)
    yield from uploader.end()
