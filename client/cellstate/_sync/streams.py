"""What is read and written, sync face: `Stream`."""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar, Unpack

from cellstate._stream_core import StreamCore
from cellstate._sync.duplex import Duplex
from cellstate._sync.transport import Transport
from cellstate._tracking import Handle
from cellstate.inputs import Input
from cellstate.outputs import Completion, Emit, Output
from cellstate.programs import DirectiveOptions, StreamOptions

T = TypeVar("T")


class Stream:
    """A full-duplex stream: inputs and directives go in, outputs come out, in the order in which they were asked for.

    On a session it goes on by itself where the connection is lost, or the server dies and comes again: each output once, in order.

    `send`, `generate` and `acknowledge` only queue; who produces faster than the model computes reads in between. One thread may read while others
    write. Leaving the context before the end cancels what is left: to finish, call `half_close` and read to the end.
    """

    def __init__(self, transport: Transport, model: str | Handle, options: StreamOptions) -> None:
        self._duplex = Duplex(transport, StreamCore(model, options, transport.connection.resume_s))
        self._core = self._duplex.core
        self._arrived = threading.Condition()
        self._reading = False
        self._writing = threading.RLock()

    @property
    def position(self) -> int:
        """The last position heard of."""
        return self._core.position

    @property
    def completion(self) -> Completion | None:
        """How the last generation that was read ended; None before."""
        return self._core.reader.completion

    def send(self, value: Input, *, emit: Emit | str | None = None) -> None:
        """Send one chunk of input: one or more steps.

        Args:
            value: The chunk; see `Input`.
            emit: Which of its outputs are answered, where it differs from the stream's.
        """
        with self._writing:
            self._duplex.put(lambda: self._core.send(value, emit))

    def generate(self, **options: Unpack[DirectiveOptions]) -> None:
        """Generate after all that was sent before; `until_completion` reads what comes."""
        with self._writing:
            self._duplex.put(lambda: [self._core.generate(options)])

    def stop(self) -> int:
        """End the generation that is running or waiting to run, and return the position where that took effect. Outputs that come before it stay to be read."""
        with self._writing:
            self._duplex.put(lambda: [self._core.stop()])
            position = self._wait(self._core.stops.popleft, lambda: bool(self._core.stops))
        if position is None:
            raise RuntimeError("the stream ended before the stop took effect")
        return position

    def acknowledge(self, position: int | None = None) -> None:
        """Tell up to where outputs were received, so that the server need not keep what lies before; None: all that arrived."""
        with self._writing:
            self._duplex.put(lambda: [self._core.acknowledge(position)])

    def half_close(self) -> None:
        """Say that nothing more will be sent: what was asked is finished, then the stream ends."""
        with self._writing:
            self._duplex.half_close()

    def receive(self) -> Output | Completion | None:
        """Return the next output, or the completion of a generation, waiting for it; None where the stream has ended.

        Raises:
            CellstateError: The stream failed.
        """
        return self._wait(self._core.events.popleft, lambda: bool(self._core.events))

    def until_completion(self) -> Iterator[Output]:
        """Iterate outputs up to the end of the generation that runs, and leave `completion` behind."""
        while isinstance(event := self.receive(), Output):
            yield event

    def cancel(self) -> None:
        """End the stream now; iteration ends. On a session, steps already taken stay taken."""
        self._duplex.cancel()

    def close(self) -> None:
        """Cancel the stream where it has not ended."""
        self.cancel()

    def __iter__(self) -> Iterator[Output]:
        """Return itself."""
        return self

    def __next__(self) -> Output:
        """Return the next output, waiting for it; completions are passed over."""
        while (event := self.receive()) is not None:
            if isinstance(event, Output):
                return event
        raise StopIteration

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Cancel the stream where nobody holds it any more."""
        if hasattr(self, "_duplex"):
            self.cancel()

    def _wait(self, take: Callable[[], T], ready: Callable[[], bool]) -> T | None:
        """Read messages until `ready`, then `take`. One thread reads for all that wait; None where the stream has ended."""
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: ready() or self._core.ended or not self._reading)
                if ready():
                    return take()
                if self._core.ended:
                    if self._core.error is not None:
                        raise self._core.error
                    return None
                self._reading = True
            self._read()

    def _read(self) -> None:
        """Read one message, and tell all that wait."""
        try:
            self._duplex.read()
        finally:
            with self._arrived:
                self._reading = False
                self._arrived.notify_all()
