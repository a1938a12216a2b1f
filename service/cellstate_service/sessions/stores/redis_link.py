"""The connection to a Redis server: how long is waited for it, when it is tried again, and what its errors mean."""

import asyncio
import ssl
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from cellstate_service.sessions.stores.store import StoreAwayError, StoreError

T = TypeVar("T")
Argument = str | int | float | bytes
CONNECTIONS = 16
RETRIES = 2
BATCH = 256
"""Calls in one round trip."""
USABLE = "redis://[[user]:password@]host[:port][/database], or rediss:// for TLS"
BROKEN = (exceptions.RedisError, OSError, TimeoutError)
"""What is raised where Redis cannot be used."""
REFUSES = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
AWAY = (exceptions.ConnectionError, exceptions.TimeoutError, TimeoutError, OSError)
"""What is raised where it may be used later; redis-py counts what refuses among it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a script."""

    script: str
    keys: Sequence[str]
    arguments: Sequence[Argument]


class RedisLink:
    """Calls a Redis server; connects when it has to, again after a connection broke.

    Args:
        url: Where it is.
        timeout_s: For connecting, and for each answer; a call fails after twice that at the latest.

    Raises:
        StoreError: The URL cannot be read.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._limit_s = 2 * timeout_s
        # A call that timed out is not tried again: that would take as long again. A connection that broke often just was old.
        retry = Retry(ExponentialBackoff(cap=0.25, base=0.02), RETRIES, supported_errors=(exceptions.ConnectionError,))
        try:
            self._password = urlsplit(url).password
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                socket_keepalive=True,
                health_check_interval=30,
                retry=retry,
                protocol=2,
            )
        except (ValueError, TypeError):
            # What was raised may have a part of the password in it.
            raise StoreError(f"the URL of the Redis server cannot be read: it is to be {USABLE}; in the password %2F stands for / and so on") from None
        given = pool.connection_kwargs
        self._place = str(given.get("path") or f"{given.get('host', 'localhost')}:{given.get('port', 6379)}")
        self.client: redis.asyncio.Redis = redis.asyncio.Redis.from_pool(pool)
        self._scripts: dict[str, Any] = {}

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def call(self, call: Call) -> Any:
        """Run a script and return its answer.

        Raises:
            StoreError: The server cannot be used. Whether the script ran is not known.
        """
        return await self.told(self._script(call.script)(keys=list(call.keys), args=list(call.arguments)))

    async def together(self, calls: Sequence[Call]) -> list[Any]:
        """Run many scripts in few round trips and return their answers.

        Raises:
            StoreError: The server cannot be used. Which of the scripts ran is not known.
        """
        answers: list[Any] = []
        for first in range(0, len(calls), BATCH):
            async with self.client.pipeline(transaction=False) as pipeline:
                for call in calls[first : first + BATCH]:
                    await self._script(call.script)(keys=list(call.keys), args=list(call.arguments), client=pipeline)
                batch = await self.told(pipeline.execute(raise_on_error=False))
            for answer in batch:
                if isinstance(answer, Exception):
                    raise self.explained(answer) from answer
            answers += batch
        return answers

    async def told(self, answer: Awaitable[Any]) -> Any:
        """Wait for an answer, for a while.

        Raises:
            StoreError: The server cannot be used.
        """
        try:
            async with asyncio.timeout(self._limit_s):
                return await cancellable(answer)
        except BROKEN as error:
            raise self.explained(error) from error

    def explained(self, error: Exception) -> StoreError:
        """Return the error that says what is wrong and what to do."""
        text = str(error) or type(error).__name__
        if self._password:
            text = text.replace(self._password, "***")
        away = isinstance(error, AWAY) and not isinstance(error, REFUSES) and not _is_untrusted(error)
        return (StoreAwayError if away else StoreError)(f"the Redis server at {self._place} {_meaning(error)} ({text})")

    def _script(self, text: str) -> Any:
        if text not in self._scripts:
            self._scripts[text] = self.client.register_script(text)
        return self._scripts[text]


async def cancellable(answer: Awaitable[T]) -> T:
    """Wait for an answer; end as cancelled where that was asked meanwhile.

    redis-py waits by `asyncio.wait_for`, which before Python 3.12 drops a cancellation that comes as it is done: whoever cancelled would wait without end.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    value = await answer
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return value


_MEANINGS: Sequence[tuple[tuple[type[Exception], ...], str]] = (
    (REFUSES, "refuses this server: put into the URL a user and a password that may use its keys, scripts and channels"),
    ((exceptions.BusyLoadingError,), "is still reading its data: it can be used when it has"),
    ((exceptions.TimeoutError, TimeoutError), "did not answer in time: see whether it is stopped, overloaded or cut off; it is tried again by itself"),
    ((exceptions.OutOfMemoryError,), "has no memory left: raise its maxmemory"),
    ((exceptions.ReadOnlyError,), "is a replica: name the primary"),
    ((exceptions.ConnectionError, OSError), "cannot be reached: start it, or correct the URL; it is tried again by itself"),
)


def _is_untrusted(error: Exception) -> bool:
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in (error, error.__cause__, error.__context__))


def _meaning(error: Exception) -> str:
    if _is_untrusted(error):
        return "has a certificate that is not trusted: name the authority's by ?ssl_ca_certs=FILE at the URL's end"
    for kinds, meaning in _MEANINGS:
        if isinstance(error, kinds):
            return meaning
    if str(error).startswith("MISCONF"):
        return "cannot write to its disk: free some space there"
    if str(error).startswith(("NOAUTH", "WRONGPASS")) or "unauthenticated" in str(error):
        return _MEANINGS[0][1]
    return "refused a command: see whether this user may call it"
