"""`Run`: many independent programs in one call, each with a result or a failure of its own."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from cellstate.v1 import error_pb2, inference_pb2
from cellstate_service.engine.request import Request
from cellstate_service.errors import CellstateError, InvalidInput
from cellstate_service.rpc.calls import HeldCall, collect, open_call, tell_secured
from cellstate_service.rpc.encode import encode_completion
from cellstate_service.rpc.interceptor import CallContext
from cellstate_service.rpc.programs import Opening, ProgramDecoder
from cellstate_service.rpc.status import failure, unexpected
from cellstate_service.sessions.calling import Calling

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Program:
    """One program of Run on its way: decoded, or failed."""

    path: str
    refused: Callable[[CellstateError], None]
    held: HeldCall | None = None
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

    async def run(self) -> inference_pb2.ProgramResult:
        """Run the program, unless it failed already, and return what it gave."""
        with self.failing():
            if self.request is not None and self.opening is not None and self.held is not None:
                self.held.begin()
                self.held.call.submit(self.request)
                emitted, generated, finished = await collect(self.held.call, self.opening)
                completion = encode_completion(finished)
                tell_secured(completion, self.held.call)
                return inference_pb2.ProgramResult(emitted=emitted, generated=generated, completion=completion)
        return inference_pb2.ProgramResult(failure=self.failure)


class Runner:
    """Runs the programs of one call together."""

    def __init__(self, calling: Calling, decoder: ProgramDecoder) -> None:
        self._calling = calling
        self._decoder = decoder

    async def run(self, request: inference_pb2.RunRequest, context: CallContext) -> inference_pb2.RunResponse:
        """Run all programs, or refuse the call as a whole before anything runs.

        Raises:
            InvalidInput: As the contract says of Run.
        """
        self._check_programs(request)
        with contextlib.ExitStack() as calls:
            programs = [await self._prepare(calls, program, f"programs[{index}]", context) for index, program in enumerate(request.programs)]
            self._check_answers(programs)
            return inference_pb2.RunResponse(results=await asyncio.gather(*(program.run() for program in programs)))

    def _check_programs(self, request: inference_pb2.RunRequest) -> None:
        count, limit = len(request.programs), self._decoder.limits.max_programs
        if not 1 <= count <= limit:
            raise InvalidInput(f"programs: {count} are given, 1 to {limit} are taken", field="programs")
        names = [program.target.session.name for program in request.programs if program.target.WhichOneof("target") == "session"]
        if len(set(names)) != len(names):
            raise InvalidInput("programs: two of them are on one session; send them one after the other", field="programs")

    async def _prepare(self, calls: contextlib.ExitStack, message: inference_pb2.Program, path: str, context: CallContext) -> Program:
        """Open a program's call and decode it, so that nothing runs before all that can be refused was."""
        program = Program(path, context.refused)
        with program.failing():
            program.held = calls.enter_context(await open_call(self._calling, context, message.target, None))
            program.opening, program.request = await self._decoder.run_program(message, program.held.call, context.deadline_s)
        return program

    def _check_answers(self, programs: list[Program]) -> None:
        size = sum(self._decoder.answer_bytes(program.request, program.opening.call.model) for program in programs if program.request and program.opening)
        if size > self._decoder.limits.max_output_bytes:
            text = f"programs: their answers may take {size} bytes, one message takes {self._decoder.limits.max_output_bytes}; send fewer programs"
            raise InvalidInput(text, field="programs")
