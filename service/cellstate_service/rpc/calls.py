"""What one inference call holds while it runs: opened on a target, begun once its first message was found good, ended in any case."""

from types import TracebackType
from typing import Self

from cellstate.v1 import inference_pb2, types_pb2
from cellstate_service.engine.outbox import Emitted
from cellstate_service.engine.request import Finished
from cellstate_service.errors import CellstateError, Unavailable
from cellstate_service.rpc.decode import decode_target
from cellstate_service.rpc.encode import encode_output
from cellstate_service.rpc.interceptor import CallContext
from cellstate_service.rpc.programs import Opening, check_mode
from cellstate_service.sessions.call import Call
from cellstate_service.sessions.calling import Calling, CallTarget


class HeldCall:
    """A call that was opened. Ended by `end`, or by leaving its context."""

    __slots__ = ("_calling", "_field", "_target", "call")

    def __init__(self, calling: Calling, call: Call, target: CallTarget, field: str) -> None:
        self._calling = calling
        self._target = target
        self._field = field
        self.call = call

    def begin(self) -> None:
        """Make the call the one that is on its session; until then whoever was on it goes on undisturbed."""
        self._calling.begin(self.call, self._target, self._field)

    def end(self) -> None:
        """End the call; its session is free."""
        self._calling.close(self.call)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """End the call."""
        self.end()


async def open_call(calling: Calling, context: CallContext, target: inference_pb2.Target, mode: str | None, field: str = "target") -> HeldCall:
    """Open a call.

    Args:
        calling: Where the target is looked up.
        context: Of the RPC.
        target: Model or session.
        mode: A mode that the model must serve; None for any.
        field: Path of the target in the request.

    Raises:
        CellstateError: As `Calling.open` says, and InvalidInput where the model does not serve the mode.
    """
    decoded = decode_target(target, field)
    held = HeldCall(calling, await calling.open(context.owner, decoded, field), decoded, field)
    try:
        if mode is not None and not (mode == "many_to_many" and decoded.acknowledged is not None):  # what was asked in other modes is sent again by it
            check_mode(held.call.model, mode, field)
    except CellstateError:
        held.end()
        raise
    return held


async def opened(call: Call) -> inference_pb2.Opened:
    """Return the answer to opening a call."""
    message = inference_pb2.Opened(position=await call.position())
    fill_opened(message, call)
    return message


def fill_opened(message: inference_pb2.Opened, call: Call) -> None:
    """Put what is known of a call without asking the engine into the answer to its opening."""
    if call.session is not None:
        message.uid, message.stream_token = call.session.uid, call.stream_token
        if (safe := call.secured_news()) is not None:
            message.safe_position = safe
    message.seed = call.seed


def tell_secured(completion: types_pb2.Completion, call: Call) -> None:
    """Put what is secured of a call's session into a completion, where that is to be told."""
    if call.session is not None and (safe := call.session.safe_position) is not None:
        completion.safe_position = safe


async def collect(call: Call, opening: Opening) -> tuple[types_pb2.Output | None, types_pb2.Output | None, Finished]:
    """Return all outputs of inputs, all generated outputs, and the end of the one request that was handed over."""
    joined: dict[bool, Emitted] = {}
    while (item := await call.next()) is not None:
        if isinstance(item, Emitted):
            whole = joined.setdefault(item.generated, item)
            if whole is not item:
                whole.extend(item)
        elif isinstance(item, Finished):
            emitted, generated = (encode_output(joined[kind], opening.form, call.model) if kind in joined else None for kind in (False, True))
            return emitted, generated, item
    raise Unavailable("the call ended before its request was answered: call again")  # nothing half-closes a call of one request
