"""The sync face over a socket."""

import gc
import threading
from unittest import mock

import numpy as np
import pytest

import cellstate
from cellstate import _session_calls


@pytest.fixture
def client(server):
    with cellstate.Client(server.address, timeout_s=20) as made:
        yield made


def test_one_to_one(client):
    result = client.one_to_one("digits", np.array([1, 2], np.float16))
    assert result.values.tolist() == [[1, 2]]
    assert (result.labels, result.position, result.completion.steps) == (("a",), 1, 1)
    assert (result.completion.reason, result.completion.queue_wait_s) == ("input_consumed", 0.5)


@pytest.mark.parametrize("inputs", [[1.0, 2.0, 3.0], [np.array([1.0]), np.array([2.0, 3.0])], (x for x in (1.0, 2.0, 3.0)), np.array([[1.0], [2.0], [3.0]])])
def test_many_to_one(client, inputs):
    result = client.many_to_one("sunspots", inputs)
    assert result.values.reshape(-1)[-1] == 3
    assert result.position == 3


def test_one_to_many_iterates_and_completes(client):
    outputs = client.one_to_many("shakespeare", "R", max_steps=3, seed=2**64 - 1)
    assert outputs.completion is None
    assert [output.text for output in outputs] == ["a", "b", "c"]
    assert (outputs.completion.reason, outputs.completion.seed) == (cellstate.FinishReason.MAX_STEPS, 2**64 - 1)
    assert list(outputs) == []


def test_text_reads_to_the_end(client):
    assert client.one_to_many("shakespeare", "R").text() == "abcdefghij"
    output = client.one_to_many("shakespeare", "R").collect()
    assert (output.text, output.steps) == ("abcdefghij", 10)


def test_many_to_many(client):
    outputs = list(client.many_to_many("sunspots", iter([1.0, [2.0, 3.0]])))
    assert [output.values.reshape(-1).tolist() for output in outputs] == [[1], [2, 3]]
    assert [output.position for output in outputs] == [1, 3]


def test_leaving_early_cancels(client, server):
    with client.one_to_many("shakespeare", "R", max_steps=1) as outputs:
        assert next(outputs).text == "a"
    assert server.cancelled.wait(10)
    assert list(outputs) == []


def test_dropping_the_iterator_cancels(client, server):
    for _ in client.one_to_many("shakespeare", "R", max_steps=1):
        break
    gc.collect()
    assert server.cancelled.wait(10)


def test_cancelling_from_another_thread_ends_iteration(client):
    outputs = client.one_to_many("shakespeare", "R", max_steps=1)
    next(outputs)
    thread = threading.Thread(target=outputs.cancel)
    thread.start()
    assert list(outputs) == []
    thread.join()


def test_what_the_callers_iterable_raises_comes_out(client):
    def broken():
        yield 1.0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.many_to_one("sunspots", broken())
    with pytest.raises(ZeroDivisionError):
        list(client.many_to_many("sunspots", broken()))
    with pytest.raises(cellstate.InvalidInput):
        client.many_to_one("sunspots", [np.zeros(1), np.zeros((1, 1, 1))])


def test_an_error_of_the_callers_own_leaves_the_position_open(client, server):
    with client.session("m") as session:
        with pytest.raises(ZeroDivisionError):
            session.many_to_one(1 / (2 - value) for value in range(5))
        session.step(1.0)
        assert not server.requests[-1].target.session.HasField("position")


def test_an_empty_sequence_is_told_by_the_server(client):
    with pytest.raises(cellstate.InvalidInput) as raised:
        client.many_to_one("sunspots", iter([]))
    assert raised.value.reason == "EMPTY_SEQUENCE"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.one_to_one("fails", 1.0),
        lambda client: client.many_to_one("fails", [1.0]),
        lambda client: list(client.one_to_many("fails", 1.0)),
        lambda client: list(client.many_to_many("fails", [1.0])),
        lambda client: list(client.stream("fails")),
    ],
)
def test_errors_of_all_four_kinds_are_typed(client, call):
    with pytest.raises(cellstate.SessionBusy) as raised:
        call(client)
    assert (raised.value.position, raised.value.field) == (41, "target.session")


def test_an_abandoned_address_is_unavailable():
    with cellstate.Client("localhost:1", timeout_s=5) as client, pytest.raises(cellstate.Unavailable, match="cellstate serve"):
        client.one_to_one("m", 1.0)


def test_deadlines(client):
    with pytest.raises(cellstate.DeadlineExceeded):
        list(client.one_to_many("shakespeare", "R", max_steps=1, timeout_s=0.2))


def test_run_gives_results_and_errors_in_order(client):
    failed, result = client.run([cellstate.Program(model="fails", input=[1.0]), cellstate.Program(model="m", input=[1.0, 2.0], emit="all")])
    assert isinstance(failed, cellstate.NotFound)
    assert (failed.field, failed.position) == ("programs[0].target.model", 3)
    assert isinstance(result, cellstate.Result)
    assert result.values.reshape(-1).tolist() == [1, 2]


def test_reads_are_repeated_while_the_server_is_unavailable(client, server):
    server.unavailable = 2
    assert client.model("m").cell is cellstate.CellKind.LSTM
    assert len(server.requests) == 3


def test_the_token_is_sent(server):
    with cellstate.Client(server.address, token="secret") as client:
        assert [model.name for model in client.models()] == ["m"]
    assert ("authorization", "Bearer secret") in server.metadata


def test_calls_on_a_session_tell_its_name_for_proxies_on_the_way(client, server):
    client.models()
    assert "cellstate-session" not in dict(server.metadata)
    session = client.session("m", name="kept").create()
    assert dict(server.metadata)["cellstate-session"] == "kept"
    for call in (session.info, lambda: session.step([1.0]), lambda: session.many_to_one([1.0]), session.delete):
        server.metadata = []
        call()
        assert dict(server.metadata)["cellstate-session"] == session.name


@pytest.mark.parametrize("name", ["", "nächste", "new\nline", 129 * "a"])
def test_a_name_that_cannot_be_metadata_is_left_to_the_server(name):
    assert _session_calls.create_session("m", {"name": name}, None).metadata == ()


def test_wait_until_ready(client):
    client.wait_until_ready(10)
    with cellstate.Client("localhost:1") as nobody, pytest.raises(cellstate.DeadlineExceeded):
        nobody.wait_until_ready(0.2)


def test_a_closed_client_says_so(client):
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.models()


def test_a_session_lives_from_entering_to_leaving(client, server):
    session = client.session("shakespeare", name="mine", ttl_s=60)
    assert "not created" in repr(session)
    with session:
        assert (session.name, session.uid, session.model, session.seed, session.position) == ("mine", "1", "shakespeare", 5, 0)
        assert session.step(1.0).values.tolist() == [[1]]
        assert session.position == 1
        assert server.requests[-1].target.session.position == 0
        assert session.generate(max_steps=2).text() == "ab"
        assert session.position == 3
        assert not server.requests[-1].HasField("input")
        assert session.many_to_one([1.0, 2.0]).position == 5
        assert [output.position for output in session.many_to_many([1.0])] == [6]
        assert client.one_to_one(session, 1.0).position == 7
    assert type(server.requests[-1]).__name__ == "DeleteSessionRequest"
    assert server.requests[-1].uid == "1"


def test_a_kept_session_is_not_deleted(client, server):
    with client.session("m", keep=True), client.open_session("s"):
        pass
    assert "DeleteSessionRequest" not in {type(request).__name__ for request in server.requests}


def test_a_cut_generation_presents_its_token_next(client, server):
    with client.session("m") as session:
        with session.one_to_many("R", max_steps=1) as outputs:
            next(outputs)
        session.step(1.0)
        reference = server.requests[-1].target.session
        assert not reference.HasField("position")
        assert reference.stream_token == "token"
        session.step(1.0)
        reference = server.requests[-1].target.session
        assert (reference.position, reference.stream_token) == (3, "")


def test_session_handles_do_all_that_sessions_can(client, server):
    session = client.open_session("s")
    session.step(1.0)
    assert session.update(labels={"a": "b"}).labels == {"a": "b"}
    assert session.info().position == 1
    assert session.export() == b"snapshot"
    with session.fork(name="twin", seed=3) as twin:
        assert (twin.name, twin.uid) == ("twin", "fork")
    assert session.reset(seed=8).position == 0
    assert (session.uid, session.position) == ("2", 0)
    session.delete()


def test_import_sends_the_snapshot_in_chunks(client, server):
    data = bytes(600 * 1024)
    with client.import_session(data, name="back", allow_other_numerics=True) as session:
        assert session.uid == "imported"
    opening, *chunks = (request for request in server.requests if type(request).__name__ == "ImportSessionRequest")
    assert opening.open.allow_other_numerics
    assert b"".join(chunk.data for chunk in chunks) == data


def test_a_gone_session_tells_why(client):
    with pytest.raises(cellstate.SessionGone) as raised:
        client.open_session("gone")
    assert raised.value.why == "expired"


def test_sessions_iterates_over_pages(client):
    assert [info.name for info in client.sessions('model="m"')] == ["s0", "s1", "s2"]


def test_a_stream_carries_inputs_and_directives(client):
    with client.session("m") as session, session.stream() as stream:
        stream.send("ab")
        assert stream.receive().text == "ab"
        stream.generate(max_steps=2, seed=3)
        assert [output.text for output in stream.until_completion()] == ["a", "b"]
        assert stream.completion.reason == "max_steps"
        stream.acknowledge()
        stream.send("xyz")
        assert stream.stop() == 8
        assert [stream.receive().text, stream.receive().text] == ["xyz", "s"]
        assert stream.receive().reason == "stop_directive"
        stream.half_close()
        assert list(stream) == []
        assert session.position == stream.position == 8
        with pytest.raises(RuntimeError, match="closed"):
            stream.send("more")


def test_a_stream_is_read_by_one_thread_while_another_stops_it(client):
    with client.stream("m") as stream:
        received = []
        reader = threading.Thread(target=lambda: received.extend(output.text for output in stream))
        reader.start()
        stream.send("abc")
        assert stream.stop() == 4
        stream.half_close()
        reader.join(10)
    assert received == ["abc", "s"]


def test_sending_much_before_reading_does_not_block(client):
    with client.stream("m") as stream:
        for _ in range(2000):
            stream.send("x")
        stream.half_close()
        assert sum(output.steps for output in stream) == 2000


def test_streams_leave_no_thread_behind(client):
    before = set(threading.enumerate())
    with client.stream("m") as stream:
        stream.send("x")
        stream.receive()
        grpcs_own = [thread for thread in threading.enumerate() if thread not in before and thread.name.endswith("(_run)")]
    assert grpcs_own
    for thread in grpcs_own:
        thread.join(10)
        assert not thread.is_alive()


def test_a_stream_refuses_chunks_of_chunks_and_unknown_options(client):
    with client.stream("m") as stream:
        with pytest.raises(cellstate.InvalidInput):
            stream.send(["a", "b"])
        with pytest.raises(TypeError, match="max_step"):
            stream.generate(max_step=3)


@pytest.mark.parametrize("call", [lambda session: session.step(1.0), lambda session: session.many_to_one([1.0])])
def test_after_ctrl_c_the_next_call_names_no_position(server, call):
    with cellstate.Client(server.address) as client, client.session("m") as session:
        with mock.patch.object(client._transport, "_stub", side_effect=interrupted), pytest.raises(KeyboardInterrupt):
            call(session)
        session.step(1.0)
        assert not server.requests[-1].target.session.HasField("position")


def test_a_second_call_on_a_handle_does_not_present_the_token_of_its_living_stream(server):
    with cellstate.Client(server.address) as client, client.session("m") as session, session.stream() as stream:
        stream.send("a")
        stream.receive()
        session.step(1.0)
        assert server.requests[-1].target.session.stream_token == ""


def interrupted(_):
    stub = mock.Mock(side_effect=KeyboardInterrupt)
    stub.future.return_value.result.side_effect = KeyboardInterrupt
    return stub
