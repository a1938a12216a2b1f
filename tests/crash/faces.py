"""The two faces of the client library behind one way to call them, so that each mode is written once: asyncio as it is, and the sync face in threads."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import cellstate


class Face(Protocol):
    """Calls the library.

    Attributes:
        client: An `AsyncClient` or a `Client`.
    """

    client: Any

    async def do(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        """Call a function of the library and return what it gives."""
        ...

    def each(self, outputs: Any) -> AsyncIterator[cellstate.Output]:
        """Iterate what an outputs object gives."""
        ...

    async def close(self) -> None:
        """Close the client."""
        ...


class AsyncFace:
    """The asyncio face."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client: Any = cellstate.AsyncClient(address, **options)

    async def do(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        result = function(*values, **options)
        return await result if inspect.isawaitable(result) else result

    async def each(self, outputs: Any) -> AsyncIterator[cellstate.Output]:
        async for output in outputs:
            yield output

    async def close(self) -> None:
        await self.client.close()


class ThreadFace:
    """The sync face, each call in a thread of the pool."""

    def __init__(self, address: str, pool: ThreadPoolExecutor, **options: Any) -> None:
        self.client: Any = cellstate.Client(address, **options)
        self._pool = pool

    async def do(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *values, **options))

    async def each(self, outputs: Any) -> AsyncIterator[cellstate.Output]:
        while (output := await self.do(next, outputs, None)) is not None:
            yield output

    async def close(self) -> None:
        await self.do(self.client.close)
