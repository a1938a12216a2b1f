"""Many sessions on one stream: each channel is a stream of its own, errors stay on their channel, and one message carries the steps of all."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio

from cellstate.v1.error_pb2 import ErrorReason
from cellstate.v1.inference_pb2 import CloseDirective, ManyToManyRequest, ManyToManyResponse, OneToOneRequest, Target
from cellstate.v1.types_pb2 import EMIT_NONE, FINISH_REASON_STOP_DIRECTIVE, OUTPUT_FORM_TOKENS
from tests.integration.serving import Served, ids, is_free, link_models, moves, one_to_many, serving, stands_still
from tests.integration.stubs import (
    STOP,
    array,
    chunk,
    generate,
    generation,
    on_model,
    on_session,
    open_many,
    options,
    refusal,
    text,
    tokens,
    values,
)
from tests.models_on_disk import write_recurrent

pytestmark = pytest.mark.asyncio(loop_scope="module")
CLOSE = ManyToManyRequest(close=CloseDirective())
MAX_CHANNELS = 40
WIDE = 2048


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("channels"), "lstm-series", "lstm-text", "ids", "flowers")
    write_recurrent(folder / "wide", cell="gru", input_kind="numeric", features=WIDE, hidden_size=8, seed=50, start=[0.5] * WIDE)
    limits = {"max_channels": MAX_CHANNELS, "queued_steps": 2000}
    async with serving(folder, limits=limits, engine={"max_calls": 60, "output_window_steps": 16}) as served:
        yield served


def on(number: int, message: ManyToManyRequest) -> ManyToManyRequest:
    """A message on a channel."""
    copy = ManyToManyRequest()
    copy.CopyFrom(message)
    copy.channel = number
    return copy


def together(*messages: ManyToManyRequest) -> ManyToManyRequest:
    """One message that carries several."""
    first = ManyToManyRequest()
    first.CopyFrom(messages[0])
    first.more.extend(messages[1:])
    return first


class Talk:
    """One gateway's stream, and what came back on each channel."""

    def __init__(self, server: Served) -> None:
        self.call = server.stubs.inference.ManyToMany()
        self.heard: dict[int, list[ManyToManyResponse]] = {}
        self.messages = 0

    async def say(self, *messages: ManyToManyRequest) -> None:
        await self.call.write(together(*messages))

    async def open(self, number: int, target: Target, **parts: Any) -> None:
        await self.say(on(number, open_many(target, **parts)))

    async def listen(self) -> bool:
        """Read one message; False where the stream has ended."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            return False
        self.messages += 1
        for part in (response, *response.more):
            self.heard.setdefault(part.channel, []).append(part)
        return True

    async def until(self, number: int, field: str, count: int = 1) -> ManyToManyResponse:
        """Read until a channel was told so many of a field; return the last."""
        async with asyncio.timeout(20):
            while sum(part.HasField(field) for part in self.heard.get(number, [])) < count:
                assert await self.listen(), f"the stream ended before {field}"
        return [part for part in self.heard[number] if part.HasField(field)][-1]

    async def failed(self, number: int, count: int = 1) -> tuple[str, str]:
        """The reason and the field of a channel's failure."""
        failure = (await self.until(number, "failure", count)).failure
        return ErrorReason.Name(failure.reason).removeprefix("ERROR_REASON_"), failure.field

    async def end(self) -> None:
        await self.call.done_writing()
        async with asyncio.timeout(20):
            while await self.listen():
                pass
        assert await self.call.code() is grpc.StatusCode.OK

    def outputs(self, number: int) -> list[Any]:
        return [part.output for part in self.heard[number] if part.HasField("output") and part.output.HasField("values")]


def inputs(number: int, steps: int = 12) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(number).normal(size=(steps, 1)).astype(np.float32)


async def test_each_channel_is_a_sequence_of_its_own(server: Served) -> None:
    talk, numbers = Talk(server), range(1, 17)
    await talk.say(*(on(number, open_many(on_model("lstm-series"))) for number in numbers))
    for step in range(12):
        await talk.say(*(on(number, chunk(values(inputs(number)[step : step + 1]))) for number in numbers))
    await talk.end()
    for number in numbers:
        wanted = server.oracle("lstm-series").session(0).consume(inputs(number))
        np.testing.assert_allclose(np.concatenate([array(output) for output in talk.outputs(number)]), wanted, atol=1e-4)
        assert talk.heard[number][-1].closed.position == 12
    assert talk.messages < 16 * 12


async def test_the_steps_of_all_channels_come_in_few_messages(server: Served) -> None:
    talk, numbers = Talk(server), range(1, 33)
    await talk.say(*(on(number, open_many(on_model("lstm-series"))) for number in numbers))
    for number in numbers:
        await talk.until(number, "opened")
    before = talk.messages
    for step in range(5):
        await talk.say(*(on(number, chunk(values([1.0]))) for number in numbers))
        for number in numbers:
            await talk.until(number, "output", step + 1)
    assert talk.messages - before <= 5 * 8
    await talk.end()


async def test_sessions_generation_and_stops_on_channels(server: Served) -> None:
    talk = Talk(server)
    await server.create("lstm-text", "on-channel", seed=3)
    await talk.open(1, on_session("on-channel"), output=options(OUTPUT_FORM_TOKENS))
    await talk.open(2**64 - 1, on_model("lstm-text"), output=options(OUTPUT_FORM_TOKENS))
    await talk.say(on(1, chunk(text("Hello"), emit=EMIT_NONE)), on(1, generate(generation(20, seed=7))), on(2**64 - 1, generate(generation(1_000_000, seed=1))))
    completion = (await talk.until(1, "completion")).completion
    assert (completion.generated_steps, completion.position) == (20, 25)
    assert (await talk.until(1, "opened")).opened.stream_token
    await talk.until(2**64 - 1, "output")
    await talk.say(on(2**64 - 1, STOP))
    stopped = (await talk.until(2**64 - 1, "stopped")).stopped
    ended = next(part.completion for part in talk.heard[2**64 - 1] if part.HasField("completion"))
    assert (ended.reason, ended.position) == (FINISH_REASON_STOP_DIRECTIVE, stopped.position)
    direct = await one_to_many(server, on_model("lstm-text"), input=text("Hello"), output=options(OUTPUT_FORM_TOKENS), generation=generation(20, seed=7))
    assert ids(talk.outputs(1)) == ids([response.output for response in direct])
    await talk.end()
    await is_free(server, "on-channel")


async def test_a_channel_is_closed_and_opened_again(server: Served) -> None:
    talk = Talk(server)
    await server.create("lstm-series", "again")
    for turn in range(1, 4):
        await talk.say(on(5, open_many(on_session("again"))), on(5, chunk(values([1.0, 2.0]))), on(5, CLOSE))
        assert (await talk.until(5, "closed", turn)).closed.position == 2 * turn
        await is_free(server, "again")
    assert [part.opened.position for part in talk.heard[5] if part.HasField("opened")] == [0, 2, 4]
    await talk.end()


async def test_an_error_stays_on_its_channel(server: Served) -> None:
    talk = Talk(server)
    await talk.say(*(on(number, open_many(on_model("lstm-series"))) for number in (1, 2)))
    await talk.say(on(1, chunk(values([1.0]))), on(1, chunk(values([np.nan]))), on(1, chunk(values([2.0]))), on(1, CLOSE), on(2, chunk(values([1.0]))))
    assert await talk.failed(1) == ("NOT_FINITE", "input.values.tensor.data")
    assert talk.heard[1][-1].failure.position == 1
    assert talk.heard[1][-1].failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [output.position for output in talk.outputs(1)] == [1]
    await talk.say(on(1, chunk(values([3.0]))), on(2, chunk(values([3.0]))))  # the first is dropped: its caller may not know yet
    await talk.until(2, "output", 2)
    await talk.say(on(1, open_many(on_model("lstm-series"))), on(1, chunk(values([1.0]), position=1)))
    assert await talk.failed(1, 2) == ("POSITION_MISMATCH", "position")
    await talk.end()
    assert sum(part.HasField("failure") for part in talk.heard[1]) == 2
    assert talk.heard[2][-1].closed.position == 2


async def test_what_is_out_of_order_fails_its_channel_alone(server: Served) -> None:
    talk = Talk(server)
    await talk.say(on(9, chunk(values([1.0]))))
    assert await talk.failed(9) == ("STREAM_PROTOCOL", "channel")
    await talk.say(on(1, open_many(on_model("lstm-series"))), open_many(on_model("lstm-series")), on(9, CLOSE), on(8, ManyToManyRequest()))
    assert await talk.failed(0) == ("STREAM_PROTOCOL", "channel")
    assert await talk.failed(8) == ("STREAM_PROTOCOL", "channel")
    assert await talk.failed(9, 2) == ("STREAM_PROTOCOL", "channel")
    for number, wrong in enumerate([open_many(on_model("lstm-series")), ManyToManyRequest(), together(chunk(values([1.0])), chunk(values([1.0])))], 20):
        await talk.say(on(number, open_many(on_model("lstm-series"))), on(number, wrong))
        assert (await talk.failed(number))[0] == "STREAM_PROTOCOL"
    await talk.say(on(30, open_many(on_model("lstm-series"))), on(30, CLOSE), on(30, chunk(values([1.0]))))
    assert (await talk.failed(30))[0] == "STREAM_PROTOCOL"
    for number, opening in {40: on_model("none"), 41: on_session("none"), 42: on_model("flowers")}.items():
        await talk.open(number, opening)
    assert await talk.failed(40) == ("MODEL_NOT_FOUND", "open.target.model")
    assert await talk.failed(41) == ("SESSION_NOT_FOUND", "open.target.session.name")
    assert (await talk.failed(42))[0] == "NOT_SUPPORTED_BY_MODEL"
    await talk.say(on(1, chunk(values([1.0]))))
    await talk.until(1, "output")
    await talk.end()


async def test_one_writer_holds_between_channels_and_streams(server: Served) -> None:
    await server.create("lstm-series", "shared")
    talk, other = Talk(server), Talk(server)
    await talk.open(1, on_session("shared"))
    await talk.until(1, "opened")
    await talk.open(2, on_session("shared"))
    assert (await talk.failed(2))[0] == "SESSION_BUSY"
    await other.open(1, on_session("shared", take_over=True))
    await other.until(1, "opened")
    assert (await talk.failed(1))[0] == "SUPERSEDED"
    await talk.end()
    await other.say(on(1, chunk(values([1.0]))))
    await other.until(1, "output")
    other.call.cancel()
    await is_free(server, "shared")


async def test_channels_are_bounded_and_count_as_calls(server: Served) -> None:
    talk, other = Talk(server), Talk(server)
    await talk.say(*(on(number, open_many(on_model("lstm-series"))) for number in range(1, MAX_CHANNELS + 2)))
    await talk.until(MAX_CHANNELS, "opened")
    assert await talk.failed(MAX_CHANNELS + 1) == ("OVERLOADED", "channel")
    await other.say(*(on(number, open_many(on_model("lstm-series"))) for number in range(1, 22)))
    assert (await other.failed(21))[0] == "OVERLOADED"
    assert other.heard[21][-1].failure.retry_after_s == 1.0
    told = await refusal(server.stubs.inference.OneToOne(OneToOneRequest(target=on_model("flowers"), input=values([[1, 2, 3, 4]]))))
    assert told.reason == "OVERLOADED"
    await talk.say(on(1, CLOSE))
    await talk.until(1, "closed")
    await talk.open(MAX_CHANNELS + 1, on_model("lstm-series"))
    await talk.until(MAX_CHANNELS + 1, "opened")
    await talk.end()
    await other.end()


async def test_a_channel_with_too_much_queued_fails_and_the_others_go_on(server: Served) -> None:
    talk = Talk(server)
    await talk.say(*(on(number, open_many(on_model("ids"), output=options(OUTPUT_FORM_TOKENS))) for number in (1, 2)))
    for _ in range(8):
        await talk.say(on(1, chunk(tokens([1] * 1000))))
    await talk.say(on(2, chunk(tokens([1]))))
    await talk.until(2, "output")
    assert (await talk.failed(1))[0] == "OVERLOADED"
    assert sum(len(output.values.tokens.ids) for output in talk.outputs(1)) in range(2000, 8000, 1000)
    await talk.end()


async def test_a_stream_that_is_not_read_pauses_its_generations(server: Served) -> None:
    talk = Talk(server)
    for number in (1, 2, 3):
        await server.create("wide", f"unread-{number}")
        await talk.say(on(number, open_many(on_session(f"unread-{number}"))), on(number, generate(generation(1_000_000))))
        await moves(server, f"unread-{number}")
    for number in (1, 2, 3):
        assert await stands_still(server, f"unread-{number}") < 10_000
    talk.call.cancel()
    for number in (1, 2, 3):
        await is_free(server, f"unread-{number}")


async def test_a_stream_on_channel_0_takes_no_other(server: Served) -> None:
    for wrong, field in ((on(1, chunk(values([1.0]))), "channel"), (CLOSE, "close"), (together(chunk(values([1.0])), on(2, STOP)), "channel")):
        call = server.stubs.inference.ManyToMany(iter([open_many(on_model("lstm-series")), chunk(values([1.0])), wrong]))
        told = await refusal(call)
        assert (told.reason, told.fields) == ("STREAM_PROTOCOL", [field])


async def test_a_stream_on_channel_0_takes_several_messages_in_one(server: Served) -> None:
    steps = inputs(0)
    first = together(open_many(on_model("lstm-series")), *(chunk(values(step[None])) for step in steps[:6]))
    call = server.stubs.inference.ManyToMany(iter([first, together(*(chunk(values(step[None])) for step in steps[6:]))]))
    answers = [answer async for answer in call]
    assert not any(len(answer.more) for answer in answers)
    wanted = server.oracle("lstm-series").session(0).consume(steps)
    np.testing.assert_allclose(np.concatenate([array(answer.output) for answer in answers[1:]]), wanted, atol=1e-4)
