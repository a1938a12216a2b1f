"""Conversations in all modes that a number decides: held twice, they give the same, whatever happened to the servers meanwhile."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import cellstate

LETTERS = "abcdefghijklmnopqrstuvwxyz ,."
DURABILITIES = ("periodic", "sync")


@dataclass(frozen=True)
class Speaker:
    """Asks in one mode after the other.

    Attributes:
        number: Decides what it asks.
        model: Of its session.
        speaks: The model takes and gives text; otherwise one number for each step.
    """

    number: int
    model: str
    speaks: bool

    @property
    def name(self) -> str:
        return f"speaker-{self.number}"

    async def create(self, client: cellstate.AsyncClient) -> Any:
        """Create its session."""
        seed = self.number if self.speaks else None
        return await client.session(self.model, name=self.name, seed=seed, keep=True, durability=DURABILITIES[self.number % 2]).create()

    async def turn(self, session: Any, number: int) -> Any:
        """Ask something, and return what came, without the boundaries of messages."""
        modes = (self.steps, self.many_to_one, self.one_to_many, self.many_to_many, self.stream)
        return await modes[(self.number + number) % len(modes)](session, random.Random(f"{self.number}/{number}"))  # noqa: S311

    async def steps(self, session: Any, chooser: random.Random) -> Any:
        step = session.many_to_one if self.speaks else session.step  # a model that speaks may take no single steps
        return joined([(await step(self.chunk(chooser, 1))).output.data for _ in range(6)])

    async def many_to_one(self, session: Any, chooser: random.Random) -> Any:
        result = await session.many_to_one([self.chunk(chooser, 5) for _ in range(3)])
        return result.position, joined([result.output.data])

    async def one_to_many(self, session: Any, chooser: random.Random) -> Any:
        return joined([output.data async for output in session.one_to_many(self.chunk(chooser, 3), max_steps=60)])

    async def many_to_many(self, session: Any, chooser: random.Random) -> Any:
        return joined([output.data async for output in session.many_to_many([self.chunk(chooser, 8) for _ in range(4)])])

    async def stream(self, session: Any, chooser: random.Random) -> Any:
        pieces: list[Any] = []
        async with session.stream() as stream:
            for _ in range(3):
                await stream.send(self.chunk(chooser, 4), emit="none")
                await stream.generate(max_steps=15)
                pieces += [output.data async for output in stream.until_completion()]
            await stream.half_close()
            assert await stream.receive() is None
        return joined(pieces)

    def chunk(self, chooser: random.Random, steps: int) -> Any:
        if self.speaks:
            return "".join(chooser.choices(LETTERS, k=steps))
        return np.array([[chooser.uniform(-1, 1)] for _ in range(steps)], dtype=np.float32)


def joined(pieces: Sequence[Any]) -> Any:
    """Put outputs together: text, or the bits of numbers."""
    pieces = [piece for piece in pieces if piece is not None]  # inputs whose outputs were not asked for
    assert pieces, "no output came"
    return "".join(pieces) if isinstance(pieces[0], str) else b"".join(np.ascontiguousarray(piece, dtype="<f4").tobytes() for piece in pieces)


def speakers(models: Mapping[str, bool], count: int) -> list[Speaker]:
    """Return speakers over models in turn; each model with whether it speaks."""
    names = list(models)
    return [Speaker(number, names[number % len(names)], models[names[number % len(names)]]) for number in range(count)]


async def talk(client: cellstate.AsyncClient, those: Iterable[Speaker], go_on: Callable[[int], bool]) -> dict[Speaker, list[Any]]:
    """Let speakers talk at once, each for as many turns as `go_on` says of the number of the next one, and return what each got by turn."""

    async def one(speaker: Speaker, session: Any) -> list[Any]:
        got: list[Any] = []
        while go_on(len(got)):
            got.append(await speaker.turn(session, len(got)))
        return got

    those = list(those)
    sessions = await asyncio.gather(*(speaker.create(client) for speaker in those))
    said = await asyncio.gather(*map(one, those, sessions))
    await asyncio.gather(*(session.delete() for session in sessions))
    return dict(zip(those, said, strict=True))


async def differing(client: cellstate.AsyncClient, said: Mapping[Speaker, list[Any]]) -> list[str]:
    """Hold the same conversations undisturbed, and return what came otherwise before."""

    async def again(speaker: Speaker, got: list[Any]) -> list[str]:
        wanted = (await talk(client, [speaker], lambda number: number < len(got)))[speaker]
        return [f"{speaker.name}, turn {number}: {a!r} in place of {b!r}" for number, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b]

    return [text for texts in await asyncio.gather(*(again(speaker, got) for speaker, got in said.items())) for text in texts]
