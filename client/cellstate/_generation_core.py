"""A generation on a session, carried by a stream: so it is acknowledged while it runs, and taken up again as streams are. Pure.

What the caller sees is what `OneToMany` answers: generated steps, one completion for prompt and generation, errors that name the fields of its request.
"""

import dataclasses
from typing import Any

from cellstate._calls import to_generation, to_output_options
from cellstate._stream_core import StreamCore
from cellstate._tracking import Handle
from cellstate.errors import CellstateError, InvalidInput
from cellstate.outputs import Completion, Emit, Output
from cellstate.programs import GenerationOptions, StreamOptions, check_options
from cellstate.v1 import inference_pb2

_FIELDS = (("open.", ""), ("input.values", "input"), ("generate.generation", "generation"))
_Request = inference_pb2.ManyToManyRequest


class GenerationCore(StreamCore):
    """What both faces of a generation on a session share.

    Attributes:
        asked: What follows the opening.
    """

    def __init__(self, model: Handle, value: Any | None, options: GenerationOptions, resume_s: float) -> None:
        check_options(options, GenerationOptions, "one_to_many")
        to_output_options(options)
        chosen: StreamOptions = {"emit": Emit.NONE}
        for key in ("form", "log_probabilities", "timeout_s"):
            if key in options:
                chosen[key] = options[key]
        super().__init__(model, chosen, resume_s)
        self.asked: list[inference_pb2.ManyToManyRequest] = []
        if value is not None:
            prompt = _Request(input=inference_pb2.InputChunk(values=self.call.guess.to_sequence(value)))
            self.asked.append(self._sent(prompt, prompt.input))
        directive = _Request(generate=inference_pb2.GenerateDirective(generation=to_generation(options)))
        self.asked.append(self._sent(directive, directive.generate))
        self.asked_all = True

    def finish(self, error: CellstateError | None = None) -> None:
        """Note that nothing more arrives."""
        super().finish(None if error is None else as_one_to_many(error))

    def _event(self, event: Output | Completion) -> None:
        if isinstance(event, Completion):
            began = self._log.first if self._log is not None and self._log.first is not None else 0
            event = dataclasses.replace(event, consumed_steps=event.position - event.generated_steps - began)
            self.reader.completion = event
            self.events.append(event)
        elif event.data is not None:  # else the prompt's answer
            self.events.append(event)


def as_one_to_many(error: CellstateError) -> CellstateError:
    """Return an error of the stream with the field's path in `OneToManyRequest`."""
    for prefix, name in _FIELDS:
        if error.field.startswith(prefix):
            field = name + error.field.removeprefix(prefix)
            message = error.message.replace(error.field, field, 1)
            return type(error)(message, dataclasses.replace(error.details, field=field))
    return error


def is_of_mode(error: Exception) -> bool:
    """Tell whether a model refused the stream because it does not serve streams: `OneToMany` itself is asked then, and does not go on through cuts."""
    return isinstance(error, InvalidInput) and error.reason == "NOT_SUPPORTED_BY_MODEL" and error.field == "target"
