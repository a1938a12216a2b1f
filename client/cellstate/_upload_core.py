"""A sequence that is consumed on a session for one output, without its sockets: makes what is sent, and what is sent again. Pure."""

import dataclasses
from typing import Any

from cellstate._convert import split
from cellstate._exchange import Call
from cellstate._resume import GoingOn, Replay, Resumption, messages
from cellstate.errors import CellstateError, ErrorDetails, InvalidInput
from cellstate.outputs import Result
from cellstate.v1 import inference_pb2

_Request = inference_pb2.ManyToOneRequest


class UploadCore:
    """What both faces of `many_to_one` on a session share.

    Attributes:
        call: The call to make.
        opening: Its first message.
    """

    def __init__(self, call: Call[Result], opening: inference_pb2.ManyToOneOpen, going_on: GoingOn) -> None:
        if call.tracked is None or call.log is None:
            raise RuntimeError("only calls on sessions go on")
        self.call = call
        self.opening = _Request(open=opening)
        self._log = call.log
        self._resumption = Resumption(call.tracked, call.log, going_on)

    def send(self, chunk: Any) -> list[inference_pb2.ManyToOneRequest]:
        """Return the messages that carry a chunk."""
        pieces = split(chunk)
        if pieces is None:
            raise InvalidInput("each chunk is text, numbers or an array", ErrorDetails(field="input"))
        made = [_Request(input=inference_pb2.InputChunk(values=self.call.guess.to_sequence(piece))) for piece in pieces]
        for message in made:
            self._log.sent(message.input)
        return made

    def wait_s(self, error: CellstateError) -> float | None:
        """Return how long to wait before the call is made again; None where an error is its end."""
        return self._resumption.wait_s(error, known=self._resumption.passes(error))

    def replays(self) -> list[Replay]:
        """Return what earlier calls asked and is given again first."""
        return self._resumption.replays()

    def again(self) -> tuple[Call[Result], list[inference_pb2.ManyToOneRequest]]:
        """Return the call and its messages, as it is made again."""
        plan = self._resumption.plan()
        opening = _Request()
        opening.CopyFrom(self.opening)
        opening.open.target.session.CopyFrom(self._resumption.reference(plan.first))
        call = dataclasses.replace(self.call, timeout_s=self._resumption.timeout_s)
        return call, [opening, *(_Request(input=message.input) for message in messages(plan.entries))]

    def decode(self, response: inference_pb2.ManyToOneResponse) -> Result:
        """Return the result; a server that was asked again has counted what it was asked last."""
        began = self._log.first
        if began is not None:
            response.completion.consumed_steps = response.completion.position - began
        return self.call.decode(response)
