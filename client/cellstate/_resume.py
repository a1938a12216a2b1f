"""How a call on a session goes on after its connection was lost or its server died. Pure: both faces do as it says.

The server keeps what a session was asked and answered until the caller has it (`docs/sessions.md`). So the caller opens again, says up to where it has outputs,
and sends what was not answered in full once more, with the position at which that began. What was applied is answered again, what was not is applied. Where the
session went back to an older position, the caller gives again what it asked from there on. The caller's loop sees each output once, in order.
"""

import random
import time
from collections.abc import Callable
from typing import Protocol

from cellstate._call_log import CallLog, Plan
from cellstate._log import Entry
from cellstate._tracking import GOES_ON_REASONS, Tracked
from cellstate.errors import CellstateError, ErrorDetails, SessionRolledBack
from cellstate.v1 import inference_pb2, types_pb2

FIRST_WAIT_S, LONGEST_WAIT_S, GROWTH = 0.05, 2.0, 1.6
LASTED_S = 5.0
"""An attempt that is lost only after so long had reached a server, whether anything came of it or not: an idle stream, an upload."""

# Codes by which gRPC itself tells that a stream ended on the way; a server's own error carries a reason.
_CODES = frozenset({"UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED"})


def can_go_on(error: CellstateError) -> bool:
    """Tell whether an error says that the call was lost on the way, not that it cannot be answered."""
    return error.reason in GOES_ON_REASONS or (error.code in _CODES and error.reason == error.code)


def rolled_back(position: int, received: int) -> SessionRolledBack:
    """Make the error of a session that was found at an older position."""
    text = f"the session is at position {position} again, and what followed up to {received} cannot be given to it again from here"
    return SessionRolledBack(text, ErrorDetails("SESSION_ROLLED_BACK", "FAILED_PRECONDITION", metadata={"position": str(position)}))


class Backoff:
    """How long to wait before each attempt: longer each time, with jitter, until the limit; from the beginning once something came through.

    Args:
        limit_s: Seconds without any progress after which it gives up.
        now: Seconds on a clock that never goes back.
    """

    def __init__(self, limit_s: float, now: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._now = now
        self._attempts = 0
        self._since_s: float | None = None

    def progressed(self) -> None:
        """Note that something came through."""
        self._attempts, self._since_s = 0, None

    def next_wait_s(self) -> float | None:
        """Return how long to wait before the next attempt; None where the limit is reached."""
        now_s = self._now()
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s >= self._limit_s:
            return None
        longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * GROWTH**self._attempts)
        self._attempts += 1
        return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - nobody's secret


class GoingOn:
    """Decides when a call is made again.

    Args:
        limit_s: Seconds without progress after which it gives up; 0: it is not made again.
        timeout_s: The call's deadline, in seconds from now; None for none.
        now: Seconds on a clock that never goes back.

    Attributes:
        again: It was made again.
    """

    def __init__(self, limit_s: float, timeout_s: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.again = False
        self._limit_s = limit_s
        self._now = now
        self._until_s = None if timeout_s is None else now() + timeout_s
        self._backoff = Backoff(limit_s, now)
        self._progress = 0
        self._made_s: float | None = None

    def wait_s(self, error: CellstateError, progress: int) -> float | None:
        """Return how long to wait before the call is made again; None where the time is over. `progress` grows with what came through."""
        lasted = self._made_s is not None and self._now() - self._made_s >= LASTED_S
        if progress > self._progress or lasted:
            self._progress = progress
            self._backoff.progressed()
        wait_s, left_s = self._backoff.next_wait_s(), self.timeout_s
        if wait_s is None:
            return None
        wait_s = max(wait_s, error.retry_after_s or 0.0)
        self._made_s = self._now() + wait_s
        self.again = left_s is None or left_s > wait_s
        return wait_s if self.again else None

    @property
    def possible(self) -> bool:
        """Whether it may be made again at all."""
        return self._limit_s > 0

    @property
    def timeout_s(self) -> float | None:
        """What is left of the call's deadline."""
        return None if self._until_s is None else self._until_s - self._now()


class Resumable(Protocol):
    """A call that may be made again."""

    def wait_s(self, error: CellstateError) -> float | None:
        """Return how long to wait before it is; None where an error is its end."""

    def replays(self) -> "list[Replay]":
        """Return what is given again first."""


class Resumption:
    """Takes one call on a session up again.

    Attributes:
        log: What it asked.
        received: Position up to which its outputs were passed on.
        stream_token: Of its newest opening: the next one supersedes that.
        expected: Position at which the session is found where it did not go back.
        held: What it asks was not sent yet.
    """

    def __init__(self, tracked: Tracked, log: CallLog, going_on: GoingOn) -> None:
        self.log = log
        self.received = tracked.position
        self.stream_token = tracked.reference().stream_token
        self.expected = tracked.position
        self.held = False
        self._tracked = tracked
        self._going_on = going_on
        self._stands: int | None = None

    def takes(self, output: types_pb2.Output) -> bool:
        """Tell whether an output is new; one that is moves what was received."""
        if output.position <= self.received:
            return False
        self.received = output.position
        return True

    def opened(self, opened: inference_pb2.Opened) -> None:
        """Hear the answer to opening.

        Raises:
            SessionRolledBack: The session stands before what is sent to it.
        """
        self.stream_token = opened.stream_token
        if opened.position < self.expected:
            raise rolled_back(opened.position, self.received)
        self._stands = None
        if self.log.first is None:
            self.received = opened.position
        self.log.begins(opened.position)
        self._tracked.log.opened(opened)

    def goes_on(self, error: CellstateError) -> bool:
        """Tell whether the call can be made again after an error, time aside."""
        went_back = self._went_back(error)
        if not (went_back or can_go_on(error) or (self._going_on.again and error.reason == "SESSION_BUSY")):
            return False
        return self._can_give_again(error.position if went_back else None)

    def wait_s(self, error: CellstateError, *, known: bool = False) -> float | None:
        """Return how long to wait before the call is made again; None where the error is its end. `known`: it is known not to be."""
        goes_on = self.goes_on(error) or (known and self._can_give_again(None))
        return self._going_on.wait_s(error, self.received) if goes_on else None

    def _can_give_again(self, stands: int | None) -> bool:
        if not self._going_on.possible or not self.log.whole:
            return False
        self._stands = stands
        plan = self.log.plan(stands, self.received)
        return plan is not None and (plan.first is not None or not plan.entries or self.held)

    def passes(self, error: CellstateError) -> bool:
        """Tell whether the server, asked again, does not know the oldest chunks any more because it went on beyond them; they are not sent again then."""
        if not self._going_on.again or error.reason != "POSITION_MISMATCH" or error.position is None:
            return False
        left = len(self.log)
        self.log.reached(error.position)
        return len(self.log) < left

    def plan(self) -> Plan:
        """Return what is to be sent again now."""
        plan = self.log.plan(self._stands, self.received) or Plan([], [], self.log.first)
        self.expected = self.received if plan.first is None else plan.first
        return plan

    def reference(self, position: int | None) -> inference_pb2.SessionReference:
        """Return what an opening says of the session."""
        info = self._tracked.info
        return inference_pb2.SessionReference(
            name=info.name, uid=info.uid, position=position, acknowledged_position=self.received, stream_token=self.stream_token
        )

    def request(self, request: inference_pb2.OneToOneRequest) -> inference_pb2.OneToOneRequest:
        """Return a request of one step as it is made again."""
        again = inference_pb2.OneToOneRequest()
        again.CopyFrom(request)
        again.target.session.CopyFrom(self.reference(self.plan().first))
        return again

    def replays(self) -> "list[Replay]":
        """Return what earlier calls asked and is given again first, each on a stream of its own."""
        return [Replay(self, group) for group in self.plan().groups]

    def secured(self, position: int | None) -> None:
        """Hear what is secured by now."""
        self._tracked.log.secured(position)

    @property
    def timeout_s(self) -> float | None:
        """What is left of the call's deadline."""
        return self._going_on.timeout_s

    def _went_back(self, error: CellstateError) -> bool:
        """Tell whether an error says that the session stands before what was sent to it, or that it did so lately."""
        if error.position is None:
            return False
        return isinstance(error, SessionRolledBack) or (error.reason == "POSITION_MISMATCH" and error.position < self.expected)


class Replay:
    """One stream that gives again what earlier calls asked; its answers are known, and passed over.

    Attributes:
        messages: What is sent on it, before it is half-closed.
        timeout_s: What is left of the deadline of the call that waits for it.
    """

    def __init__(self, resumption: Resumption, group: list[Entry]) -> None:
        self._resumption = resumption
        self._first = group[0].first or 0
        self.timeout_s = resumption.timeout_s
        target = inference_pb2.Target(session=resumption.reference(None))
        opening = inference_pb2.ManyToManyRequest(open=group[0].call.options.opening(target))
        self.messages = [opening, *messages(group)]

    def feed(self, response: inference_pb2.ManyToManyResponse) -> None:
        """Hear an answer.

        Raises:
            SessionRolledBack: The session went back once more.
        """
        if response.HasField("opened"):
            self._resumption.stream_token = response.opened.stream_token
            if response.opened.position < self._first:
                raise rolled_back(response.opened.position, self._resumption.received)


def messages(entries: list[Entry]) -> list[inference_pb2.ManyToManyRequest]:
    """Return the entries as messages of one stream, the first with its position."""
    return [entry.message(first=index == 0) for index, entry in enumerate(entries)]
