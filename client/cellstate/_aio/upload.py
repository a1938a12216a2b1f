"""A sequence that is consumed on a session for one output, over as many connections as it takes, asyncio face."""

import asyncio
from collections.abc import AsyncIterable, Iterable
from typing import Any

import grpc

from cellstate._aio.duplex import Pump, requests
from cellstate._aio.transport import Transport, being_cancelled, lost_call, to_error
from cellstate._exchange import Call
from cellstate._upload_core import UploadCore
from cellstate.errors import CellstateError
from cellstate.outputs import Result


class Upload:
    """Sends the chunks of a caller's iterable, which is read once, and waits for the answer."""

    def __init__(self, transport: Transport, core: UploadCore, chunks: AsyncIterable[Any] | Iterable[Any]) -> None:
        self._transport = transport
        self._core = core
        self._pump = Pump(chunks, self._take, self._all_taken)
        self._taken = False
        self._open(core.call, [core.opening])

    async def result(self) -> Result:
        """Return the result.

        Raises:
            CellstateError: The call failed.
        """
        call = self._core.call
        try:
            while (lost := await self._wait()) is not None:
                error = await self._transport.take_up(call, self._core, lost)
                if error is not None:
                    raise call.failed(error)
                self._outbox.put_nowait(None)
                self._open(*self._core.again())
            return self._core.decode(await self._answer)
        except asyncio.CancelledError as error:
            self._answer.cancel()
            if error is self._pump.error:
                raise
            raise self._transport.cancelled(call, error) from None
        finally:
            self._pump.stop()
            self._outbox.put_nowait(None)

    async def _wait(self) -> CellstateError | None:
        """Wait for the answer; return why the call was lost.

        Raises:
            Exception: What the caller's iterable raised.
        """
        error = None
        try:
            await self._answer
        except grpc.RpcError as raised:
            error = to_error(raised)
        except asyncio.CancelledError:
            if being_cancelled() or (self._pump.error is None and self._transport.closed):
                raise
            error = lost_call()
        if self._pump.error is not None:
            raise self._core.call.cut(self._pump.error) from None
        return error

    def _open(self, call: Call[Any], messages: Iterable[Any]) -> None:
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        for message in messages:
            self._outbox.put_nowait(message)
        if self._taken:
            self._outbox.put_nowait(None)
        self._answer = self._transport.exchange(call, requests(self._outbox, self._pump.want))

    def _take(self, chunk: Any) -> None:
        for message in self._core.send(chunk):
            self._outbox.put_nowait(message)

    def _all_taken(self) -> None:
        self._taken = True
        if self._pump.error is None:
            self._outbox.put_nowait(None)
        else:
            self._answer.cancel()
