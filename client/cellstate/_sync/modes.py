"""The four modes on a model or a session: what `Client` and `Session` share."""

from collections.abc import Iterable, Iterator
from typing import Any

from cellstate import _calls
from cellstate._convert import split
from cellstate._exchange import Uploader
from cellstate._sync.streams import Outputs
from cellstate._sync.transport import Transport
from cellstate._tracking import Handle
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
    return transport.upload(call, _messages(uploader, inputs if whole is None else whole))


def one_to_many(transport: Transport, model: str | Handle, value: Input | None, options: GenerationOptions) -> Outputs:
    """Generate a sequence."""
    call, reader = _calls.one_to_many(model, value, options)
    regenerating = _calls.regenerating(call, reader, transport.connection.resume_s)
    return Outputs(call, reader, transport.download(call), again=transport.download, regenerating=regenerating)


def many_to_many(transport: Transport, model: str | Handle, inputs: Chunks, options: StreamOptions) -> Outputs:
    """Answer inputs as they arrive."""
    whole = split(inputs)
    call, uploader, reader = _calls.many_to_many(model, options)
    answers, source = transport.duplex(call, _messages(uploader, inputs if whole is None else whole))
    return Outputs(call, reader, answers, source)


def _messages(uploader: Uploader, chunks: Iterable[Any] | Any) -> Iterator[Any]:
    for chunk in chunks:
        yield from uploader.messages(chunk)
    yield from uploader.end()
