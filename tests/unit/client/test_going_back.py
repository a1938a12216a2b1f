"""A server that dies and comes again at an older position: calls on a session go on by themselves, and give the values of a run that nothing interrupted."""
# ruff: noqa: N802 - the methods are named as the contract names them

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import cellstate
from cellstate.v1 import inference_pb2, inference_pb2_grpc, session_pb2_grpc, types_pb2
from tests.unit.client.conftest import FakeServer, refuse

ANSWERED = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]


class Dying(FakeServer):
    """Sums its inputs: a step gives the sum so far, a generated step adds one. Dies where it is told to, and stands at an older position then."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[float] = []
        self.deaths: list[tuple[int, int]] = []
        self.taken = 0
        self.streams = 0

    @property
    def position(self) -> int:
        return len(self.sums)

    @position.setter
    def position(self, _: int) -> None:
        pass

    def take(self, value: float, context: Any) -> None:
        if self.deaths and self.position == self.deaths[0][0]:
            self.sums = self.sums[: self.deaths.pop(0)[1]]
            context.abort(grpc.StatusCode.UNAVAILABLE, "died")
        self.sums.append((self.sums[-1] if self.sums else 0.0) + value)
        self.taken += 1

    def begin(self, position: int | None, context: Any) -> int:
        """Return where a request begins; a session that went back is not moved by one that names no position, or one above its own."""
        if position is None or position > self.position:
            refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "SESSION_ROLLED_BACK", position=self.position)
        return position or 0

    def values(self, first: int, position: int) -> types_pb2.Output:
        ids = [int(value) for value in self.sums[first:position]]
        return types_pb2.Output(values=types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=ids)), first_position=first, position=position)

    def run(self, inputs: list[float] | None, steps: int, first: int, limit: int | None, context: Any) -> int:
        """Take the steps of a request that begins at `first`; the journal knows those that the session has."""
        for step in range(steps):
            if limit is not None and first + step >= limit:
                return first + step
            if first + step >= self.position:
                self.take(1.0 if inputs is None else inputs[step], context)
        return first + steps

    def session_message(self, **fields: Any) -> Any:
        return super().session_message(**({"safe_position": 0} | fields))

    def OneToOne(self, request: Any, context: Any) -> Any:
        session = request.target.session
        first = self.begin(session.position if session.HasField("position") else None, context)
        self.run(numbers(request.input), 1, first, None, context)
        return inference_pb2.OneToOneResponse(output=self.values(first, first + 1), completion=self.done(first, first + 1))

    def done(self, first: int, position: int, generated: int = 0) -> types_pb2.Completion:
        return types_pb2.Completion(
            reason=types_pb2.FINISH_REASON_MAX_STEPS,
            position=position,
            consumed_steps=position - first - generated,
            generated_steps=generated,
            safe_position=0,
        )

    def ManyToOne(self, requests: Any, context: Any) -> Any:
        opening = next(requests).open.target.session
        follows = began = self.begin(opening.position if opening.HasField("position") else None, context)
        for request in requests:
            values = numbers(request.input.values)
            follows = self.run(values, len(values), self.begin(follows, context), None, context)
        return inference_pb2.ManyToOneResponse(output=self.values(follows - 1, follows), completion=self.done(began, follows))

    def ManyToMany(self, requests: Any, context: Any) -> Any:
        self.streams += 1
        try:
            yield from self.stream(requests, context)
        finally:
            self.streams -= 1

    def stream(self, requests: Any, context: Any) -> Any:
        opening = next(requests).open
        session, follows = opening.target.session, None
        yield inference_pb2.ManyToManyResponse(opened=inference_pb2.Opened(uid="1", position=self.position, stream_token="t", safe_position=0))
        for request in requests:
            kind = request.WhichOneof("message")
            if kind == "acknowledge":
                continue
            part = request.input if kind == "input" else request.generate
            named = part.position if part.HasField("position") else follows
            named = session.position if named is None and session.HasField("position") else named
            first = self.begin(named, context)
            limit = part.end_position if part.HasField("end_position") else None
            inputs = numbers(request.input.values) if kind == "input" else None
            steps = request.generate.generation.max_steps if inputs is None else len(inputs)
            for step in range(first, first + steps):
                follows = self.run(None if inputs is None else inputs[step - first :], 1, step, limit, context)
                silent = inputs is not None and (request.input.emit or opening.emit) == types_pb2.EMIT_NONE
                if follows > max(step, session.acknowledged_position) and not silent:
                    yield inference_pb2.ManyToManyResponse(output=self.values(step, follows))
            if inputs is None:
                yield inference_pb2.ManyToManyResponse(completion=self.done(first, follows or first, (follows or first) - first))
            elif silent:
                yield inference_pb2.ManyToManyResponse(output=types_pb2.Output(first_position=first, position=follows))


def numbers(sequence: types_pb2.Sequence) -> list[float]:
    return [float(token) for token in sequence.tokens.ids]


@pytest.fixture
def dying() -> Iterator[Dying]:
    fake = Dying()
    running = grpc.server(ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(fake, running)
    session_pb2_grpc.add_SessionServiceServicer_to_server(fake, running)
    fake.address = f"localhost:{running.add_insecure_port('localhost:0')}"
    running.start()
    yield fake
    running.stop(None).wait()


def conversation(session: cellstate.Session) -> list[int]:
    """All modes one after the other."""
    told = [int(token) for value in (3, 1, 4) for token in session.step([value]).tokens]
    told += session.many_to_one(iter([[1, 5], [9]])).tokens.tolist()
    told += session.one_to_many([2, 6], max_steps=5).collect().tokens.tolist()
    told += [token for output in session.many_to_many(iter([[5], [3, 5]])) for token in output.tokens.tolist()]
    with session.stream() as stream:
        stream.send([8, 9])
        stream.generate(max_steps=4)
        told += [token for output in stream.until_completion() for token in output.tokens.tolist()]
        stream.send([7], emit="none")
        stream.send([9, 3])
        stream.half_close()
        told += [token for output in stream for token in output.tokens.tolist()]
    return [*told, *session.step([2]).tokens.tolist(), *session.generate(max_steps=2).collect().tokens.tolist()]


async def conversation_async(session: cellstate.AsyncSession) -> list[int]:
    told = [int(token) for value in (3, 1, 4) for token in (await session.step([value])).tokens]
    told += (await session.many_to_one(iter([[1, 5], [9]]))).tokens.tolist()
    told += (await session.one_to_many([2, 6], max_steps=5).collect()).tokens.tolist()
    told += [token async for output in session.many_to_many(iter([[5], [3, 5]])) for token in output.tokens.tolist()]
    async with session.stream() as stream:
        await stream.send([8, 9])
        await stream.generate(max_steps=4)
        told += [token async for output in stream.until_completion() for token in output.tokens.tolist()]
        await stream.send([7], emit="none")
        await stream.send([9, 3])
        await stream.half_close()
        told += [token async for output in stream for token in output.tokens.tolist()]
    return [*told, *(await session.step([2])).tokens.tolist(), *(await session.generate(max_steps=2).collect()).tokens.tolist()]


def uninterrupted() -> tuple[list[int], int]:
    sums, told = 0, []
    for value, emitted in [(3, 1), (1, 1), (4, 1), (1, 0), (5, 0), (9, 1), (2, 0), (6, 0), *[(1, 1)] * 5, (5, 1), (3, 1), (5, 1)]:
        sums += value
        told += [sums] * emitted
    for value, emitted in [(8, 1), (9, 1), *[(1, 1)] * 4, (7, 0), (9, 1), (3, 1), (2, 1), (1, 1), (1, 1)]:
        sums += value
        told += [sums] * emitted
    return told, 28


@pytest.mark.parametrize("back", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("asyncio_face", [False, True])
def test_a_conversation_goes_on_wherever_its_server_dies(dying: Dying, back: int, asyncio_face: bool) -> None:
    told, steps = uninterrupted()
    dying.deaths = [(at, max(0, at - back)) for at in range(0, steps, 2)]

    async def on_asyncio() -> tuple[list[int], int]:
        async with cellstate.AsyncClient(dying.address) as client, client.session("m") as session:
            return await conversation_async(session), session.position

    if asyncio_face:
        assert asyncio.run(on_asyncio()) == (told, steps)
    else:
        with cellstate.Client(dying.address) as client, client.session("m") as session:
            assert (conversation(session), session.position) == (told, steps)
    assert dying.deaths == []
    assert dying.taken >= steps


def test_between_two_calls_it_is_found_out_by_the_second(dying: Dying) -> None:
    with cellstate.Client(dying.address) as client, client.session("m") as session:
        session.step([1])
        session.many_to_one([2, 3])
        dying.sums = dying.sums[:1]
        assert session.info().position == 1
        assert session.step([4]).tokens.tolist() == [10]
        dying.sums = []
        assert session.many_to_one([5]).tokens.tolist() == [15]
        dying.sums = dying.sums[:2]
        assert session.many_to_many([6]).collect().tokens.tolist() == [21]


def test_a_generation_that_was_cut_is_given_again_as_far_as_it_was_received(dying: Dying) -> None:
    with cellstate.Client(dying.address) as client, client.session("m") as session:
        session.step([1])
        with session.generate(max_steps=6) as outputs:
            received = [next(outputs).tokens.tolist() for _ in range(2)]
        assert received == [[2], [3]]
        position = session.position
        while dying.streams:  # it generates on until it learns of the cut
            time.sleep(0.01)
        dying.sums = dying.sums[:2]
        assert session.many_to_many([10]).collect().tokens.tolist() == [13]
        assert (position, session.position) == (3, 4)


def test_a_handle_without_a_log_is_told_once_then_goes_on_from_there(dying: Dying) -> None:
    with cellstate.Client(dying.address) as client, client.session("m", keep=True) as session:
        session.many_to_one([1, 2, 3])
        other = client.open_session(session.name)
        dying.sums = dying.sums[:1]
        with pytest.raises(cellstate.SessionRolledBack) as raised:
            other.step([4])
        assert (raised.value.position, other.position) == (1, 1)
        assert other.step([4]).tokens.tolist() == [5]
