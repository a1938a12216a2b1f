"""Requests that the core makes ready: seeds, options, targets."""

from unittest import mock

import numpy as np
import pytest

import cellstate
from cellstate import _exchange
from cellstate._calls import many_to_many, many_to_one, one_to_many, one_to_one, run
from cellstate._session_calls import create_session, join_export, to_session, update_session
from cellstate._tracking import Handle, Tracked, tracked_of
from cellstate.v1 import inference_pb2, session_pb2, types_pb2


def handle(position: int = 3) -> Handle:
    made = Handle()
    made._tracked = Tracked(cellstate.SessionInfo(name="s", uid="u", model="m", position=position))
    return made


def seed_of(message) -> int | None:
    return message.seed if message.HasField("seed") else None


def test_seeds_have_64_bits_and_differ():
    seeds = {_exchange.draw_seed() for _ in range(64)}
    assert len(seeds) == 64
    assert max(seeds) < 2**64
    assert max(seeds) >= 2**56


def test_generation_without_a_session_gets_a_seed():
    with mock.patch.object(_exchange.secrets, "randbits", return_value=11):
        for value, options in (("ROMEO:", {}), ([1, 2], {}), (None, {"temperature": 0.5})):
            assert seed_of(one_to_many("m", value, options)[0].request.generation.sampling) == 11
        assert seed_of(one_to_one("m", "a", {}).request.sampling) == 11
        programs = [cellstate.Program(model="m", input="a", generate=3), cellstate.Program(model="m", input="a")]
        generating, consuming = run(programs, None).request.programs
        assert seed_of(generating.generation.sampling) == 11
        assert seed_of(consuming.sampling) == 11


@pytest.mark.parametrize("make", [many_to_many, lambda model, options: many_to_one(model, options, whole=True)])
def test_streams_of_tokens_get_a_seed_with_the_first_chunk(make):
    opening, chunk = make("m", {})[1].messages("ab")
    assert opening.open.sampling.HasField("seed")
    assert chunk.input.values.text == "ab"
    opening, _ = make("m", {})[1].messages(np.zeros(2))
    assert not opening.open.HasField("sampling")


def test_a_given_seed_is_sent():
    assert seed_of(one_to_many("m", "a", {"seed": 0})[0].request.generation.sampling) == 0
    program = cellstate.Program(model="m", input="a", generate=1, sampling=cellstate.Sampling(seed=4))
    assert seed_of(run([program], None).request.programs[0].generation.sampling) == 4


def test_a_session_keeps_its_own_seed():
    session = handle()
    assert not one_to_many(session, "a", {})[0].request.generation.HasField("sampling")
    assert not one_to_one(session, "a", {}).request.HasField("sampling")
    opening, _ = many_to_many(session, {})[1].messages("a")
    assert not opening.open.HasField("sampling")
    assert not run([cellstate.Program(model=session, input="a", generate=2)], None).request.programs[0].generation.HasField("sampling")


def test_numeric_models_get_no_sampling():
    assert not one_to_many("m", [1.0], {"max_steps": 5})[0].request.generation.HasField("sampling")
    assert not one_to_one("m", 1.0, {}).request.HasField("sampling")
    assert not run([cellstate.Program(model="m", input=[1.0], generate=2)], None).request.programs[0].generation.HasField("sampling")


def test_options_reach_the_request():
    options = {"max_steps": 5, "temperature": 0.0, "top_k": 3, "top_p": 0.5, "seed": 1, "stop": ["\n\n", [1, 2]], "form": "tokens", "log_probabilities": True}
    request = one_to_many("m", "a", options)[0].request
    assert request.generation.max_steps == 5
    assert request.generation.sampling.HasField("temperature")
    assert (request.generation.sampling.top_k, request.generation.sampling.top_p) == (3, 0.5)
    assert list(request.generation.stop_sequences) == ["\n\n"]
    assert request.output == types_pb2.OutputOptions(form=types_pb2.OUTPUT_FORM_TOKENS, log_probabilities=True)


def test_what_is_none_stays_unset():
    request = one_to_many("m", [1.0], {"max_steps": None, "temperature": None, "stop": None, "form": None})[0].request
    assert not request.generation.HasField("max_steps")
    assert not request.generation.HasField("sampling")


@pytest.mark.parametrize("call", [lambda o: one_to_one("m", 1.0, o), lambda o: one_to_many("m", 1.0, o), lambda o: many_to_many("m", o)])
def test_a_misspelt_option_is_a_type_error(call):
    with pytest.raises(TypeError, match=r"'temprature'.*temperature"):
        call({"temprature": 1})


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: one_to_many("m", "a", {"max_steps": -1}), "generation.max_steps"),
        (lambda: one_to_many("m", "a", {"max_steps": 99999999999}), "generation.max_steps"),
        (lambda: one_to_many("m", "a", {"seed": 2**64}), "generation.sampling.seed"),
        (lambda: one_to_one("m", "a", {"top_k": -1}), "sampling.top_k"),
        (lambda: create_session("m", {"seed": -1}, None), "session.seed"),
        (lambda: create_session("m", {"ttl_s": float("nan")}, None), "session.ttl"),
        (lambda: create_session("m", {"ttl_s": float("inf")}, None), "session.ttl"),
    ],
)
def test_numbers_that_cannot_be_sent_are_refused_by_field(make, field):
    with pytest.raises(cellstate.InvalidInput) as raised:
        make()
    assert raised.value.field == field


def test_a_session_is_named_with_uid_and_position():
    reference = one_to_one(handle(), 1.0, {}).request.target.session
    assert (reference.name, reference.uid, reference.position, reference.acknowledged_position) == ("s", "u", 3, 3)


def test_neither_name_nor_session_is_a_type_error():
    with pytest.raises(TypeError, match="model's name or a session"):
        one_to_one(3, 1.0, {})


def test_a_session_that_is_not_created_tells_how():
    with pytest.raises(RuntimeError, match="enter it"):
        one_to_one(Handle(), 1.0, {})


def test_errors_of_programs_name_the_program():
    with pytest.raises(cellstate.InvalidInput) as raised:
        run([cellstate.Program(model="m", input="a"), cellstate.Program(model="m", input=[-1])], None)
    assert raised.value.field == "programs[1].input"


def test_a_stream_without_chunks_is_opened_all_the_same():
    uploader = many_to_one("m", {}, whole=True)[1]
    assert [message.WhichOneof("message") for message in uploader.end()] == ["open"]
    assert list(uploader.end()) == []


def test_chunks_of_chunks_are_refused():
    with pytest.raises(cellstate.InvalidInput):
        list(many_to_many("m", {})[1].messages(["a", "b"]))


def test_a_session_ends_one_way_or_the_other():
    from datetime import UTC, datetime

    with pytest.raises(cellstate.InvalidInput, match="not both"):
        to_session({"ttl_s": 3, "expire_time": datetime.now(UTC)})


def test_creation_carries_settings_and_a_request_id():
    call = create_session("m", {"name": "n", "ttl_s": 1.5, "labels": {"a": "b"}, "durability": "memory", "seed": 0}, {"h": np.zeros((1, 2))})
    session = call.request.session
    assert (session.model, session.name, session.ttl.nanos, dict(session.labels)) == ("m", "n", 500_000_000, {"a": "b"})
    assert session.durability == session_pb2.DURABILITY_MEMORY
    assert session.HasField("seed")
    assert call.request.initial_state.tensors[0].name == "h"
    assert call.request.request_id != create_session("m", {}, None).request.request_id


def test_an_update_names_what_it_changes():
    request = update_session(tracked_of(handle()), {"labels": {}, "ttl_s": 3}).request
    assert sorted(request.update_mask.paths) == ["labels", "ttl"]
    with pytest.raises(cellstate.InvalidInput, match="nothing to change"):
        update_session(tracked_of(handle()), {})


def test_a_torn_export_is_told():
    chunks = [session_pb2.ExportSessionResponse(data=b"abc", total_bytes=4)]
    with pytest.raises(cellstate.SnapshotCorrupt, match="3 of 4"):
        join_export(chunks)


def test_integers_that_the_server_refuses_are_explained():
    refused = cellstate.InvalidInput("takes numbers", cellstate.ErrorDetails("NOT_SUPPORTED_BY_MODEL"))
    for call in (one_to_one("m", 3, {}), one_to_many("m", np.array([1]), {})[0]):
        assert "cellstate.values" in call.failed(refused).message
    call, uploader = many_to_one("m", {}, whole=True)
    list(uploader.messages([1, 2]))
    assert "cellstate.values" in call.failed(refused).message
    for value in ("text", 1.5, cellstate.tokens(1)):
        assert one_to_one("m", value, {}).failed(refused) is refused


class TestTracked:
    def test_a_failed_call_stays_at_its_position_so_that_it_can_be_sent_again(self):
        tracked = tracked_of(handle())
        tracked.failed(cellstate.Unavailable("gone"))
        assert tracked.reference().position == 3

    def test_an_error_with_a_position_is_taken_over(self):
        tracked = tracked_of(handle())
        tracked.failed(cellstate.PositionError("no", cellstate.ErrorDetails(metadata={"position": "9"})))
        assert (tracked.position, tracked.reference().position) == (9, 9)

    def test_after_a_cut_call_the_next_names_no_position_and_presents_the_token(self):
        tracked = tracked_of(handle())
        tracked.opened("t")
        tracked.reached(5)
        tracked.cut()
        tracked.left("t")
        reference = tracked.reference()
        assert not reference.HasField("position")
        assert (reference.acknowledged_position, reference.stream_token) == (5, "t")
        tracked.reached(8)
        tracked.ended()
        assert tracked.reference() == inference_pb2.SessionReference(name="s", uid="u", position=8, acknowledged_position=8)

    def test_a_stream_that_lives_keeps_its_token_to_itself(self):
        tracked = tracked_of(handle())
        tracked.opened("t")
        tracked.left("of an older stream")
        assert tracked.reference().stream_token == ""

    @pytest.mark.parametrize("error", [cellstate.SessionBusy, cellstate.Superseded])
    def test_the_position_of_another_call_is_not_taken_over(self, error):
        tracked = tracked_of(handle())
        tracked.failed(error("no", cellstate.ErrorDetails(metadata={"position": "9"})))
        assert tracked.reference().position == 3

    def test_what_arrives_after_the_cut_leaves_the_handle_as_it_is(self):
        tracked = tracked_of(handle())
        reader = _exchange.Reader(None, tracked)
        reader.opened("t", 3)
        reader.cut()
        reader.read(inference_pb2.OneToManyResponse(output=types_pb2.Output(values=types_pb2.Sequence(text="a"), position=4)))
        reader.ended()
        reference = tracked.reference()
        assert not reference.HasField("position")
        assert (reference.acknowledged_position, reference.stream_token) == (3, "t")

    def test_after_a_stream_that_failed_its_token_is_presented(self):
        tracked = tracked_of(handle())
        reader = _exchange.Reader(None, tracked)
        reader.opened("t", 3)
        reader.failed()
        assert (tracked.reference().stream_token, tracked.reference().position) == ("t", 3)

    def test_a_reset_brings_a_new_uid(self):
        tracked = tracked_of(handle())
        tracked.replaced(cellstate.SessionInfo(name="s", uid="v", model="m"))
        assert (tracked.reference().uid, tracked.reference().position) == ("v", 0)

    def test_a_position_before_the_one_known_is_not_taken_over(self):
        """The session went back: the next call gives it again what followed, or is told."""
        tracked = tracked_of(handle())
        tracked.replaced(cellstate.SessionInfo(name="s", uid="u", model="m", position=1))
        assert tracked.position == 3

    def test_reading_a_busy_session_leaves_the_position_to_the_call_on_it(self):
        tracked = tracked_of(handle())
        tracked.replaced(cellstate.SessionInfo(name="s", uid="u", model="m", position=99, busy=True))
        assert tracked.position == 3
