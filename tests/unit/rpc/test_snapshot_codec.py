import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cellstate_service.engine.resident import ResidentState
from cellstate_service.errors import CellstateError, DataLoss, InvalidInput, Precondition
from cellstate_service.rpc.snapshot_codec import decode_snapshot, encode_snapshot
from cellstate_service.sessions.session import state_digest
from cellstate_service.sessions.snapshots import Snapshot

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple)
WORDS = st.text(max_size=6)

STATES = st.builds(
    ResidentState,
    position=st.integers(0, 2**62),
    seed=st.integers(0, 2**64 - 1),
    tensors=st.dictionaries(WORDS, arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=FLOATS), max_size=3),
    last_output=st.none() | arrays.arrays(np.float32, st.integers(1, 5), elements=FLOATS),
    tail_tokens=TOKENS,
    tail_text=WORDS,
    text_context=TOKENS,
    text_pending=TOKENS,
)
SNAPSHOTS = st.builds(
    Snapshot,
    name=WORDS,
    uid=WORDS,
    model=WORDS,
    model_digest=WORDS,
    numerics_id=WORDS,
    state=STATES,
    idle_ttl_s=st.none() | st.integers(1, 10**6).map(float),
    labels=st.dictionaries(WORDS, WORDS, max_size=3),
)


def plain(snapshot: Snapshot) -> object:
    """A snapshot with arrays as their bytes, so that it can be compared."""
    state = snapshot.state
    tensors = {name: (tensor.shape, tensor.tobytes()) for name, tensor in state.tensors.items()}
    output = None if state.last_output is None else state.last_output.tobytes()
    return dataclasses.replace(snapshot, state=dataclasses.replace(state, tensors=tensors, last_output=output))  # type: ignore[arg-type]


@given(SNAPSHOTS)
def test_what_is_encoded_is_decoded_bit_for_bit(snapshot: Snapshot) -> None:
    data = encode_snapshot(snapshot)

    decoded = decode_snapshot(data)

    assert plain(decoded) == plain(snapshot)
    assert state_digest(decoded.state) == state_digest(snapshot.state)
    assert encode_snapshot(decoded) == data


@given(SNAPSHOTS, st.data())
def test_a_changed_byte_never_goes_unnoticed(snapshot: Snapshot, data: st.DataObject) -> None:
    encoded = bytearray(encode_snapshot(snapshot))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises((DataLoss, InvalidInput, Precondition)):
        decode_snapshot(bytes(encoded))


@given(SNAPSHOTS, st.data())
def test_a_torn_end_never_goes_unnoticed(snapshot: Snapshot, data: st.DataObject) -> None:
    encoded = encode_snapshot(snapshot)

    with pytest.raises((DataLoss, InvalidInput, Precondition)):
        decode_snapshot(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(CellstateError):
        decode_snapshot(data)
