import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cellstate_service.errors import Aborted, AlreadyExists, Exhausted, InvalidInput, Reason
from cellstate_service.sessions import request_cache
from cellstate_service.sessions.request_cache import RequestCache, RequestKey
from tests.fake_clock import FakeClock


class Counted:
    """A call that counts how often it is made, and may wait or fail."""

    def __init__(self) -> None:
        self.made = 0
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.made += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.made


def key(request_id: str = "one", content: bytes = b"content", owner: str = "ada", method: str = "CreateSession") -> RequestKey:
    return RequestKey(owner, method, request_id, content)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> RequestCache:
    return RequestCache(clock)


@pytest.fixture
async def call() -> Counted:
    return Counted()


async def test_a_repeat_answers_as_the_first(cache: RequestCache, call: Counted) -> None:
    assert [await cache.once(key(), call) for _ in range(3)] == [1, 1, 1]


async def test_without_an_id_each_call_is_made(cache: RequestCache, call: Counted) -> None:
    assert [await cache.once(key(""), call) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("other", [key("two"), key(owner="bob"), key(method="ForkSession")])
async def test_other_ids_owners_and_methods_are_other_requests(cache: RequestCache, call: Counted, other: RequestKey) -> None:
    assert (await cache.once(key(), call), await cache.once(other, call)) == (1, 2)


async def test_other_content_is_refused(cache: RequestCache, call: Counted) -> None:
    await cache.once(key(), call)

    with pytest.raises(Aborted) as caught:
        await cache.once(key(content=b"other"), call)

    assert (caught.value.reason, caught.value.field, call.made) == (Reason.REQUEST_ID_CONFLICT, "request_id", 1)


async def test_a_long_id_is_refused(cache: RequestCache, call: Counted) -> None:
    assert await cache.once(key("i" * 64), call) == 1
    with pytest.raises(InvalidInput, match="at most 64"):
        await cache.once(key("i" * 65), call)
    assert call.made == 1


async def test_calls_at_once_are_one(cache: RequestCache, call: Counted) -> None:
    call.go.clear()
    waiting = [asyncio.ensure_future(cache.once(key(), call)) for _ in range(5)]
    await asyncio.sleep(0)
    call.go.set()

    assert await asyncio.gather(*waiting) == [1] * 5


async def test_a_failure_is_told_to_all_who_wait_and_not_kept(cache: RequestCache, call: Counted) -> None:
    call.error = AlreadyExists("there is one")
    first = await asyncio.gather(*(cache.once(key(), call) for _ in range(3)), return_exceptions=True)
    assert first == [call.error] * 3
    call.error = None

    assert await cache.once(key(), call) == 2


async def leave(cache: RequestCache, call: Callable[[], Awaitable[int]]) -> None:
    """Make a call whose caller leaves before its end."""
    waiting = asyncio.ensure_future(cache.once(key(), call))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_call_goes_on_without_its_caller(cache: RequestCache, call: Counted) -> None:
    call.go.clear()
    await leave(cache, call)
    call.go.set()

    assert await cache.once(key(), call) == 1


async def test_a_call_that_fails_without_its_caller_is_not_kept(cache: RequestCache, call: Counted) -> None:
    call.go.clear()
    call.error = AlreadyExists("there is one")
    await leave(cache, call)
    call.go.set()
    for _ in range(3):
        await asyncio.sleep(0)
    call.error = None

    assert await cache.once(key(), call) == 2


async def test_answers_are_kept_for_ten_minutes(cache: RequestCache, call: Counted, clock: FakeClock) -> None:
    await cache.once(key(), call)
    clock.turn(599)
    assert await cache.once(key(), call) == 1
    clock.turn(2)
    assert await cache.once(key(), call) == 2


async def test_an_owner_with_too_many_ids_is_refused_and_nobody_else(
    cache: RequestCache, call: Counted, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_cache, "LIMIT_PER_OWNER", 3)
    for number in range(3):
        await cache.once(key(str(number)), call)

    with pytest.raises(Exhausted) as caught:
        await cache.once(key("3"), call)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert await cache.once(key("0"), call) == 1
    assert await cache.once(key("3", owner="bob"), call) == 4
    clock.turn(601)
    assert await cache.once(key("3"), call) == 5
