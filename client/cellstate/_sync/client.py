"""The client, sync face."""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from cellstate import _calls, _session_calls
from cellstate._stubs import Raw
from cellstate._sync import modes
from cellstate._sync.gateway import Gateway
from cellstate._sync.outputs import Outputs
from cellstate._sync.session import Session
from cellstate._sync.streams import Stream
from cellstate._sync.transport import Transport
from cellstate._tracking import Tracked
from cellstate.connection import DEFAULT_ADDRESS, TLS, Connection, ConnectionOptions
from cellstate.errors import CellstateError, Unavailable
from cellstate.info import ModelInfo, SessionInfo
from cellstate.inputs import Chunks, Input
from cellstate.outputs import Result
from cellstate.programs import CallOptions, GenerationOptions, Program, SessionOptions, StreamOptions

_READY_PAUSE_S = 0.1


class Client:
    """A client of one server. Safe to share between threads; its handles and iterators are not.

    Args:
        address: host:port, unix:path, or any other target that gRPC resolves.
        token: Bearer token. It is not sent over plain text to another machine, unless `insecure_token` is set.
        tls: `TLS(...)`, or None for plain text.
        timeout_s: Deadline of calls that answer once, unless they give their own; None for none. Streams have the deadline that the call gives, or none.
        options: Keepalive, message sizes and the like: see `ConnectionOptions`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token: str | None = None,
        tls: TLS | None = None,
        timeout_s: float | None = 30.0,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        self._transport = Transport(Connection(address, token, tls, timeout_s, **options))

    def one_to_one(self, model: str | Session, value: Input, **options: Unpack[CallOptions]) -> Result:
        """Give one value, get one value. A vector is the features of the one step.

        Args:
            model: A model's name, or a session handle.
            value: The value; see `Input`.
            options: See `CallOptions`.
        """
        return modes.one_to_one(self._transport, model, value, options)

    def many_to_one(self, model: str | Session, inputs: Chunks, **options: Unpack[CallOptions]) -> Result:
        """Give a sequence, get the output of its last step: the next value.

        Args:
            model: A model's name, or a session handle.
            inputs: A whole sequence, or an iterable of chunks, which grpc's thread iterates as the server takes them.
            options: See `CallOptions`. The client's deadline applies to whole sequences only.
        """
        return modes.many_to_one(self._transport, model, inputs, options)

    def one_to_many(self, model: str | Session, value: Input | None = None, **options: Unpack[GenerationOptions]) -> Outputs:
        """Give a value or a prompt, get a generated sequence as it comes.

        Args:
            model: A model's name, or a session handle.
            value: Consumed first. None: a session goes on from its last output, a model begins with its start value.
            options: See `GenerationOptions`.
        """
        return modes.one_to_many(self._transport, model, value, options)

    def many_to_many(self, model: str | Session, inputs: Chunks, **options: Unpack[StreamOptions]) -> Outputs:
        """Give a sequence, get a sequence: the output of each input as it comes.

        Args:
            model: A model's name, or a session handle.
            inputs: A whole sequence, or an iterable of chunks, which grpc's thread iterates as the server takes them.
            options: See `StreamOptions`.
        """
        return modes.many_to_many(self._transport, model, inputs, options)

    def stream(self, model: str | Session, **options: Unpack[StreamOptions]) -> Stream:
        """Open a full-duplex stream of inputs and directives; see `Stream`."""
        return Stream(self._transport, model, options)

    def gateway(self, *, timeout_s: float | None = None) -> Gateway:
        """Open one stream for many sessions, whose steps go together; see `Gateway`.

        Args:
            timeout_s: Seconds after which the stream ends with `DeadlineExceeded`; None for none.
        """
        return Gateway(self._transport, timeout_s)

    def run(self, programs: Sequence[Program], *, timeout_s: float | None = None) -> list[Result | CellstateError]:
        """Run independent programs together, in one call.

        Returns:
            One result or error per program, in their order: each fails or succeeds by itself. A call that is malformed as a whole is refused as a whole, and
            nothing of it runs: two programs on one session, or an input whose rows differ in length.
        """
        return self._transport.unary(_calls.run(programs, timeout_s))

    def models(self) -> list[ModelInfo]:
        """List the loaded models by name."""
        found: list[ModelInfo] = []
        token = ""
        while True:
            page = self._transport.unary(_session_calls.list_models(token, None))
            found += page.items
            token = page.next_token
            if not token:
                return found

    def model(self, name: str) -> ModelInfo:
        """Read one model: its signature, sizes, modes, and what its values depend on."""
        return self._transport.unary(_session_calls.get_model(name, None))

    def session(self, model: str, *, initial_state: Mapping[str, Any] | None = None, keep: bool = False, **options: Unpack[SessionOptions]) -> Session:
        """Return a session that is created when it is entered, and deleted when it is left.

        Args:
            model: A model's name.
            initial_state: Every state tensor of the model by name, [layers, width] each; None: the model's own.
            keep: Leave it on the server when its context is left.
            options: See `SessionOptions`.
        """
        return Session(self._transport, _session_calls.create_session(model, options, initial_state), keep=keep)

    def open_session(self, name: str) -> Session:
        """Return a handle of a session that exists. Leaving its context leaves the session on the server."""
        return Session(self._transport, Tracked(self._transport.unary(_session_calls.get_session(name))), keep=True)

    def sessions(self, filter: str = "") -> Iterator[SessionInfo]:  # noqa: A002 - the contract's word
        """Iterate your sessions by name.

        Args:
            filter: Terms joined by AND: `model="NAME"`, `labels.KEY="VALUE"`, `busy=true|false`. Empty: all.
        """
        token = ""
        while True:
            page = self._transport.unary(_session_calls.list_sessions(filter, token))
            yield from page.items
            token = page.next_token
            if not token:
                return

    def import_session(
        self,
        data: bytes,
        *,
        keep: bool = False,
        allow_other_numerics: bool = False,
        allow_other_model_digest: bool = False,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """Create a session from a snapshot that `Session.export` gave.

        Args:
            data: The snapshot.
            keep: Leave it on the server when its context is left.
            allow_other_numerics: Take a snapshot whose numerics id differs: outputs may then differ in their last bits.
            allow_other_model_digest: Take a snapshot of another model digest, where its state fits.
            options: Settings that differ from the snapshot's; its seed stays.
        """
        call, opening = _session_calls.import_session(options, allow_other_numerics=allow_other_numerics, allow_other_model_digest=allow_other_model_digest)
        info = self._transport.upload(call, _session_calls.import_messages(opening, data))
        return Session(self._transport, Tracked(info), keep=keep)

    def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server answers.

        Raises:
            DeadlineExceeded: It did not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            call = _session_calls.list_models("", max(deadline - time.monotonic(), 0.0))
            try:
                self._transport.unary(call, wait_for_ready=True)
            except Unavailable:
                time.sleep(_READY_PAUSE_S)
            else:
                return

    @property
    def raw(self) -> Raw:
        """The generated stubs, for callers who need messages as they are. They raise grpc's errors, and send no token by themselves."""
        return self._transport.raw

    def close(self) -> None:
        """Close the channel; calls that are running are cancelled."""
        self._transport.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close."""
        self.close()
