"""A session that was exported and imported has the same state and the same future, bit for bit."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.session_pb2 import DeleteSessionRequest, Session
from cellstate.v1.snapshot_pb2 import Snapshot, SnapshotEnvelope
from cellstate.v1.types_pb2 import Sequence
from tests.integration.serving import Served, serving
from tests.integration.sessions.calls import feed, generated
from tests.integration.snapshots import export, import_of, tampered
from tests.integration.stubs import chunk, generate, generation, on_session, open_many, refusal, responses, text, values

pytestmark = pytest.mark.asyncio(loop_scope="package")

INPUTS: dict[str, tuple[Sequence, Sequence]] = {
    "lstm-text": (text("To be, or not"), text(" to be")),
    "gru-series": (values([0.1, 0.9, -3.0]), values([0.5, 0.25])),
    "pairs": (values([[0.1, 0.9], [2, 3]]), values([[1, -1]])),
}


async def future(server: Served, name: str, sequence: Sequence) -> list[bytes]:
    """What a session answers to inputs and then generates, without times and names."""
    answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_session(name)), chunk(sequence), generate(generation(20))])))
    outputs = [answer.output for answer in answers if answer.HasField("output")]
    joined = b"".join(output.values.tensor.data + output.values.text.encode() for output in outputs)
    return [joined, str(outputs[-1].position).encode(), str(answers[0].opened.seed).encode()]


async def imported(server: Served, data: bytes, **parts: Any) -> Session:
    session: Session = (await server.stubs.sessions.ImportSession(iter(import_of(data, **parts)))).session
    return session


@pytest.mark.parametrize("chunk_bytes", [97, 1 << 20])
@pytest.mark.parametrize("model", INPUTS)
async def test_export_and_import_keep_every_bit(server: Served, name: str, model: str, chunk_bytes: int) -> None:
    source = await server.create(model, name, seed=2**64 - 1, labels={"a": "b"}, ttl=Duration(seconds=50))
    past, coming = INPUTS[model]
    await feed(server, name, past)
    before = await server.get(name)

    data = await export(server.stubs, name)
    copy = await imported(server, data, chunk_bytes=chunk_bytes, session=Session(name=f"{name}-copy"))

    assert (copy.model, copy.seed, copy.position, dict(copy.labels), copy.idle_ttl) == (model, 2**64 - 1, before.position, {"a": "b"}, Duration(seconds=50))
    assert copy.uid != source.uid
    assert (await server.get(copy.name)).state_digest == before.state_digest == (await server.get(name)).state_digest
    assert await export(server.stubs, name) == data
    assert await future(server, copy.name, coming) == await future(server, name, coming)
    assert (await server.get(copy.name)).state_digest == (await server.get(name)).state_digest


async def test_a_snapshot_of_a_fresh_session(server: Served, name: str) -> None:
    await server.create("lstm-text", name, seed=4)

    copy = await imported(server, await export(server.stubs, name))

    assert copy.position == 0
    assert await generated(server, copy.name) == await generated(server, name)


async def test_an_import_takes_what_its_opening_sets(server: Served, name: str) -> None:
    await server.create("lstm-text", name, labels={"a": "b"})

    session = Session(name=f"{name}-copy", model="lstm-text", seed=9, labels={"c": "d"}, ttl=Duration(seconds=7))
    copy = await imported(server, await export(server.stubs, name), session=session)

    assert (copy.name, copy.seed, dict(copy.labels), copy.idle_ttl) == (f"{name}-copy", 9, {"c": "d"}, Duration(seconds=7))


async def test_a_snapshot_goes_to_another_server(server: Served, models: Path, name: str) -> None:
    await server.create("gru-series", name)
    past, coming = INPUTS["gru-series"]
    await feed(server, name, past)
    data = await export(server.stubs, name)
    expected = await future(server, name, coming)
    await server.stubs.sessions.DeleteSession(DeleteSessionRequest(name=name))

    async with serving(server.models, metrics_port=None) as other:
        moved = await imported(other, data, session=Session(name=name))
        assert await future(other, moved.name, coming) == expected


async def test_an_export_while_a_stream_generates_is_of_one_position(server: Served, name: str) -> None:
    for each in (name, f"{name}-reference"):
        await server.create("lstm-text", each, seed=3)
    stream = server.stubs.inference.ManyToMany(iter([open_many(on_session(name)), generate(generation(400))]))
    reading = asyncio.ensure_future(responses(stream))

    data = await export(server.stubs, name)

    await reading
    copy = await imported(server, data)
    expected = await generated(server, f"{name}-reference", 410)
    assert await generated(server, copy.name, 5) == expected[max(0, copy.position - 1) :][:5]  # the start value was consumed at position 0


async def test_the_file_is_what_the_contract_says(server: Served, name: str) -> None:
    created = await server.create("lstm-text", name, seed=6)
    await feed(server, name, text("abc"))

    envelope = SnapshotEnvelope.FromString(await export(server.stubs, name))

    assert (envelope.magic, envelope.format_version, len(envelope.sha256)) == ("cellstate snapshot", 1, 32)
    snapshot = Snapshot.FromString(envelope.payload)
    assert (snapshot.session.name, snapshot.session.uid, snapshot.session.model_digest) == (name, created.uid, created.model_digest)
    (anchor,) = snapshot.anchors
    assert (anchor.position, anchor.sampling.seed) == (3, 6)
    assert [(state.name, list(state.tensor.shape)) for state in anchor.state] == [("c", [2, 24]), ("h", [2, 24])]
    assert [(schema.name, list(schema.tensor.shape), schema.tensor.data) for schema in snapshot.state_schema] == [("c", [2, 24], b""), ("h", [2, 24], b"")]
    assert len(anchor.last_output.data) == 4 * anchor.last_output.shape[0]


def set_digest(snapshot: Snapshot) -> None:
    snapshot.session.model_digest = "0" * 64


def set_numerics(snapshot: Snapshot) -> None:
    snapshot.session.numerics_id = "another machine"


async def test_other_digests_and_numerics_are_taken_where_allowed(server: Served, name: str) -> None:
    await server.create("lstm-text", name)
    await feed(server, name, text("abc"))
    digest = (await server.get(name)).state_digest
    data = tampered(tampered(await export(server.stubs, name), set_digest), set_numerics)

    for allowed in ({"allow_other_numerics": True}, {"allow_other_model_digest": True}):
        told = await refusal(server.stubs.sessions.ImportSession(iter(import_of(data, **allowed))))
        assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SNAPSHOT_MISMATCH")
    copy = await imported(server, data, allow_other_numerics=True, allow_other_model_digest=True)

    assert (await server.get(copy.name)).state_digest == digest
    own = (await server.get(name)).model_digest
    assert copy.model_digest == own


async def test_a_change_of_one_bit_shows_in_the_digest(server: Served, name: str) -> None:
    await server.create("gru-series", name)
    await feed(server, name, values([1.0]))

    def nudge(snapshot: Snapshot) -> None:
        tensor = snapshot.anchors[-1].state[0].tensor
        numbers = np.frombuffer(tensor.data, "<f4").copy()
        numbers[-1] = np.nextafter(numbers[-1], np.float32(2))
        tensor.data = numbers.tobytes()

    copy = await imported(server, tampered(await export(server.stubs, name), nudge))

    assert (await server.get(copy.name)).state_digest != (await server.get(name)).state_digest
