"""Inputs become messages and outputs become arrays without losing a bit."""

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cellstate
from cellstate._convert import from_enum, from_output, from_tensor, split, to_enum, to_sequence, to_stop, to_tensor
from cellstate._convert_info import from_timestamp, to_duration, to_timestamp
from cellstate.outputs import Emit, FinishReason, Form
from cellstate.v1 import types_pb2

FLOATS = st.sampled_from(["<f2", "<f4", "<f8", ">f4", ">f8"])


@given(hnp.arrays(FLOATS, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5)))
def test_a_floating_point_array_comes_back_bit_by_bit(array):
    for given_array in (array, array[::-1], np.asfortranarray(array)):
        back = from_tensor(to_sequence(given_array).tensor)
        assert back.dtype == given_array.dtype.newbyteorder("=")
        assert back.tobytes() == given_array.astype(back.dtype).tobytes()
        assert back.shape == given_array.shape


@given(hnp.arrays(hnp.integer_dtypes(sizes=(8, 16, 32)), st.integers(0, 20), elements=st.integers(0, 100)))
def test_integers_are_token_ids(array):
    assert list(to_sequence(array).tokens.ids) == array.tolist()


@given(hnp.arrays(st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4"]), st.integers(0, 20)))
def test_values_makes_exact_numbers_of_integers(array):
    assert from_tensor(to_sequence(cellstate.values(array)).tensor).tolist() == array.tolist()


@given(st.text())
def test_text_stays_text(text):
    assert to_sequence(text).text == text


@pytest.mark.parametrize(
    ("value", "one_step", "shape"),
    [
        (1.5, False, [1, 1]),
        (np.float32(1.5), True, [1, 1]),
        ([1.0, 2.0], False, [2]),
        ([1.0, 2.0], True, [1, 2]),
        ([[1.0, 2.0]], True, [1, 2]),
        ([[1.0], [2.0]], False, [2, 1]),
        (cellstate.values(3), False, [1, 1]),
        ([], False, [0]),
    ],
)
def test_shapes_are_time_first(value, one_step, shape):
    assert list(to_sequence(value, one_step=one_step).tensor.shape) == shape


@pytest.mark.parametrize("value", [7, np.int64(7), [7], (7,), cellstate.tokens(7), cellstate.tokens([7])])
def test_one_token_is_given_in_many_ways(value):
    assert list(to_sequence(value, one_step=True).tokens.ids) == [7]


@pytest.mark.parametrize("value", [None, True, [True], object(), b"bytes", 1j, [None], {"a": 1}, cellstate.tokens([1.5]), cellstate.values("text"), [2**70]])
def test_what_is_neither_text_nor_numbers_is_a_type_error(value):
    with pytest.raises(TypeError):
        to_sequence(value)


@pytest.mark.parametrize("value", [[-1], [2**32], [[1, 2]], [[1.0], [1.0, 2.0]], np.zeros((1, 1, 1)), cellstate.tokens([[1]])])
def test_what_no_model_takes_is_invalid_input_with_its_field(value):
    with pytest.raises(cellstate.InvalidInput) as raised:
        to_sequence(value, field="programs[3].input")
    assert raised.value.field == "programs[3].input"
    assert isinstance(raised.value, ValueError)


@settings(max_examples=30)
@given(st.integers(1, 400_000), st.sampled_from([None, 1, 3]))
def test_long_arrays_are_cut_into_bounded_chunks_without_loss(steps, features):
    array = np.arange(steps * (features or 1), dtype=np.float64).reshape((steps, features) if features else (steps,))
    pieces = split(array)
    assert pieces is not None
    assert all(piece.nbytes <= 512 * 1024 for piece in pieces)
    assert np.array_equal(np.concatenate(list(pieces)), array)


@pytest.mark.parametrize("whole", ["text", 1, 1.5, [1, 2], (1.0,), [[1.0]], np.zeros(3), np.float32(1), cellstate.tokens([1]), cellstate.values([1])])
def test_a_whole_sequence_is_told_from_chunks(whole):
    assert split(whole) is not None


@pytest.mark.parametrize("chunks", [["a", "b"], [np.zeros(1), np.zeros(2)], iter([1.0]), (x for x in "ab"), range(3).__iter__(), [cellstate.tokens(1)]])
def test_chunks_are_told_from_a_whole_sequence(chunks):
    assert split(chunks) is None


def test_to_tensor_is_little_endian_and_contiguous():
    tensor = to_tensor(np.array([[1, 2], [3, 4]], ">f4").T)
    assert tensor.data == np.array([[1, 3], [2, 4]], "<f4").tobytes()


def test_logits_are_told_from_values_by_what_was_asked():
    output = types_pb2.Output(values=types_pb2.Sequence(tensor=to_tensor(np.zeros((1, 2), np.float32))))
    assert from_output(output).values.shape == (1, 2)
    assert from_output(output, Form.LOGITS).logits.shape == (1, 2)


def test_reading_the_wrong_form_says_which_is_there():
    output = from_output(types_pb2.Output(values=types_pb2.Sequence(text="a")))
    with pytest.raises(TypeError, match="carries text, not values"):
        _ = output.values


def test_an_output_without_values_is_empty_in_every_form():
    output = from_output(types_pb2.Output(first_position=3, position=5))
    assert (output.text, output.tokens.tolist(), output.values.shape, output.logits.shape, output.steps) == ("", [], (0, 0), (0, 0), 2)


def test_unknown_options_name_those_that_exist():
    with pytest.raises(cellstate.InvalidInput, match="none, last, all"):
        to_enum(Emit, types_pb2.Emit, "some", "emit")


@pytest.mark.parametrize(("number", "reason"), [(3, FinishReason.STOP_SEQUENCE), (0, FinishReason.UNKNOWN), (99, FinishReason.UNKNOWN)])
def test_a_finish_reason_of_a_newer_server_is_unknown(number, reason):
    assert from_enum(FinishReason, types_pb2.FinishReason, number) is reason


@pytest.mark.parametrize("stop", ["ab", ["ab"], ("ab",)])
def test_stop_is_one_text_or_several(stop):
    generation = types_pb2.Generation()
    to_stop(generation, stop)
    assert list(generation.stop_sequences) == ["ab"]


def test_stop_takes_token_ids_beside_text():
    generation = types_pb2.Generation()
    to_stop(generation, ["x", [1, 2], cellstate.tokens([3])])
    assert [list(ids.ids) for ids in generation.stop_token_sequences] == [[1, 2], [3]]


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9999, 12, 1), timezones=st.timezones()))
def test_times_keep_their_instant(time):
    assert from_timestamp(to_timestamp(time)) == time.astimezone(UTC)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(cellstate.InvalidInput, match="time zone"):
        to_timestamp(datetime(2030, 1, 1))


@given(st.floats(0, 1e9))
def test_durations_keep_nanoseconds(seconds):
    duration = to_duration(seconds)
    assert duration.seconds + duration.nanos / 1e9 == pytest.approx(seconds, abs=1e-6)
