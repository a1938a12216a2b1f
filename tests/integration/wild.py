"""Wild messages, built from the contract's descriptors: well-formed on the wire, with values nobody meant."""

from typing import Any

import numpy as np
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from cellstate.v1.types_pb2 import Sequence
from tests.integration.stubs import text, tokens, values

MODELS = ("text", "series", "ids", "flowers")
NAMES = ("fuzz-a", "fuzz-b", "canary")
MAX_STEPS_LIMIT = 40

_EDGES = [0, 1, 2, 3, 5, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63)]
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_WORDS = st.text(max_size=8) | st.sampled_from(
    ["", "a" * 300, "\u20ac" * 3000, 'model="text"', "labels.a=", "ttl", "expire_time", "labels", "MS5lM2IwYzQ0Mg=="]
)
_NUMBERS = st.lists(st.sampled_from([0.0, 1.0, -2.5, 3e38, float("nan"), float("inf")]), max_size=4).map(lambda row: np.array(row, "<f4").tobytes())

#: Values that fields of a name often have, so that calls get past their first check.
_HINTS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from([*NAMES, "", "h", "c", "no such"]) | _WORDS,
    "model": st.sampled_from([*MODELS, "", "no such"]) | _WORDS,
    "text": st.text("Helo \n", max_size=6) | _WORDS,
    "stop_sequences": st.text("el", max_size=3) | _WORDS,
    "ids": st.integers(0, 60),
    "max_steps": st.integers(0, MAX_STEPS_LIMIT + 1) | st.just(2**32 - 1),
    "position": st.integers(0, 12) | st.sampled_from([edge for edge in _EDGES if edge >= 0]),
    "shape": st.integers(-1, 4) | st.sampled_from([2**62, -(2**63)]),
    "dtype": st.integers(0, 8),
    "form": st.integers(0, 5),
    "emit": st.integers(0, 4),
    "durability": st.integers(0, 4),
    "channel": st.sampled_from([0, 0, 0, 1]),
    "data": st.binary(max_size=12) | _NUMBERS,
    "request_id": st.sampled_from(["", "one", "two", "i" * 65]),
    "temperature": st.sampled_from([0.0, 1e-45, 0.5, 100.0, -1.0, float("nan"), float("inf")]),
    "top_p": st.sampled_from([0.0, 1e-45, 0.5, 1.0, 2.0, float("nan")]),
}
_SEQUENCES: st.SearchStrategy[Sequence] = st.sampled_from([text("Hello"), tokens([1, 2]), tokens([7]), values([0.5]), values([[1, 2, 3, 4]]), values([])])


def repeated(field: FieldDescriptor) -> bool:
    """Whether a field is repeated, by the name that this release of protobuf has for it."""
    if hasattr(field, "is_repeated"):
        return bool(field.is_repeated)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.name in _HINTS:
        return _HINTS[field.name]
    if field.cpp_type in _BOUNDS:
        low, high = _BOUNDS[field.cpp_type]
        return st.integers(low, high) | st.sampled_from([edge for edge in _EDGES if low <= edge <= high])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=16) if field.type == FieldDescriptor.TYPE_BYTES else _WORDS
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    return st.floats(width=32)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 6) -> Message:
    """Draw a message of a type, with any of its fields set to anything."""
    if descriptor.full_name == Sequence.DESCRIPTOR.full_name and draw(st.booleans()):
        return draw(_SEQUENCES)
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw(st.integers(0, 2)) == 0 or (field.message_type and depth == 0):
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            getattr(message, field.name).update(draw(st.dictionaries(_WORDS, _WORDS, max_size=2)))
        elif field.message_type:
            parts = messages(field.message_type, depth - 1)
            if repeated(field):
                getattr(message, field.name).extend(draw(st.lists(parts, max_size=3)))
            else:
                getattr(message, field.name).CopyFrom(draw(parts))
        elif repeated(field):
            getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
        else:
            setattr(message, field.name, draw(_scalar(field)))
    return message
