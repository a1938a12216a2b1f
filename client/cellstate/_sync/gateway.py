"""Many sessions on one stream, sync face."""

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self, TypeVar, Unpack

from cellstate._gateway_core import GatewayCore, on_channel, step_messages
from cellstate._stream_core import StreamCore
from cellstate._sync.carrier import Carrier
from cellstate._sync.transport import Transport
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

    def __init__(self, gateway: "Gateway", core: StreamCore) -> None:
        self._gateway = gateway
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
        with self._gateway._carrier.writing:
            self._gateway._carrier.put(*(on_channel(self._core, message) for message in self._core.send(value, emit)))

    def generate(self, **options: Unpack[DirectiveOptions]) -> None:
        """Generate after all that was sent before; `until_completion` reads what comes."""
        with self._gateway._carrier.writing:
            self._gateway._carrier.put(on_channel(self._core, self._core.generate(options)))

    def stop(self) -> int:
        """End the generation that is running or waiting to run, and return the position where that took effect. Outputs that come before it stay to be read."""
        with self._gateway._carrier.writing:
            self._gateway._carrier.put(on_channel(self._core, self._core.stop()))
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
        self._gateway._carrier.close(self._core)
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

    A channel's error ends that channel alone. Where the connection is lost, or the server dies and comes again, channels on sessions go on by
    themselves; those on models fail. Safe to share between threads. Leaving the context before the end cancels what is left;
    `finish` ends all channels in their turn.
    """

    def __init__(self, transport: Transport, timeout_s: float | None) -> None:
        self._core = GatewayCore(timeout_s, transport.connection.resume_s)
        self._carrier = Carrier(transport, self._core)
        self._reading = False

    def open(self, model: str | Handle, **options: Unpack[ChannelOptions]) -> Channel:
        """Open a channel, and wait until it is open.

        Args:
            model: A model's name, for a fresh state that is dropped with the channel; or a session handle.
            options: See `ChannelOptions`.

        Raises:
            CellstateError: It is refused: no such model or session, busy, or the server has as many calls as allowed.
        """
        with self._carrier.writing:
            core, message = self._core.open(model, options)
            self._carrier.put(message)
        self._wait(core, lambda: True, lambda: core.opened)
        return Channel(self, core)

    def step(self, inputs: Mapping[Channel, Input]) -> dict[Channel, Output | CellstateError]:
        """Take one step on each of many channels, by one message up and, where the server is ready with all, one down.

        For channels on which nothing else is outstanding: what `send` and `generate` asked for is received first.

        Args:
            inputs: One step for each channel: a vector is the features of the one step. Of several steps, the last one's output is returned.

        Returns:
            The output, or the error, of each: each channel fails or succeeds by itself. A channel that failed is closed; open another one.
        """
        with self._carrier.writing:
            messages, errors = step_messages({channel._core: value for channel, value in inputs.items()})
            self._carrier.put(*messages)
        results: dict[Channel, Output | CellstateError] = {}
        for channel in inputs:
            error = errors.get(channel._core)
            results[channel] = _output(channel) if error is None else error
        return results

    def finish(self) -> None:
        """Close all channels once all that was sent is answered, and wait for the stream's end. What was not read yet stays to be read.

        Raises:
            CellstateError: The stream failed.
        """
        self._carrier.finish()
        self._wait(self._core, lambda: None, lambda: False)

    def cancel(self) -> None:
        """End the stream with all its channels now. On sessions, steps already taken stay taken."""
        self._carrier.cancel()

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
        if hasattr(self, "_carrier"):
            self.cancel()

    def _wait(self, core: StreamCore | GatewayCore, take: Callable[[], T], ready: Callable[[], bool]) -> T | None:
        """Read messages until `ready`, then `take`. One thread reads for all that wait; None where the channel, or the stream, has ended."""
        while True:
            with self._carrier.arrived:
                self._carrier.arrived.wait_for(lambda: ready() or core.ended or not self._reading)
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
        try:
            self._carrier.read()
        finally:
            with self._carrier.arrived:
                self._reading = False
                self._carrier.arrived.notify_all()


def _output(channel: Channel) -> Output | CellstateError:
    try:
        event = channel.receive()
    except CellstateError as error:
        return error
    if not isinstance(event, Output):
        raise RuntimeError("the channel was closed, or generates: step takes channels on which nothing else is outstanding")
    return event
