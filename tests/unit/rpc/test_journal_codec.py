"""Requests of a journal are stored as they are, however often and however much of them is already known."""

import numpy as np
import pytest

from cellstate.v1 import snapshot_pb2
from cellstate_service.engine.journal import Entry
from cellstate_service.engine.request import Emit, Finish, Finished, Outputs
from cellstate_service.rpc.journal_codec import bytes_field, decode_entry, encode_entry

FINISHED = Finished(Finish.INPUT_CONSUMED, 7, 3, 0, None, None, 0.5, 0.25, Emit.ALL, generates=False)


def rows(first: int, count: int) -> Outputs:
    return Outputs(first, np.arange(first, first + 200 * count, dtype=np.float32).reshape(count, 200), "", [], generated=False)


def tokens(first: int, count: int) -> Outputs:
    return Outputs(first, list(range(300, 300 + count)), "é" * count, [], generated=True)


def stored(entry: Entry) -> Entry:
    return decode_entry(snapshot_pb2.KeptRequest.FromString(encode_entry(entry)))


def assert_same(entry: Entry, other: Entry) -> None:
    facts = [(of.first, of.digest, of.position, of.consumed, of.generated, of.forgotten) for of in (entry, other)]
    assert facts[0] == facts[1]
    assert [(block.first_position, block.text, np.array(block.values).tobytes()) for block in entry.outputs] == [
        (block.first_position, block.text, np.array(block.values).tobytes()) for block in other.outputs
    ]
    assert (entry.finished is None) == (other.finished is None)


@pytest.mark.parametrize("make", [rows, tokens])
@pytest.mark.parametrize("finished", [None, FINISHED])
def test_what_is_stored_again_is_the_same(make, finished):
    entry = Entry(4, b"digest", 7, 3, 0, [make(4, 1), make(5, 2)], finished=finished)
    assert_same(stored(entry), entry)
    assert encode_entry(entry) == encode_entry(entry)
    assert_same(stored(entry), entry)


@pytest.mark.parametrize("make", [rows, tokens])
def test_outputs_that_were_dropped_are_not_stored_again(make):
    entry = Entry(4, b"digest", 7, 3, 0, [make(4, 1), make(5, 2)], finished=FINISHED)
    encode_entry(entry)
    entry.forgotten, entry.outputs = 5, entry.outputs[1:]
    assert_same(stored(entry), entry)
    entry.forgotten, entry.outputs = 7, []
    assert_same(stored(entry), entry)


def test_a_request_that_runs_is_stored_as_it_is_each_time():
    entry = Entry(4, b"digest", 5, 1, 0, [rows(4, 1)])
    encode_entry(entry)
    entry.outputs.append(rows(5, 1))
    entry.position = entry.consumed = 6
    assert_same(stored(entry), entry)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 28])
def test_field_of_bytes_begins_as_protobuf_writes_it(size):
    content = bytes(min(size, 20_000))
    begun = bytes_field(snapshot_pb2.KeptRequest.VALUES_FIELD_NUMBER, size)
    if size == len(content) and size:
        assert snapshot_pb2.KeptRequest(values=content).SerializeToString() == begun + content
    assert len(begun) == 1 + max(1, -(-size.bit_length() // 7))
