"""Callers: what a session does in each mode. Each function asks once or in a loop, notes what came, and returns when all was answered.

What the library promises to go on with by itself is called once: an error of it is the harness's to tell. What it does not go on with is repeated here, as its
documentation tells callers to (`GOES_ON`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np

import cellstate
from cellstate import _calls
from cellstate._resume import can_go_on
from tests.crash.lives import Life
from tests.crash.records import Exchange
from tests.crash.repeats import Repeats

T = TypeVar("T")

GOES_ON = {"opening": True, "many_to_one": True, "many_to_many": True, "gateway": True, "sessions": True}
"""Whether the library goes on by itself, by what its connection was lost in. False: the harness makes the call again.

`opening` is a generation or a stream whose opening was not answered yet; steps, and both once they are open, always go on."""
REPEATS_S = 90.0
"""How long the harness repeats a call."""
REPEAT_SHARE = 0.15


class Callers:
    """The modes.

    Args:
        repeats: Sends duplicates.
    """

    def __init__(self, repeats: Repeats) -> None:
        self._repeats = repeats

    def modes(self) -> dict[str, Callable[[Life], Awaitable[None]]]:
        """Return the modes of one session by name."""
        modes = {"steps": self.steps, "chunks": self.chunks, "generation": self.generation, "flow": self.flow, "talk": self.talk}
        return modes | ({"whole": self.whole} if GOES_ON["many_to_many"] else {})

    async def create(self, life: Life, **options: Any) -> None:
        """Create the session."""
        made = life.face.client.session(life.model.name, name=life.transcript.name, seed=life.transcript.seed, keep=True, **options)
        life.session = await again("sessions", life, lambda: life.face.do(made.create))

    async def delete(self, life: Life) -> None:
        """Delete the session."""
        await again("sessions", life, lambda: life.face.do(life.session.delete))

    async def steps(self, life: Life) -> None:
        """A closed loop: each input follows from the output before."""
        last: Any = None
        for _ in range(life.random.randint(5, 30)):
            form = life.form("logits")
            value = _next_input(life, last)
            exchange = life.ask("step", [[value]], emit="last", form=form)
            options = _options(exchange)
            given = int(value) if life.model.features is None else value
            request = _calls.one_to_one(life.session, given, options).request
            result = await life.face.do(life.session.step, given, **options)
            life.got(result.output)
            life.done(result.completion)
            last = result.output.data
            self._repeats.remember(life, "OneToOne", request, exchange)
            if life.random.random() < REPEAT_SHARE:
                await self._repeats.send(life)

    async def chunks(self, life: Life) -> None:
        """Many-to-one: several chunks, one output."""
        exchange = life.ask("many_to_one", [life.chunk(20) for _ in range(life.random.randint(1, 6))], emit="end", form=life.form("logits"))
        chunks = [_given(life, chunk) for chunk in exchange.chunks]
        result = await again("many_to_one", life, lambda: life.face.do(life.session.many_to_one, _parts(chunks), **_options(exchange)))
        life.got(result.output)
        life.done(result.completion)

    async def generation(self, life: Life) -> None:
        """One-to-many: a prompt or none, then a long generation."""
        prompt = [] if life.transcript.exchanges and life.random.random() < 0.5 else [life.chunk(8)]
        exchange = life.ask("generate", prompt, emit="none", form=life.form(), **_generation(life))
        options = _options(exchange) | _directive(exchange)
        given = _given(life, prompt[0]) if prompt else None
        request = _calls.one_to_many(life.session, given, options)[0].request

        async def generate() -> bool:
            outputs = await life.face.do(life.session.one_to_many, given, **options)
            async for output in life.face.each(outputs):
                life.got(output)
                await _read_slowly(life)
            life.done(outputs.completion)
            return bool(outputs._answers.core._unacknowledged_steps == 0)

        acknowledged = await again("opening", life, generate)
        self._repeats.remember(life, "ManyToMany", request, exchange, acknowledged=acknowledged)
        if life.random.random() < REPEAT_SHARE:
            await self._repeats.send(life)

    async def flow(self, life: Life) -> None:
        """A stream of inputs with several chunks in flight."""
        chunks = [life.chunk(25) for _ in range(life.random.randint(3, 12))]
        exchange = life.ask("stream", chunks, emit=life.random.choice(("all", "all", "last")), form=life.form("logits"))

        async def flow() -> None:
            stream = await life.face.do(life.session.stream, **_options(exchange), emit=exchange.emit)
            end = None
            for chunk in chunks:
                await life.face.do(stream.send, _given(life, chunk))
                if life.random.random() < 0.3:
                    await asyncio.sleep(life.random.random() * 0.02)
            await life.face.do(stream.half_close)
            while (event := await life.face.do(stream.receive)) is not None:
                life.got(event)
                end = event.position
                await _read_slowly(life)
            life.done(position=end)

        await again("opening", life, flow)

    async def whole(self, life: Life) -> None:
        """Many-to-many of a sequence in chunks."""
        exchange = life.ask("many_to_many", [life.chunk(25) for _ in range(life.random.randint(3, 12))], emit="all", form=life.form("logits"))
        chunks = [_given(life, chunk) for chunk in exchange.chunks]
        outputs = await life.face.do(life.session.many_to_many, _parts(chunks), **_options(exchange))
        async for output in life.face.each(outputs):
            life.got(output)
        life.done()

    async def talk(self, life: Life) -> None:
        """A stream with inputs and directives in turn, and stops."""
        form, emit, turns = life.form(), life.random.choice(("none", "all")), life.random.randint(1, 5)
        exchange = self._turn(life, form, emit)

        async def begin() -> Any:
            stream = await life.face.do(life.session.stream, form=form, emit=emit)
            await self._talk_once(life, stream, exchange)
            return stream

        stream = await again("opening", life, begin)
        for _ in range(turns - 1):
            await self._talk_once(life, stream, self._turn(life, form, emit))
        await life.face.do(stream.half_close)
        while (await life.face.do(stream.receive)) is not None:
            life.tally.wrong.append(f"{life.transcript.name}: a stream that had answered everything went on")

    def _turn(self, life: Life, form: str, emit: str) -> Exchange:
        """Choose an input and a generation after it. Outputs of tokens would be drawn as the stream says, not as the directive does."""
        emit = emit if life.model.features is not None else "none"
        return life.ask("directive", [life.chunk(10)], emit=emit, form=form, **_generation(life))

    async def _talk_once(self, life: Life, stream: Any, exchange: Exchange) -> None:
        await life.face.do(stream.send, _given(life, exchange.chunks[0]), emit=exchange.emit)
        await life.face.do(stream.generate, **_directive(exchange), **_draws(exchange))
        stops = life.random.random() < 0.3
        while isinstance(event := await life.face.do(stream.receive), cellstate.Output):
            life.got(event)
            await _read_slowly(life)
            if stops and life.generates:
                stops = False
                await life.face.do(stream.stop)
        if event is None:
            raise RuntimeError("the stream ended before its generation did")
        life.done(event)


async def again(kind: str, life: Life, call: Callable[[], Awaitable[T]]) -> T:
    """Make a call, and again where its connection was lost and the library does not do that. A call of which something came is open: it goes on by itself."""
    since_s = time.monotonic()
    while True:
        try:
            return await call()
        except cellstate.CellstateError as error:
            if life.current is not None and life.current.pieces:
                raise
            count_repetition(life, kind, error, since_s)
        await asyncio.sleep(0.1 + 0.4 * life.random.random())


def count_repetition(life: Life, kind: str, error: cellstate.CellstateError, since_s: float) -> None:
    """Count a repetition; raise the error where there is to be none."""
    if GOES_ON[kind] or not can_go_on(error) or time.monotonic() - since_s > REPEATS_S:
        raise error
    life.tally.repeated_by_caller[kind] = life.tally.repeated_by_caller.get(kind, 0) + 1


async def _read_slowly(life: Life) -> None:
    """Now and then wait, so that generations are under way for longer than they take."""
    if life.random.random() < 0.3:
        await asyncio.sleep(life.random.random() * 0.1)


def _generation(life: Life) -> dict[str, Any]:
    steps = int(10 ** life.random.uniform(1, 3.2))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    stops = tuple("".join(life.random.choices(letters, k=2)) for _ in range(2)) if life.model.features is None and life.random.random() < 0.3 else ()
    return {"steps": steps, "stops": stops}


def _directive(exchange: Exchange) -> dict[str, Any]:
    return {"max_steps": exchange.steps} | ({"stop": list(exchange.stops)} if exchange.stops else {})


def _draws(exchange: Exchange) -> dict[str, Any]:
    return exchange.draws.options() if exchange.draws is not None else {}


def _options(exchange: Exchange) -> Any:
    return {"form": exchange.form} | _draws(exchange)


def _given(life: Life, chunk: Any) -> Any:
    return cellstate.tokens(chunk) if life.model.features is None else chunk


def _parts(chunks: list[Any]) -> Any:
    """Return an iterable of chunks, which a list of arrays might not be taken for."""
    return iter(chunks)


def _next_input(life: Life, last: Any) -> Any:
    """Follow from the output before, as a controller's input does."""
    if life.model.features is None:
        known = last is not None and not isinstance(last, str) and np.asarray(last).ndim == 1
        return int(np.asarray(last)[-1]) if known else life.chunk(1)[0]
    drift = np.float32(life.random.uniform(-1, 1))
    return drift * np.ones(life.model.features, np.float32) if last is None else np.tanh(np.asarray(last)[-1]) + drift
