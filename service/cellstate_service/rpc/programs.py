"""From the messages of the five calls to requests of the engine: a mode is nothing more than a choice of T, emit and N."""

from dataclasses import dataclass

from cellstate.v1 import inference_pb2, types_pb2
from cellstate_service.engine.request import Emit, Form, Request, Sampling
from cellstate_service.errors import InvalidInput, Reason
from cellstate_service.models.loading import LoadedModel
from cellstate_service.rpc.decode import InputLimits, decode_emit, decode_form, decode_generation, decode_inputs, decode_sampling
from cellstate_service.sessions.call import Call


def check_mode(model: LoadedModel, mode: str, field: str = "target") -> None:
    """Raise InvalidInput unless the model serves a mode."""
    if mode not in model.manifest.modes:
        served = ", ".join(model.manifest.modes)
        raise InvalidInput(f"{field}: the model {model.name!r} does not serve {mode}; it serves {served}", Reason.NOT_SUPPORTED_BY_MODEL, field=field)


def first_position(target: inference_pb2.Target) -> int | None:
    """Return the position that the caller expects of its session before the first step."""
    return target.session.position if target.WhichOneof("target") == "session" and target.session.HasField("position") else None


@dataclass(frozen=True, slots=True)
class Opening:
    """What a call's opening fixes for its requests.

    Attributes:
        call: The call.
        form: The form of outputs.
        sampling: How tokens are drawn where a directive does not say.
        emit: Which outputs of inputs are answered where a chunk does not say.
        log_probabilities: Whether they are asked for.
        deadline_s: Monotonic time after which no further step is taken.
        position: Position before the first step, where the caller names it.
    """

    call: Call
    form: Form
    sampling: Sampling
    emit: Emit
    log_probabilities: bool
    deadline_s: float | None
    position: int | None = None

    def request(self, **parts: object) -> Request:
        """Return a request with these settings, `parts` taken in."""
        request = Request(self.call.outbox, emit=self.emit, form=self.form, sampling=self.sampling, log_probabilities=self.log_probabilities)
        request.deadline_s = self.deadline_s
        for name, value in parts.items():
            setattr(request, name, value)
        return request


class ProgramDecoder:
    """Decodes openings, chunks, directives and whole programs, each checked against its model and the limits of a message."""

    def __init__(self, limits: InputLimits) -> None:
        self.limits = limits

    def opening(self, message: object, call: Call, emit: Emit, deadline_s: float | None, path: str = "") -> Opening:
        """Return the settings of any message that has `target`, `output` and perhaps `sampling`; `path` leads to it in the request, with a dot behind."""
        output: types_pb2.OutputOptions = message.output  # type: ignore[attr-defined]
        own = not isinstance(message, inference_pb2.OneToManyRequest)  # that one's is in its generation
        given = message.sampling if own and message.HasField("sampling") else None  # type: ignore[attr-defined]
        return Opening(
            call=call,
            form=decode_form(output, call.model, f"{path}output"),
            sampling=decode_sampling(given, call.model, None, f"{path}sampling"),
            emit=emit,
            log_probabilities=output.log_probabilities,
            deadline_s=deadline_s,
            position=first_position(message.target),  # type: ignore[attr-defined]
        )

    async def one_step(self, message: inference_pb2.OneToOneRequest, opening: Opening) -> Request:
        """Return the request of OneToOne."""
        inputs = await decode_inputs(message.input, opening.call.model, self.limits, "input")
        if len(inputs) != 1:
            raise InvalidInput(f"input: has {len(inputs)} steps, OneToOne takes exactly one; use ManyToOne for more", field="input")
        return opening.request(inputs=inputs, position=opening.position)

    async def chunk(self, message: inference_pb2.InputChunk, opening: Opening, emit: Emit) -> Request:
        """Return the request of an input chunk."""
        inputs = await decode_inputs(message.values, opening.call.model, self.limits, "input.values")
        return Request(
            opening.call.outbox,
            inputs,
            emit,
            opening.form,
            opening.sampling,
            log_probabilities=opening.log_probabilities,
            position=message.position if message.HasField("position") else None,
            end_position=message.end_position if message.HasField("end_position") else None,
            deadline_s=opening.deadline_s,
            of_text=message.values.HasField("text"),
        )

    def generate(self, message: inference_pb2.GenerateDirective, opening: Opening) -> Request:
        """Return the request of a generate directive."""
        self._check_generated_form(opening, "open.output.form")
        given = message.generation.sampling if message.generation.HasField("sampling") else None
        return opening.request(
            emit=Emit.NONE,
            generation=decode_generation(message.generation, opening.call.model, "generate.generation"),
            sampling=decode_sampling(given, opening.call.model, opening.sampling, "generate.generation.sampling"),
            position=message.position if message.HasField("position") else None,
            end_position=message.end_position if message.HasField("end_position") else None,
        )

    async def program(self, message: "inference_pb2.OneToManyRequest | inference_pb2.Program", opening: Opening) -> Request:
        """Return the request of OneToMany, or of one program of Run."""
        model = opening.call.model
        request = opening.request(position=opening.position)
        if message.HasField("input"):
            request.inputs = await decode_inputs(message.input, model, self.limits, "input")
        if message.HasField("generation") or isinstance(message, inference_pb2.OneToManyRequest):
            self._check_generated_form(opening, "output.form")
            request.generation = decode_generation(message.generation, model, "generation")
            given = message.generation.sampling if message.generation.HasField("sampling") else None
            request.generation_sampling = decode_sampling(given, model, opening.sampling, "generation.sampling")
        elif request.inputs is None:
            raise InvalidInput("input: give inputs, generation, or both", Reason.EMPTY_SEQUENCE, field="input")
        return request

    async def run_program(self, message: inference_pb2.Program, call: Call, deadline_s: float | None) -> tuple[Opening, Request]:
        """Return the settings and the request of one program of Run, refusing answers beyond the limit of a message."""
        emit = decode_emit(message.emit, Emit.NONE if message.HasField("generation") else Emit.LAST, "emit")
        opening = self.opening(message, call, emit, deadline_s)
        request = await self.program(message, opening)
        self._check_answer_size(request, call.model)
        return opening, request

    def _check_generated_form(self, opening: Opening, field: str) -> None:
        if opening.form is Form.LOGITS:
            raise InvalidInput(f"{field}: LOGITS are answered for inputs only; ask for TOKENS or TEXT to generate", Reason.NOT_SUPPORTED_BY_MODEL, field=field)

    def answer_bytes(self, request: Request, model: LoadedModel) -> int:
        """Return a bound of the bytes that the outputs of a request take in one answer."""
        width = 8 if request.form.draws else 4 * model.network.output_size
        steps = (request.input_steps if request.emit is Emit.ALL else 1) + (request.generation.max_steps if request.generation else 0)
        return steps * width

    def _check_answer_size(self, request: Request, model: LoadedModel) -> None:
        size = self.answer_bytes(request, model)
        if size > self.limits.max_output_bytes:
            field = "generation.max_steps" if request.generation else "input"
            raise InvalidInput(
                f"{field}: the outputs may take {size} bytes, one answer takes {self.limits.max_output_bytes}; use a streaming call", field=field
            )
