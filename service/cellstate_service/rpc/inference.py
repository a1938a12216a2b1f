"""InferenceService: the four modes and the program itself. Handlers translate: decode, hand over to a call, encode what comes back."""

from collections.abc import AsyncIterator
from typing import TypeVar

from cellstate.v1 import inference_pb2, inference_pb2_grpc
from cellstate_service.engine.outbox import Emitted
from cellstate_service.engine.request import Emit, Finished
from cellstate_service.errors import InvalidInput, Reason, Unavailable
from cellstate_service.rpc.calls import open_call, opened, tell_secured
from cellstate_service.rpc.decode import decode_emit
from cellstate_service.rpc.encode import fill_completion, fill_output
from cellstate_service.rpc.gateway import Gateway
from cellstate_service.rpc.intake import Intake
from cellstate_service.rpc.interceptor import CallContext
from cellstate_service.rpc.programs import Opening, ProgramDecoder
from cellstate_service.rpc.runs import Runner
from cellstate_service.rpc.streams import field_of, fill, pump_many_to_many, pumping
from cellstate_service.sessions.call import Call
from cellstate_service.sessions.calling import Calling

Opens = TypeVar("Opens", inference_pb2.ManyToOneRequest, inference_pb2.ManyToManyRequest)


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves the five calls on sessions and models. Those that answer with a stream write it by their context."""

    def __init__(self, calling: Calling, decoder: ProgramDecoder) -> None:
        self._calling = calling
        self._decoder = decoder
        self._runner = Runner(calling, decoder)

    async def OneToOne(self, request: inference_pb2.OneToOneRequest, context: CallContext) -> inference_pb2.OneToOneResponse:  # type: ignore[override]
        """One value in, one value out."""
        with await open_call(self._calling, context, request.target, "one_to_one") as held:
            call = held.call
            opening = self._decoder.opening(request, call, Emit.LAST, context.deadline_s)
            step = await self._decoder.one_step(request, opening)
            held.begin()
            call.submit(step)
            response = inference_pb2.OneToOneResponse()
            while isinstance(item := call.next_ready() or await call.next(), Emitted):
                fill_output(response.output, item, opening.form, call.model)
            if isinstance(item, Finished):
                fill_completion(response.completion, item)
                tell_secured(response.completion, call)
                return response
        raise Unavailable("the call ended before it was answered: call again")  # nothing half-closes this call

    async def ManyToOne(  # type: ignore[override]
        self, request_iterator: AsyncIterator[inference_pb2.ManyToOneRequest], context: CallContext
    ) -> inference_pb2.ManyToOneResponse:
        """A sequence of values predicts the next value."""
        with self._calling.ended_by_drain():
            first = await _first(request_iterator)
        with await open_call(self._calling, context, first.open.target, "many_to_one", "open.target") as held:
            opening = self._decoder.opening(first.open, held.call, Emit.NONE, context.deadline_s, "open.")
            held.begin()
            async with pumping(held.call, self._pump_many_to_one(request_iterator, opening)):
                return await self._answer_many_to_one(held.call, opening)

    async def OneToMany(self, request: inference_pb2.OneToManyRequest, context: CallContext) -> None:  # type: ignore[override]
        """One value, or a prompt, predicts a sequence of values."""
        with await open_call(self._calling, context, request.target, "one_to_many") as held:
            call = held.call
            opening = self._decoder.opening(request, call, Emit.NONE, context.deadline_s)
            program = await self._decoder.program(request, opening)
            held.begin()
            response = inference_pb2.OneToManyResponse()
            if call.session is not None:
                response.opened.CopyFrom(await opened(call))
            call.submit(program)
            item = None
            while item := item or await call.next():
                if isinstance(item, Emitted):
                    fill_output(response.output, item, opening.form, call.model)
                    item = call.next_ready()
                if isinstance(item, Finished):
                    fill_completion(response.completion, item)
                    tell_secured(response.completion, call)
                    await context.write(response)
                    return
                await context.write(response)
                response = inference_pb2.OneToManyResponse()

    async def ManyToMany(  # type: ignore[override]
        self, request_iterator: AsyncIterator[inference_pb2.ManyToManyRequest], context: CallContext
    ) -> None:
        """A sequence of values predicts the next sequence, or one output per input as they arrive; on one channel, or on many."""
        with self._calling.ended_by_drain():
            first = await _first(request_iterator)
        if first.channel:
            await Gateway(self._calling, self._decoder, context).serve(first, request_iterator)
            return
        with await open_call(self._calling, context, first.open.target, "many_to_many", "open.target") as held:
            call = held.call
            emit = decode_emit(first.open.emit, Emit.ALL, "open.emit")
            opening = self._decoder.opening(first.open, call, emit, context.deadline_s, "open.")
            held.begin()
            await context.write(inference_pb2.ManyToManyResponse(opened=await opened(call)))
            async with pumping(call, pump_many_to_many(first, request_iterator, Intake(self._decoder, opening))):
                while (item := call.next_ready() or await call.next()) is not None:
                    if field_of(item) is not None:
                        response = inference_pb2.ManyToManyResponse()
                        fill(response, item, opening)
                        await context.write(response)

    async def Run(self, request: inference_pb2.RunRequest, context: CallContext) -> inference_pb2.RunResponse:  # type: ignore[override]
        """The program itself, for many independent sequences at once."""
        return await self._runner.run(request, context)

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
        while (item := await call.next()) is not None:
            if isinstance(item, Emitted):
                fill_output(response.output, item, opening.form, call.model)
            elif isinstance(item, Finished):
                waited_s = item.queue_wait_s if waited_s is None else waited_s
                ran_s += item.run_s
                if item.emit is Emit.LAST:
                    fill_completion(response.completion, item, consumed_before=consumed)
                    response.completion.queue_wait_s, response.completion.run_s = waited_s, ran_s
                    tell_secured(response.completion, call)
                    return response
                consumed += item.consumed_steps
        raise Unavailable("the call ended before it was answered: call again")  # nothing half-closes this call


async def _first(requests: AsyncIterator[Opens]) -> Opens:
    async for message in requests:
        # A gateway's stream is recognised by its channel, and its channels fail by themselves; any other stream opens with its first message.
        if message.WhichOneof("message") != "open" and not getattr(message, "channel", 0):
            raise InvalidInput("open: the first message of a stream opens it, with a model or a session", Reason.STREAM_PROTOCOL, field="open")
        return message
    raise InvalidInput("open: the stream ended before it was opened", Reason.STREAM_PROTOCOL, field="open")
