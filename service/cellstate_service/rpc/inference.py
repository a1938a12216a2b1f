"""InferenceService: the four modes and the program itself. Handlers translate: decode, hand over to a call, encode what comes back."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import structlog

from cellstate.v1 import error_pb2, inference_pb2, inference_pb2_grpc, types_pb2
from cellstate_service.engine.outbox import Emitted, Item
from cellstate_service.engine.request import Emit, Finished, Request, StopTaken
from cellstate_service.errors import CellstateError, InvalidInput, Reason
from cellstate_service.rpc.decode import decode_emit, decode_target
from cellstate_service.rpc.encode import encode_completion, encode_nothing, encode_output
from cellstate_service.rpc.interceptor import CallContext
from cellstate_service.rpc.programs import Opening, ProgramDecoder, check_mode, refuse_channels
from cellstate_service.rpc.status import failure, unexpected
from cellstate_service.sessions.call import Call
from cellstate_service.sessions.manager import SessionManager

Opens = TypeVar("Opens", inference_pb2.ManyToOneRequest, inference_pb2.ManyToManyRequest)
_log = structlog.get_logger(__name__)


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves the five calls on the sessions of a manager."""

    def __init__(self, sessions: SessionManager, decoder: ProgramDecoder) -> None:
        self._sessions = sessions
        self._decoder = decoder

    async def OneToOne(self, request: inference_pb2.OneToOneRequest, context: CallContext) -> inference_pb2.OneToOneResponse:  # type: ignore[override]
        """One value in, one value out."""
        with self._open(request.target, context, "one_to_one") as call:
            opening = self._decoder.opening(request, call, Emit.LAST, context.deadline_s)
            step = await self._decoder.one_step(request, opening)
            self._begin(call, request.target)
            call.submit(step)
            outputs, _, finished = await _collect(call, opening)
            return inference_pb2.OneToOneResponse(output=outputs, completion=encode_completion(finished))

    async def ManyToOne(  # type: ignore[override]
        self, request_iterator: AsyncIterator[inference_pb2.ManyToOneRequest], context: CallContext
    ) -> inference_pb2.ManyToOneResponse:
        """A sequence of values predicts the next value."""
        first = await _first(request_iterator)
        with self._open(first.open.target, context, "many_to_one", "open.target") as call:
            opening = self._decoder.opening(first.open, call, Emit.NONE, context.deadline_s, "open.")
            self._begin(call, first.open.target, "open.target")
            async with _pumping(call, self._pump_many_to_one(request_iterator, opening)):
                return await self._answer_many_to_one(call, opening)

    async def OneToMany(self, request: inference_pb2.OneToManyRequest, context: CallContext) -> AsyncIterator[inference_pb2.OneToManyResponse]:  # type: ignore[override]
        """One value, or a prompt, predicts a sequence of values."""
        with self._open(request.target, context, "one_to_many") as call:
            opening = self._decoder.opening(request, call, Emit.NONE, context.deadline_s)
            program = await self._decoder.program(request, opening)
            self._begin(call, request.target)
            response = inference_pb2.OneToManyResponse()
            if call.session is not None:
                response.opened.CopyFrom(await _opened(call))
            call.submit(program)
            item: Item | None = None
            while True:
                item = item or await call.next()
                if isinstance(item, Emitted):
                    response.output.CopyFrom(encode_output(item, opening.form, call.model))
                    item = call.next_ready()
                if isinstance(item, Finished):
                    response.completion.CopyFrom(encode_completion(item))
                    yield response
                    return
                yield response
                response = inference_pb2.OneToManyResponse()

    async def ManyToMany(  # type: ignore[override]
        self, request_iterator: AsyncIterator[inference_pb2.ManyToManyRequest], context: CallContext
    ) -> AsyncIterator[inference_pb2.ManyToManyResponse]:
        """A sequence of values predicts the next sequence, or one output per input as they arrive."""
        first = await _first(request_iterator)
        refuse_channels(first)
        with self._open(first.open.target, context, "many_to_many", "open.target") as call:
            emit = decode_emit(first.open.emit, Emit.ALL, "open.emit")
            opening = self._decoder.opening(first.open, call, emit, context.deadline_s, "open.")
            self._begin(call, first.open.target, "open.target")
            yield inference_pb2.ManyToManyResponse(opened=await _opened(call))
            progress = _Progress()
            pumping = _pumping(call, self._pump_many_to_many(request_iterator, opening, progress))
            async with pumping, contextlib.aclosing(progress.items(call)) as items:
                async for item in items:
                    response = _response(item, opening)
                    if response is not None:
                        yield response

    async def Run(self, request: inference_pb2.RunRequest, context: CallContext) -> inference_pb2.RunResponse:  # type: ignore[override]
        """The program itself, for many independent sequences at once."""
        self._check_programs(request)
        with contextlib.ExitStack() as calls:
            programs = [await self._prepare(calls, program, f"programs[{index}]", context) for index, program in enumerate(request.programs)]
            self._check_answers(programs)
            return inference_pb2.RunResponse(results=await asyncio.gather(*(self._run_one(program) for program in programs)))

    # -- opening

    @contextlib.contextmanager
    def _open(self, target: inference_pb2.Target, context: CallContext, mode: str | None, field: str = "target") -> Iterator[Call]:
        call = self._sessions.open_call(context.owner, decode_target(target, field), field)
        try:
            if mode is not None:
                check_mode(call.model, mode, field)
            yield call
        finally:
            self._sessions.close_call(call)

    def _begin(self, call: Call, target: inference_pb2.Target, field: str = "target") -> None:
        self._sessions.begin_call(call, decode_target(target, field), field)

    # -- many-to-one

    async def _pump_many_to_one(self, requests: AsyncIterator[inference_pb2.ManyToOneRequest], opening: Opening) -> None:
        call, position, steps = opening.call, opening.position, 0
        async for message in requests:
            if message.WhichOneof("message") != "input":
                raise InvalidInput("open: a stream opens once; send chunks of input after it", Reason.STREAM_PROTOCOL, field="open")
            request = await self._decoder.chunk(message.input, opening, Emit.NONE)
            request.position = position if request.position is None else request.position
            position, steps = None, steps + request.input_steps
            await call.room()
            call.submit(request)
        if not steps:
            raise InvalidInput("input: the stream ended without any; send at least one step before closing it", Reason.EMPTY_SEQUENCE, field="input")
        call.submit(opening.request(emit=Emit.LAST))

    async def _answer_many_to_one(self, call: Call, opening: Opening) -> inference_pb2.ManyToOneResponse:
        response, consumed, waited_s, ran_s = inference_pb2.ManyToOneResponse(), 0, None, 0.0
        while True:
            item = await call.next()
            if isinstance(item, Emitted):
                response.output.CopyFrom(encode_output(item, opening.form, call.model))
            elif isinstance(item, Finished):
                waited_s = item.queue_wait_s if waited_s is None else waited_s
                ran_s += item.run_s
                if item.emit is Emit.LAST:
                    response.completion.CopyFrom(encode_completion(item, consumed_before=consumed))
                    response.completion.queue_wait_s, response.completion.run_s = waited_s, ran_s
                    return response
                consumed += item.consumed_steps

    # -- many-to-many

    async def _pump_many_to_many(self, requests: AsyncIterator[inference_pb2.ManyToManyRequest], opening: Opening, progress: "_Progress") -> None:
        call, position = opening.call, opening.position
        async for message in requests:
            refuse_channels(message)
            kind = message.WhichOneof("message")
            await call.room()
            if kind == "input":
                emit = decode_emit(message.input.emit, opening.emit, "input.emit")
                request = await self._decoder.chunk(message.input, opening, emit)
            elif kind == "generate":
                request = self._decoder.generate(message.generate, opening)
            elif kind == "stop":
                progress.expect()
                call.stop_generation()
                continue
            elif kind == "acknowledge":
                continue
            else:
                what = "a stream opens once" if kind == "open" else "the message is empty"
                raise InvalidInput(f"message: {what}; send input, generate, stop or acknowledge", Reason.STREAM_PROTOCOL, field=kind or "message")
            request.position = position if request.position is None else request.position
            position = None
            progress.expect()
            call.submit(request)
        progress.close()

    # -- run

    def _check_programs(self, request: inference_pb2.RunRequest) -> None:
        count, limit = len(request.programs), self._decoder.limits.max_programs
        if not 1 <= count <= limit:
            raise InvalidInput(f"programs: {count} are given, 1 to {limit} are taken", field="programs")
        names = [program.target.session.name for program in request.programs if program.target.WhichOneof("target") == "session"]
        if len(set(names)) != len(names):
            raise InvalidInput("programs: two of them are on one session; send them one after the other", field="programs")

    async def _prepare(self, calls: contextlib.ExitStack, message: inference_pb2.Program, path: str, context: CallContext) -> "_Program":
        """Open a program's call and decode it, so that nothing runs before all that can be refused was."""
        program = _Program(message.target, path, context.refused)
        with program.failing():
            call = calls.enter_context(self._open(message.target, context, None))
            program.opening, program.request = await self._decoder.run_program(message, call, context.deadline_s)
        return program

    def _check_answers(self, programs: "list[_Program]") -> None:
        size = sum(self._decoder.answer_bytes(program.request, program.opening.call.model) for program in programs if program.request and program.opening)
        if size > self._decoder.limits.max_output_bytes:
            text = f"programs: their answers may take {size} bytes, one message takes {self._decoder.limits.max_output_bytes}; send fewer programs"
            raise InvalidInput(text, field="programs")

    async def _run_one(self, program: "_Program") -> inference_pb2.ProgramResult:
        with program.failing():
            if program.request is not None and program.opening is not None:
                call = program.opening.call
                self._begin(call, program.target)
                call.submit(program.request)
                emitted, generated, finished = await _collect(call, program.opening)
                return inference_pb2.ProgramResult(emitted=emitted, generated=generated, completion=encode_completion(finished))
        return inference_pb2.ProgramResult(failure=program.failure)


@dataclass(slots=True)
class _Program:
    """One program of Run on its way: decoded, or failed."""

    target: inference_pb2.Target
    path: str
    refused: Callable[[CellstateError], None]
    request: Request | None = None
    opening: Opening | None = None
    failure: error_pb2.Failure | None = None

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Turn an error into the program's own failure; the others go on."""
        try:
            yield
        except CellstateError as error:
            self.refused(error)
            self.request, self.failure = None, failure(error.under(self.path))
        except Exception:
            fault = unexpected()
            _log.exception("unexpected fault in a program", log_id=fault.metadata["log_id"])
            self.refused(fault)
            self.request, self.failure = None, failure(fault)


class _Progress:
    """Counts what a many-to-many stream still owes an answer, so that it ends after its half-close."""

    def __init__(self) -> None:
        self._owed = 0
        self._closed = asyncio.Event()

    def expect(self) -> None:
        self._owed += 1

    def close(self) -> None:
        self._closed.set()

    async def items(self, call: Call) -> AsyncGenerator[Item, None]:
        """Yield what comes back until the stream is half-closed and all is answered."""
        closed = asyncio.ensure_future(self._closed.wait())
        item: asyncio.Task[Item] | None = None
        try:
            while self._owed or not self._closed.is_set():
                ready = call.next_ready() if item is None else None  # what `item` waits for, or has taken already, comes first
                if ready is None:
                    item = item or asyncio.ensure_future(call.next())
                    await asyncio.wait({item} if closed.done() else {item, closed}, return_when=asyncio.FIRST_COMPLETED)
                    if not item.done():
                        continue
                    ready, item = item.result(), None
                if isinstance(ready, Finished | StopTaken):
                    self._owed -= 1
                yield ready
        finally:
            closed.cancel()
            if item is not None:
                item.cancel()


async def _first(requests: AsyncIterator[Opens]) -> Opens:
    async for message in requests:
        if message.WhichOneof("message") != "open":
            raise InvalidInput("open: the first message of a stream opens it, with a model or a session", Reason.STREAM_PROTOCOL, field="open")
        return message
    raise InvalidInput("open: the stream ended before it was opened", Reason.STREAM_PROTOCOL, field="open")


@contextlib.asynccontextmanager
async def _pumping(call: Call, pump: "Awaitable[None]") -> AsyncIterator[None]:
    """Run what reads a stream beside what answers it. Its error takes its turn behind all that it handed over before."""

    async def guarded() -> None:
        try:
            await pump
        except CellstateError as error:
            call.submit(Request(call.outbox, refusal=error))
        except Exception:
            fault = unexpected()
            _log.exception("unexpected fault in a stream", log_id=fault.metadata["log_id"])
            call.fail(fault)

    task = asyncio.ensure_future(guarded())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _opened(call: Call) -> inference_pb2.Opened:
    uid = "" if call.session is None else call.session.uid
    return inference_pb2.Opened(uid=uid, position=await call.position(), stream_token=call.stream_token if uid else "", seed=call.seed)


async def _collect(call: Call, opening: Opening) -> tuple[types_pb2.Output | None, types_pb2.Output | None, Finished]:
    """Return all outputs of inputs, all generated outputs, and the end of the one request that was handed over."""
    joined: dict[bool, Emitted] = {}
    while True:
        item = await call.next()
        if isinstance(item, Emitted):
            whole = joined.setdefault(item.generated, item)
            if whole is not item:
                whole.extend(item)
        elif isinstance(item, Finished):
            emitted, generated = (encode_output(joined[kind], opening.form, call.model) if kind in joined else None for kind in (False, True))
            return emitted, generated, item


def _response(item: Item, opening: Opening) -> inference_pb2.ManyToManyResponse | None:
    if isinstance(item, Emitted):
        return inference_pb2.ManyToManyResponse(output=encode_output(item, opening.form, opening.call.model))
    if isinstance(item, StopTaken):
        return inference_pb2.ManyToManyResponse(stopped=inference_pb2.Stopped(position=item.position))
    if item.generates:
        return inference_pb2.ManyToManyResponse(completion=encode_completion(item))
    return inference_pb2.ManyToManyResponse(output=encode_nothing(item)) if item.emit is Emit.NONE else None
