"""One stream of many sessions, without its sockets."""

import pytest

from cellstate import SessionInfo
from cellstate._call_log import MARKED_EVERY
from cellstate._gateway_core import GatewayCore, step_messages
from cellstate._status import error_from_status
from cellstate._tracking import Handle, Tracked
from cellstate.v1 import inference_pb2

_Response = inference_pb2.ManyToManyResponse


def test_a_stream_that_breaks_once_all_was_answered_has_come_to_its_end() -> None:
    core, error = GatewayCore(None, 10.0), error_from_status(14, "Socket closed")
    core.half_closed = True
    assert core.wait_s(error) is None
    core.finish(error)
    assert core.ended
    assert core.error is None


def test_a_stream_that_breaks_before_has_failed() -> None:
    core, error = GatewayCore(None, 10.0), error_from_status(14, "Socket closed")
    core.finish(error)
    assert core.error is error


def test_a_stream_without_channels_is_opened_again_for_those_to_come_until_the_limit() -> None:
    error = error_from_status(14, "Socket closed")
    assert GatewayCore(None, 10.0).wait_s(error) is not None
    assert GatewayCore(None, 0.0).wait_s(error) is None
    finishing = GatewayCore(None, 10.0)
    finishing.finishing = True
    assert finishing.wait_s(error) is None


def test_a_channel_on_a_model_that_came_while_the_stream_was_away_is_opened_on_the_next() -> None:
    core = GatewayCore(None, 10.0)
    assert core.wait_s(error_from_status(14, "Socket closed")) is not None
    channel, _ = core.open("m", {})
    (again,) = core.reopenings()
    assert (again.channel, again.open.target.model) == (channel.number, "m")


def test_where_one_input_of_a_step_is_none_nothing_is_asked_on_any_channel() -> None:
    core = GatewayCore(None, 10.0)
    session = Handle()
    session._tracked = Tracked(SessionInfo(name="s", uid="u", model="m", position=2))
    whole, _ = core.open(session, {})
    other, _ = core.open("m", {})
    assert list(core.feed(_Response(channel=whole.number, opened=inference_pb2.Opened(position=2)))) == [whole]
    with pytest.raises(TypeError):
        step_messages({whole: [1.0], other: object()})
    assert [message.HasField("input") for message in whole.reopening()] == [False]
    messages, errors = step_messages({whole: [1.0], other: [2.0]})
    assert (len(messages), errors) == (2, {})
    assert [message.HasField("input") for message in whole.reopening()] == [False, True]


def test_steps_of_text_ask_from_time_to_time_where_they_end() -> None:
    core = GatewayCore(None, 10.0)
    session = Handle()
    session._tracked = Tracked(SessionInfo(name="s", uid="u", model="m", position=2))
    channel, _ = core.open(session, {})
    list(core.feed(_Response(channel=channel.number, opened=inference_pb2.Opened(position=2))))
    asked = [message for _ in range(MARKED_EVERY) for message in step_messages({channel: "a"})[0]]
    assert [message.WhichOneof("message") for message in asked] == [*["input"] * MARKED_EVERY, "stop"]
    assert {message.channel for message in asked} == {channel.number}
    list(core.feed(_Response(channel=channel.number, stopped=inference_pb2.Stopped(position=2 + MARKED_EVERY))))
    assert not channel.stops
    assert [message.HasField("input") for message in channel.reopening()] == [False]
