"""What goes wrong, and when: connections are cut, held, slowed and refused; servers are killed, ended in order and added; Redis is killed and started again."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator

from tests.crash.lives import Life
from tests.crash.report import Counts
from tests.crash.scenarios import LEASE_S, Scenario
from tests.crash.servers import Fleet, Redis, Server
from tests.proxy import Proxy

MOST_SERVERS = 3
HELD_S, SLOW_S, REFUSED_S, DOWN_S = 0.4, 2.0, 0.8, 1.0
"""How long each lasts at most."""
SERVED_S = 3.0
"""For so long a server serves at least before something is done to it: else nothing would go on where starting takes long."""
TAKEN_S, WRITTEN_S = (1.5, 3.0), (0.1, 0.4)
"""How long after its lease a frozen server goes on, and how long after that another one is killed: from, to."""


class Disturber:
    """Lets things go wrong at random moments.

    Args:
        scenario: What goes wrong how often.
        chooser: Decides, so that a seed gives the same events again (not at the same steps).
        lives: Returns the sessions there are.
    """

    def __init__(
        self,
        scenario: Scenario,
        chooser: random.Random,
        doors: list[Proxy],
        fleet: Fleet,
        redis: Redis | None,
        lives: Callable[[], Iterable[Life]],
        counts: Counts,
    ) -> None:
        self._scenario = scenario
        self._random = chooser
        self._doors = doors
        self._fleet = fleet
        self._redis = redis
        self._lives = lives
        self._counts = counts
        self._events = _dealt(chooser, [name for name, count in scenario.events.items() for _ in range(count)])
        self._starting: set[asyncio.Future[None]] = set()
        self._ways = _dealt(chooser, ["checkpoint", "now", "held"])

    async def run(self, left_s: Callable[[], float]) -> None:
        """Let things go wrong, one after the other, while there is time left; leave everything in order."""
        while left_s() > 0:
            await asyncio.sleep(min(left_s(), self._random.expovariate(1 / self._scenario.pause_s)))
            if left_s() > 0:
                await getattr(self, next(self._events))()
            for starting in [each for each in self._starting if each.done()]:
                self._starting.discard(starting)
                starting.result()  # a server that did not start ends the run
        await asyncio.gather(*self._starting)

    # -- connections

    async def cut(self) -> None:
        """Cut one connection, now and then all."""
        self._cut(self._doors if self._random.random() < 0.2 else [self._door()])

    async def hold(self) -> None:
        """Keep answers from callers for a while, then cut, so that much was emitted that was not received."""
        door = self._door()
        await self._hold([door])
        self._cut([door])
        door.pass_answers()

    async def slow(self) -> None:
        """Delay or throttle a connection for a while."""
        door = self._door()
        if self._random.random() < 0.5:
            door.delay_s = self._random.uniform(0.005, 0.05)
        else:
            door.bytes_per_s = self._random.uniform(20_000, 200_000)
        await asyncio.sleep(SLOW_S * self._random.random())
        door.delay_s, door.bytes_per_s = 0.0, None

    async def refuse(self) -> None:
        """Cut a connection, and take no new one for a while."""
        door = self._door()
        door.refuse()
        self._cut([door])
        await asyncio.sleep(REFUSED_S * self._random.random())
        door.refuse(False)

    # -- servers

    async def kill(self) -> None:
        """Kill a server: at any moment, while answers are held, or while it writes a checkpoint. Start it again after a while."""
        server = await self._one_of_several()
        how = next(self._ways)
        held = [door for door in self._doors if door.reaches == server.port]
        if how == "held":
            await self._hold(held)
        seen = how == "checkpoint" and await server.in_checkpoint()
        self._counts.kills_in_checkpoint += seen
        await self._kill(server, held, read=not seen)

    async def drain(self) -> None:
        """End a server in order and start it again."""
        server = await self._one_of_several()
        await self._drain(server)
        await self._again(server, 0.0)

    async def add(self) -> None:
        """Add a server; where there are enough, end one in order for good."""
        if len(self._fleet.running()) < MOST_SERVERS:
            await self._fleet.add()
            self._counts.added += 1
        else:
            await self._drain(await self._one_of_several())

    async def freeze(self) -> None:
        """Freeze a server until others have taken its sessions, let it go on, and kill one of those: what the frozen one still wrote must not count."""
        if len(self._fleet.running()) < 2:
            await asyncio.gather(*self._starting)
        server = await self._one_of_several()
        server.freeze()
        doors = [door for door in self._doors if door.reaches == server.port]
        self._cut(doors)
        await asyncio.sleep(LEASE_S + self._random.uniform(*TAKEN_S))
        server.thaw()
        self._counts.freezes += 1
        others = [other for other in self._fleet.running() if other is not server]
        await asyncio.sleep(self._random.uniform(*WRITTEN_S))
        await self._kill(self._random.choice(others), [])

    async def restart_redis(self) -> None:
        """Kill Redis and start it again."""
        assert self._redis is not None
        await self._redis.kill()
        await asyncio.sleep(DOWN_S * self._random.random())
        await self._redis.start()
        self._counts.redis_restarts += 1

    # -- parts of them

    async def _kill(self, server: Server, held: list[Proxy], *, read: bool = True) -> None:
        if read:
            await server.read()
        touched = [life for life in self._lives() if life.current is not None and life.door.reaches == server.port]
        for life in touched:
            life.lost_connection(killed=True)
        await server.kill()
        for door in held:
            door.pass_answers()
        self._counts.kills += 1
        self._counts.kills_with_unacknowledged += bool(touched)
        await self._again(server, DOWN_S * self._random.random())

    async def _one_of_several(self) -> Server:
        """Choose a server that callers reach and that has served for a while, where there are several while others run: at least one goes on."""
        while any(not starting.done() for starting in self._starting) and len(self._fleet.running()) < 2:
            await asyncio.gather(*self._starting)
        running = self._fleet.running()
        reached = [server for server in running if any(door.reaches == server.port for door in self._doors)]
        server = self._random.choice(reached or running)
        await asyncio.sleep(max(0.0, server.since_s + SERVED_S - time.monotonic()))
        return server

    async def _again(self, server: Server, wait_s: float) -> None:
        """Start a server again: beside what else happens, where others serve meanwhile."""

        async def start() -> None:
            await asyncio.sleep(wait_s)
            await server.start()

        starting = asyncio.ensure_future(start())
        self._starting.add(starting)
        if not self._fleet.running():
            await starting

    def _door(self) -> Proxy:
        return self._random.choice(self._doors)

    def _cut(self, doors: list[Proxy]) -> None:
        for life in self._lives():
            if life.door in doors:
                life.lost_connection(killed=False)
        for door in doors:
            self._counts.cuts += door.in_use
            door.cut()

    async def _hold(self, doors: list[Proxy]) -> None:
        for door in doors:
            door.hold_answers()
        await asyncio.sleep(HELD_S * self._random.uniform(0.25, 1.0))

    async def _drain(self, server: Server) -> None:
        await server.read()
        for life in self._lives():
            if life.door.reaches == server.port:
                life.lost_connection(killed=False)
        await server.drain()
        self._counts.drains += 1


def _dealt(chooser: random.Random, deck: list[str]) -> Iterator[str]:
    """Yield all of a deck in random order, again and again: a short run has its share of each. What the deck begins with comes first."""
    while True:
        yield deck[0]
        yield from chooser.sample(deck[1:], len(deck) - 1)
