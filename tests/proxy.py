"""A TCP proxy between callers and servers, whose connections tests cut, hold and slow down."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK = 1 << 14


class Proxy:
    """Forwards a local port to another, or each connection to the one that `target` names then (None: to none).

    Attributes:
        port: Where it listens.
        connections: Made so far.
        cuts: Times that open connections were cut.
        reaches: The port that the newest connection goes to; None before the first.
        connected_s: When that was made, on `time.monotonic`.
        delay_s: How long each chunk of data waits, in each direction.
        bytes_per_s: How much passes at most, in each direction of each connection; None for any.
    """

    def __init__(self, target: int | Callable[[], int | None]) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        self.cuts = 0
        self.reaches: int | None = None
        self.connected_s = 0.0
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers_pass = asyncio.Event()
        self._answers_pass.set()
        self._refuses = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def in_use(self) -> bool:
        """Whether a connection is open."""
        return bool(self._open)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._server is not None:
            self._server.close()
        self._answers_pass.set()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections."""
        self.cuts += bool(self._open)
        for writer in list(self._open):
            writer.transport.abort()

    def refuse(self, refuses: bool = True) -> None:
        """Take no connections, or take them again."""
        self._refuses = refuses

    def hold_answers(self) -> None:
        """Keep what the server says from its callers; what they say passes."""
        self._answers_pass.clear()

    def pass_answers(self) -> None:
        """Let it pass again."""
        self._answers_pass.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self.target() if callable(self.target) else self.target
        if self._refuses or target is None:
            writer.transport.abort()
            return
        try:
            to_server = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.transport.abort()
            return
        self.connections += 1
        self.reaches, self.connected_s = target, time.monotonic()
        self._open |= {writer, to_server[1]}
        for source, sink, held in ((reader, to_server[1], False), (to_server[0], writer, True)):
            task = asyncio.ensure_future(self._forward(source, sink, held=held))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, held: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                if held:
                    await self._answers_pass.wait()
                wait_s = self.delay_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0)
                if wait_s:
                    await asyncio.sleep(wait_s)
                sink.write(data)
                await sink.drain()
        self._open.discard(sink)
        sink.transport.abort()
