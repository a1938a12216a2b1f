"""Makes a repeated call with the same request id answer as the first did."""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cellstate_service.clock import Clock
from cellstate_service.errors import Aborted, Exhausted, InvalidInput, Reason

Answer = TypeVar("Answer")
MAX_ID_CHARACTERS = 64
KEEP_S = 600.0
LIMIT_PER_OWNER = 10_000


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Whose request it is: ids of different owners and methods never meet. `content` tells a repeat from a conflict."""

    owner: str
    method: str
    request_id: str
    content: bytes

    @property
    def uid(self) -> str:
        """A uid for the session that the request makes, the same for each repeat of it, whichever server that reaches; "" where nobody repeats it."""
        if not self.request_id:
            return ""
        told = [part.encode() for part in (self.owner, self.method, self.request_id)]
        return hashlib.sha256(b"".join(len(part).to_bytes(8) + part for part in (*told, self.content))).hexdigest()[:32]


class RequestCache:
    """Answers by request id, kept for ten minutes, at most 10,000 for each owner. Failed calls are not kept: they may be tried again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._answers: OrderedDict[tuple[str, str, str], tuple[bytes, float, asyncio.Future[Any]]] = OrderedDict()

    async def once(self, key: RequestKey, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Make the call, or return what the first call with the same id answered, waiting where it still runs.

        Raises:
            Aborted: The id was used with other content.
            InvalidInput: The id is too long.
            Exhausted: As many answers are kept for the owner as may.
        """
        if not key.request_id:
            return await call()
        if len(key.request_id) > MAX_ID_CHARACTERS:
            raise InvalidInput(f"request_id: {len(key.request_id)} characters, at most {MAX_ID_CHARACTERS} are allowed", field="request_id")
        self._forget_old()
        mark = hashlib.sha256(key.content).digest()
        place = (key.owner, key.method, key.request_id)
        known = self._answers.get(place)
        if known is not None:
            content, _, future = known
            if content != mark:
                raise Aborted("request_id: it was used before with other content: use a new one", Reason.REQUEST_ID_CONFLICT, field="request_id")
            return await asyncio.shield(future)
        if self._counts[key.owner] >= LIMIT_PER_OWNER:
            text = f"request_id: {LIMIT_PER_OWNER} answers are kept for you, each for ten minutes: wait, or call without one"
            raise Exhausted(text, Reason.QUOTA_EXCEEDED, field="request_id", retry_after_s=60.0, quota_subject=f"request ids of {key.owner}")
        task = asyncio.ensure_future(call())
        self._counts[key.owner] += 1
        self._answers[place] = entry = (mark, self._clock.monotonic(), task)

        def forget_failure(done: "asyncio.Future[Answer]") -> None:
            """Drop a call that failed, also where its caller has left meanwhile."""
            if (done.cancelled() or done.exception() is not None) and self._answers.get(place) is entry:
                self._forget(place)

        task.add_done_callback(forget_failure)
        return await asyncio.shield(task)

    def _forget_old(self) -> None:
        now_s = self._clock.monotonic()
        while self._answers:
            place, (_, since_s, future) = next(iter(self._answers.items()))
            if now_s - since_s < KEEP_S or not future.done():
                return
            self._forget(place)

    def _forget(self, place: tuple[str, str, str]) -> None:
        del self._answers[place]
        self._counts[place[0]] -= 1
        if not self._counts[place[0]]:
            del self._counts[place[0]]
