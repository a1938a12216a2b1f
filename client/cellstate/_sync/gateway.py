"""Many sessions on one stream, sync face."""

import threading
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from cellstate._gateway_core import GatewayCore, close_message, on_channel, pack, step_message
from cellstate._stream_core import StreamCore
from cellstate._sync.transport import Transport, to_error
from cellstate._tracking import Handle
from cellstate.errors import CellstateError
from cellstate.inputs import Input
from cellstate.outputs import Completion, Emit, Output
from cellstate.programs import ChannelOptions, DirectiveOptions

T = TypeVar("T")


class Channel:
    """One session, or one fresh state, on a gateway's stream: a stream of its own, whose errors end it alone. Made by `Gateway.open`.

    Inputs and directives go in, outputs come out, in the order in which they were asked for. `send` and `generate` only queue; who produces faster
    than the model computes reads in between: the server fails a channel that has too much waiting.
    """

    def __init__(self, gateway: "Gateway", number: int, core: StreamCore) -> None:
        self._gateway = gateway
        self._number = number
        self._core = core

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
            emit: Which of its outputs are answered, where it differs from the channel's.
        """
        with self._gateway._writing:
            self._gateway._put(*(on_channel(self._number, message) for message in self._core.send(value, emit)))

    def generate(self, **options: Unpack[DirectiveOptions]) -> None:
        """Generate after all that was sent before; `until_completion` reads what comes."""
        with self._gateway._writing:
            self._gateway._put(on_channel(self._number, self._core.generate(options)))

    def stop(self) -> int:
        """End the generation that is running or waiting to run, and return the position where that took effect. Outputs that come before it stay to be read."""
        with self._gateway._writing:
            self._gateway._put(on_channel(self._number, self._core.stop()))
        position = self._gateway._wait(self._core, self._core.stops.popleft, lambda: bool(self._core.stops))
        if position is None:
            raise RuntimeError("the channel ended before the stop took effect")
        return position

    def receive(self) -> Output | Completion | None:
        """Return the next output, or the completion of a generation, waiting for it; None where the channel has ended.

        Raises:
            CellstateError: The channel failed, or the stream did.
        """
        return self._gateway._wait(self._core, self._core.events.popleft, lambda: bool(self._core.events))

    def until_completion(self) -> Iterator[Output]:
        """Iterate outputs up to the end of the generation that runs, and leave `completion` behind."""
        while isinstance(event := self.receive(), Output):
            yield event

    def close(self) -> int:
        """End the channel once all that was sent on it is answered, and return the position. What was not read yet stays to be read.

        Raises:
            CellstateError: The channel failed, or the stream did.
        """
        with self._gateway._writing:
            if not self._core.half_closed:
                self._gateway._put(close_message(self._number, self._core))
        self._gateway._wait(self._core, lambda: None, lambda: False)
        return self.position

    def __iter__(self) -> Iterator[Output]:
        """Return itself."""
        return self

    def __next__(self) -> Output:
        """Return the next output, waiting for it; completions are passed over."""
        while (event := self.receive()) is not None:
            if isinstance(event, Output):
                return event
        raise StopIteration


class Gateway:
    """Many sessions on one stream: `open` gives a `Channel` for each, `step` takes a step on many of them by one message up and one down.

    A channel's error ends that channel alone. Safe to share between threads. Leaving the context before the end cancels what is left;
    `finish` ends all channels in their turn.
    """

    def __init__(self, transport: Transport, timeout_s: float | None) -> None:
        self._core = GatewayCore(timeout_s)
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._arrived = threading.Condition()
        self._reading = False
        self._writing = threading.RLock()
        self._answers, _ = transport.duplex(self._core.call, _drain(self._outbox))

    def open(self, model: str | Handle, **options: Unpack[ChannelOptions]) -> Channel:
        """Open a channel, and wait until it is open.

        Args:
            model: A model's name, for a fresh state that is dropped with the channel; or a session handle.
            options: See `ChannelOptions`.

        Raises:
            CellstateError: It is refused: no such model or session, busy, or the server has as many calls as allowed.
        """
        with self._writing, self._arrived:
            number, core, message = self._core.open(model, options)
            self._put(message)
        self._wait(core, lambda: True, lambda: core.opened)
        return Channel(self, number, core)

    def step(self, inputs: Mapping[Channel, Input]) -> dict[Channel, Output | CellstateError]:
        """Take one step on each of many channels, by one message up and, where the server is ready with all, one down.

        For channels on which nothing else is outstanding: what `send` and `generate` asked for is received first.

        Args:
            inputs: One step for each channel: a vector is the features of the one step. Of several steps, the last one's output is returned.

        Returns:
            The output, or the error, of each: each channel fails or succeeds by itself. A channel that failed is closed; open another one.
        """
        results: dict[Channel, Output | CellstateError] = {}
        messages = []
        with self._writing:
            for channel, value in inputs.items():
                try:
                    messages.append(step_message(channel._number, channel._core, value))
                except CellstateError as error:
                    results[channel] = error
            self._put(*messages)
        for channel in inputs:
            if channel not in results:
                results[channel] = _output(channel)
        return results

    def finish(self) -> None:
        """Close all channels once all that was sent is answered, and wait for the stream's end. What was not read yet stays to be read.

        Raises:
            CellstateError: The stream failed.
        """
        with self._writing:
            if not self._core.half_closed:
                self._core.half_closed = True
                self._outbox.put(None)
        self._wait(self._core, lambda: None, lambda: False)

    def cancel(self) -> None:
        """End the stream with all its channels now. On sessions, steps already taken stay taken."""
        if self._core.cut():
            self._outbox.put(None)
            self._answers.cancel()

    def close(self) -> None:
        """Cancel the stream where it has not ended."""
        self.cancel()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Cancel the stream where nobody holds it or a channel of it any more."""
        if hasattr(self, "_answers"):
            self.cancel()

    def _put(self, *messages: Any) -> None:
        if messages:
            self._outbox.put(messages)

    def _wait(self, core: StreamCore | GatewayCore, take: Callable[[], T], ready: Callable[[], bool]) -> T | None:
        """Read messages until `ready`, then `take`. One thread reads for all that wait; None where the channel, or the stream, has ended."""
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: ready() or core.ended or not self._reading)
                if ready():
                    return take()
                if core.ended:
                    if core.error is not None:
                        raise core.error
                    return None
                self._reading = True
            self._read()

    def _read(self) -> None:
        """Read one message, and tell all that wait."""
        response, error, interrupted = None, None, True
        try:
            response = next(self._answers, None)
            interrupted = False
        except grpc.RpcError as raised:
            error = to_error(raised)
            interrupted = False
        finally:
            with self._arrived:
                self._reading = False
                if response is not None:
                    for _ in self._core.feed(response):
                        pass
                elif not interrupted:
                    self._core.finish(error)
                    self._outbox.put(None)
                self._arrived.notify_all()


def _output(channel: Channel) -> Output | CellstateError:
    try:
        event = channel.receive()
    except CellstateError as error:
        return error
    if not isinstance(event, Output):
        raise RuntimeError("the channel was closed, or generates: step takes channels on which nothing else is outstanding")
    return event


def _drain(outbox: "SimpleQueue[Any]") -> Iterator[Any]:
    """Yield what is to be sent; what waits together goes together."""
    while (messages := outbox.get()) is not None:
        waiting = list(messages)
        try:
            while (messages := outbox.get_nowait()) is not None:
                waiting += messages
        except Empty:
            pass
        yield from pack(waiting)
        if messages is None:
            return
