"""Questions that servers ask one another through Redis: each listens on two channels, for questions and for answers to its own."""

import asyncio
import random
import uuid
from typing import Any

import structlog

from cellstate_service.sessions.stores.redis_link import BROKEN, RedisLink, cancellable
from cellstate_service.sessions.stores.store import Answering, StoreError

log = structlog.get_logger(__name__)
QUIET_S = 10.0
"""After so long without a word Redis is asked whether it is there, and after so long again the connection is made anew."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


class RedisAsking:
    """Asks other servers, and has what they ask answered.

    Args:
        link: To the server.
        prefix: Of all channels.
        me: This server, as it is written in channels' names.
    """

    def __init__(self, link: RedisLink, prefix: str, me: str) -> None:
        self._link = link
        self._prefix = prefix
        self._me = me
        self._answering: Answering | None = None
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._pause_s = FIRST_PAUSE_S

    def answer(self, answering: Answering) -> None:
        """Have questions answered by `answering`."""
        self._answering = answering

    async def start(self, wait_s: float) -> None:
        """Listen from now on; returns when Redis has confirmed it, or after `wait_s`."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen(), name="redis-asking")
        try:
            async with asyncio.timeout(wait_s):
                await self._listening.wait()
        except TimeoutError:
            log.warning("questions of other servers are not heard yet")

    async def close(self) -> None:
        """Listen no more; what is being answered is dropped."""
        tasks = [*self._answers, *([] if self._listener is None else [self._listener])]
        self._listener = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, other: str, question: bytes, timeout_s: float) -> bytes | None:
        """Ask a server, named as in channels, and return its answer; None where none came in time.

        Raises:
            StoreError: The question could not be asked.
        """
        number = uuid.uuid4().hex.encode()
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                heard = await self._link.told(self._link.client.publish(self._channel("ask", other), b"%b %b\n%b" % (number, self._me.encode(), question)))
                return await future if heard else None
        except TimeoutError:
            return None
        finally:
            del self._waiting[number]

    def _channel(self, kind: str, who: str) -> str:
        return f"{self._prefix}:{kind}:{who}"

    async def _listen(self) -> None:
        while True:
            try:
                async with self._link.client.pubsub() as pubsub:
                    await cancellable(pubsub.subscribe(self._channel("ask", self._me), self._channel("answer", self._me)))
                    await self._receive(pubsub)
            except BROKEN as error:
                if self._pause_s == FIRST_PAUSE_S:
                    log.warning("questions of other servers are not heard", why=str(self._link.explained(error)))
            except Exception:
                log.exception("questions of other servers are not heard")
            self._listening.clear()
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    async def _receive(self, pubsub: Any) -> None:
        quiet = False
        while True:
            message = await cancellable(pubsub.get_message(timeout=QUIET_S))
            if message is not None:
                quiet = False
                self._take(message)
            elif quiet:
                raise TimeoutError("nothing is heard")
            else:
                quiet = True
                await cancellable(pubsub.ping())

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._listening.set()
            self._pause_s = FIRST_PAUSE_S
        if message["type"] != "message":
            return
        head, _, body = message["data"].partition(b"\n")
        if message["channel"].decode() == self._channel("ask", self._me):
            number, _, asker = head.partition(b" ")
            task = asyncio.create_task(self._answer(number, asker.decode(), body))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
        elif (future := self._waiting.get(head)) is not None and not future.done():
            future.set_result(body)

    async def _answer(self, number: bytes, asker: str, question: bytes) -> None:
        if self._answering is None:
            return
        try:
            answer = await self._answering(question)
            await self._link.told(self._link.client.publish(self._channel("answer", asker), number + b"\n" + answer))
        except StoreError as error:
            log.warning("an answer did not reach the server that asked", asker=asker, why=str(error))
        except Exception:
            log.exception("a question of another server could not be answered", asker=asker)
