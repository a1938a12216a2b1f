"""The calls of `InferenceService`, ready to be made: request, and what to do with the answer. Pure: the sync and the asyncio face only carry these out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cellstate._call_log import CallLog
from cellstate._convert import draws, from_completion, from_output, to_emit, to_form, to_stop, to_unsigned
from cellstate._exchange import Call, Guess, Reader, Uploader, draw_seed
from cellstate._log import Options
from cellstate._status import error_from_failure
from cellstate._tracking import Handle, Tracked, tracked_of
from cellstate.errors import CellstateError
from cellstate.outputs import Form, Result
from cellstate.programs import CallOptions, Generation, GenerationOptions, Program, Sampling, StreamOptions, check_options
from cellstate.v1 import inference_pb2, types_pb2


def one_to_one(model: str | Handle, value: Any, options: CallOptions) -> Call[Result]:
    """One step."""
    check_options(options, CallOptions, "one_to_one")
    target, tracked = to_target(model)
    guess = Guess()
    sequence = guess.to_sequence(value, one_step=True)
    drawn = to_sampling(options)
    _seed(drawn, may_draw=tracked is None and draws(sequence))
    sampling = _unless_empty(drawn)
    request = inference_pb2.OneToOneRequest(target=target, input=sequence, output=to_output_options(options), sampling=sampling)
    log = _log_of(tracked, target, Options(request.output, sampling, types_pb2.EMIT_LAST))
    if log is not None:
        log.sent(request.input)
    return Call("inference", "OneToOne", _result_decoder(options, tracked, log), request, tracked, options.get("timeout_s"), log=log, guess=guess)


def many_to_one(model: str | Handle, options: CallOptions, *, whole: bool) -> tuple[Call[Result], Uploader]:
    """A sequence to one output. `whole`: the sequence is all there, so the client's deadline applies."""
    check_options(options, CallOptions, "many_to_one")
    target, tracked = to_target(model)
    opening = inference_pb2.ManyToOneOpen(target=target, output=to_output_options(options), sampling=_unless_empty(to_sampling(options)))
    log = _log_of(tracked, target, Options(opening.output, opening.sampling if opening.HasField("sampling") else None, types_pb2.EMIT_NONE))
    decode = _result_decoder(options, tracked, log)
    call = Call("inference", "ManyToOne", decode, None, tracked, options.get("timeout_s"), streams=not whole, log=log)
    return call, Uploader(inference_pb2.ManyToOneRequest, opening, call.guess, may_draw_seed=tracked is None)


def one_to_many(model: str | Handle, value: Any | None, options: GenerationOptions) -> tuple[Call[Any], Reader]:
    """A value, a prompt or nothing to a generated sequence, on a model; on sessions `_generation_core.py` does it."""
    check_options(options, GenerationOptions, "one_to_many")
    target, tracked = to_target(model)
    guess = Guess()
    sequence = None if value is None else guess.to_sequence(value)
    generation = to_generation(options)
    _seed(generation.sampling, may_draw=tracked is None and _will_draw(sequence, options))
    request = inference_pb2.OneToManyRequest(target=target, input=sequence, output=to_output_options(options), generation=generation)
    call: Call[Any] = Call("inference", "OneToMany", _as_is, request, tracked, options.get("timeout_s"), streams=True, guess=guess)
    return call, Reader(options.get("form"), tracked)


def many_to_many(model: str | Handle, options: StreamOptions) -> tuple[Call[Any], Uploader, Reader]:
    """A sequence to a sequence, chunk by chunk, on a model; on sessions `_stream_core.py` does it."""
    check_options(options, StreamOptions, "many_to_many")
    target, tracked = to_target(model)
    opening = to_stream_options(options).opening(target)
    call: Call[Any] = Call("inference", "ManyToMany", _as_is, None, tracked, options.get("timeout_s"), streams=True)
    return call, Uploader(inference_pb2.ManyToManyRequest, opening, call.guess, may_draw_seed=tracked is None), Reader(options.get("form"), tracked)


def run(programs: Sequence[Program], timeout_s: float | None) -> Call[list[Result | CellstateError]]:
    """Independent programs together."""
    guesses = [Guess() for _ in programs]
    made = [_program(program, f"programs[{index}]", guesses[index]) for index, program in enumerate(programs)]

    def decode(response: inference_pb2.RunResponse) -> list[Result | CellstateError]:
        parts = zip(response.results, programs, made, guesses, strict=True)
        return [_program_result(result, program, tracked, guess) for result, program, (_, tracked), guess in parts]

    request = inference_pb2.RunRequest(programs=[message for message, _ in made])
    return Call("inference", "Run", decode, request, None, timeout_s)


def to_target(model: str | Handle) -> tuple[inference_pb2.Target, Tracked | None]:
    """Return where a program runs, and the session's record where it runs on one."""
    if isinstance(model, Handle):
        tracked = tracked_of(model)
        return inference_pb2.Target(session=tracked.reference()), tracked
    if isinstance(model, str):
        return inference_pb2.Target(model=model), None
    raise TypeError(f"a model's name or a session is needed, not {type(model).__name__}")


def first_position(target: inference_pb2.Target) -> int | None:
    """Return the position that a call names; None where it names none."""
    return target.session.position if target.session.HasField("position") else None


def to_stream_options(options: StreamOptions) -> Options:
    """Return what the opening of a many-to-many stream says beside its target."""
    return Options(to_output_options(options), _unless_empty(to_sampling(options)), to_emit(options.get("emit")))


def to_output_options(options: Mapping[str, Any]) -> types_pb2.OutputOptions:
    """Return the form of outputs."""
    return types_pb2.OutputOptions(form=to_form(options.get("form")), log_probabilities=bool(options.get("log_probabilities")))


def to_sampling(options: Mapping[str, Any], field: str = "sampling") -> types_pb2.Sampling:
    """Return how tokens are drawn; what is None stays unset.

    Raises:
        InvalidInput: A number that cannot be sent.
    """
    return types_pb2.Sampling(
        temperature=options.get("temperature"),
        top_k=to_unsigned(options.get("top_k"), 32, f"{field}.top_k"),
        top_p=options.get("top_p"),
        seed=to_unsigned(options.get("seed"), 64, f"{field}.seed"),
    )


def to_generation(options: Mapping[str, Any]) -> types_pb2.Generation:
    """Return what to generate.

    Raises:
        InvalidInput: A number that cannot be sent.
    """
    max_steps = to_unsigned(options.get("max_steps"), 32, "generation.max_steps")
    generation = types_pb2.Generation(max_steps=max_steps, sampling=_unless_empty(to_sampling(options, "generation.sampling")))
    to_stop(generation, options.get("stop"))
    return generation


def _program(program: Program, path: str, guess: Guess) -> tuple[inference_pb2.Program, Tracked | None]:
    target, tracked = to_target(program.model)
    sequence = None if program.input is None else guess.to_sequence(program.input, field=f"{path}.input")
    sampling = to_sampling(vars(program.sampling or Sampling()))
    generation = None
    if program.generate is not None:
        generate = program.generate if isinstance(program.generate, Generation) else Generation(max_steps=program.generate)
        generation = to_generation(vars(generate))
        if not generation.sampling.HasField("seed") and sampling.HasField("seed"):
            generation.sampling.seed = sampling.seed
        _seed(generation.sampling, may_draw=tracked is None and _will_draw(sequence, vars(generate)))
    if generation is None or program.emit is not None:
        _seed(sampling, may_draw=tracked is None and draws(sequence), like=generation.sampling if generation is not None else None)
    output = to_output_options(vars(program))
    message = inference_pb2.Program(
        target=target, input=sequence, emit=to_emit(program.emit), output=output, generation=generation, sampling=_unless_empty(sampling)
    )
    return message, tracked


def _program_result(result: inference_pb2.ProgramResult, program: Program, tracked: Tracked | None, guess: Guess) -> Result | CellstateError:
    if result.HasField("failure"):
        error = error_from_failure(result.failure)
        if tracked is not None:
            tracked.failed(error)
        return guess.explain(error)
    form = Form(program.form) if program.form is not None else None
    generated = from_output(result.generated, form) if program.generate is not None else None
    return _told(Result(from_completion(result.completion), from_output(result.emitted, form), generated), tracked)


def _log_of(tracked: Tracked | None, target: inference_pb2.Target, options: Options) -> CallLog | None:
    return None if tracked is None else CallLog(tracked.log, options, first_position(target))


def _result_decoder(options: CallOptions, tracked: Tracked | None, log: CallLog | None) -> Callable[[Any], Result]:
    asked = options.get("form")
    form = Form(asked) if asked is not None else None

    def decode(response: inference_pb2.OneToOneResponse | inference_pb2.ManyToOneResponse) -> Result:
        result = Result(from_completion(response.completion), from_output(response.output, form))
        if log is not None:
            log.answered(result.completion.position, result.completion.steps)
        return _told(result, tracked)

    return decode


def _told(result: Result, tracked: Tracked | None) -> Result:
    if tracked is not None:
        tracked.reached(result.completion.position)
        tracked.ended()
        tracked.log.secured(result.completion.safe_position)
    return result


def _will_draw(sequence: types_pb2.Sequence | None, options: Mapping[str, Any]) -> bool:
    """Tell whether generation draws tokens, as far as the call shows it: without an input, settings of draws do."""
    return draws(sequence) or (sequence is None and any(options.get(key) is not None for key in ("temperature", "top_k", "top_p")))


def _seed(sampling: types_pb2.Sampling, *, may_draw: bool, like: types_pb2.Sampling | None = None) -> None:
    """Set a seed where none is given and draws need one."""
    if may_draw and not sampling.HasField("seed"):
        sampling.seed = like.seed if like is not None and like.HasField("seed") else draw_seed()


def _unless_empty(sampling: types_pb2.Sampling) -> types_pb2.Sampling | None:
    return sampling if sampling.ByteSize() else None


def _as_is(response: Any) -> Any:
    return response
