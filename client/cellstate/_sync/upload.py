"""A sequence that is consumed on a session for one output, over as many connections as it takes, sync face."""

import threading
import time
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any

import grpc

from cellstate._exchange import Call
from cellstate._sync.duplex import Pump, requests
from cellstate._sync.transport import Transport, to_error
from cellstate._upload_core import UploadCore
from cellstate.errors import CellstateError
from cellstate.outputs import Result


class Upload:
    """Sends the chunks of a caller's iterable, which is read once, and waits for the answer."""

    def __init__(self, transport: Transport, core: UploadCore, chunks: Iterable[Any]) -> None:
        self._transport = transport
        self._core = core
        self._pump = Pump(chunks, self._take, self._all_taken)
        self._queueing = threading.Lock()  # what is queued is in the log, and is queued once: for this connection or for the next
        self._taken = False
        self._open(core.call, [core.opening])

    def result(self) -> Result:
        """Return the result.

        Raises:
            CellstateError: The call failed.
        """
        call = self._core.call
        try:
            while (lost := self._wait()) is not None:
                error = self._transport.take_up(call, self._core, lost, time.sleep)
                if error is not None:
                    raise _Failed(error)
                with self._queueing:
                    self._outbox.put(None)
                    self._open(*self._core.again())
            return self._core.decode(self._future.result())
        except _Failed as failed:
            raise call.failed(failed.error) from None
        except BaseException as error:  # the caller's own, or Ctrl-C: steps may have been taken
            self._future.cancel()
            raise call.cut(error) from None
        finally:
            self._pump.stop()
            self._outbox.put(None)

    def _wait(self) -> CellstateError | None:
        """Wait for the answer; return why the call was lost.

        Raises:
            BaseException: What the caller's iterable raised.
        """
        error = None
        try:
            self._future.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as raised:
            error = to_error(raised)
        if self._pump.error is not None:
            raise self._pump.error
        return error

    def _open(self, call: Call[Any], messages: Iterable[Any]) -> None:
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        for message in messages:
            self._outbox.put(message)
        if self._taken:
            self._outbox.put(None)
        self._future = self._transport.future(call, requests(self._outbox, self._pump.want))

    def _take(self, chunk: Any) -> None:
        with self._queueing:
            for message in self._core.send(chunk):
                self._outbox.put(message)

    def _all_taken(self) -> None:
        with self._queueing:
            self._taken = True
            if self._pump.error is None:
                self._outbox.put(None)
            else:
                self._future.cancel()


class _Failed(Exception):  # noqa: N818 - told apart from errors of the caller's own, which may be of any class
    def __init__(self, error: CellstateError) -> None:
        self.error = error
