"""Imports that are refused: torn, foreign, of another model, or crafted."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from cellstate.v1.session_pb2 import DURABILITY_SYNC, ImportSessionOpen, ImportSessionRequest, ListSessionsRequest, Session
from cellstate.v1.snapshot_pb2 import Snapshot, SnapshotEnvelope
from tests.integration.bad_input.cases import INVALID, NOT_FOUND, PRECONDITION, assert_told
from tests.integration.snapshots import export, import_of, tampered
from tests.integration.stubs import Stubs, refusal

pytestmark = pytest.mark.asyncio(loop_scope="package")

TORN = grpc.StatusCode.DATA_LOSS
MISMATCH = "SNAPSHOT_MISMATCH"
OPENING = ImportSessionRequest(open=ImportSessionOpen())


def envelope(data: bytes, **parts: Any) -> bytes:
    message = SnapshotEnvelope.FromString(data)
    for name, value in parts.items():
        setattr(message, name, value)
    return message.SerializeToString()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def edit(change: Callable[[Snapshot], None]) -> Callable[[bytes], bytes]:
    return lambda data: tampered(data, change)


def cut_tensor(snapshot: Snapshot) -> None:
    snapshot.anchors[-1].state[0].tensor.data = b"\0" * 8


def fill_tensor(snapshot: Snapshot) -> None:
    tensor = snapshot.anchors[-1].state[0].tensor
    tensor.data = np.full(len(tensor.data) // 4, np.nan, "<f4").tobytes()


def reshape_tensor(snapshot: Snapshot) -> None:
    shape = snapshot.anchors[-1].state[0].tensor.shape
    shape[:] = [shape[1], shape[0]]


def drop_tensor(snapshot: Snapshot) -> None:
    del snapshot.anchors[-1].state[0]


def cut_output(snapshot: Snapshot) -> None:
    output = snapshot.anchors[-1].last_output
    output.shape[:], output.data = [1], output.data[:4]


def set_digest(snapshot: Snapshot) -> None:
    snapshot.session.model_digest = "0" * 64


def set_numerics(snapshot: Snapshot) -> None:
    snapshot.session.numerics_id = "another machine " * 10_000


def set_model(snapshot: Snapshot) -> None:
    snapshot.session.model = "nope"


def set_position(snapshot: Snapshot) -> None:
    snapshot.anchors[-1].position = 2**64 - 1


def set_text_context(snapshot: Snapshot) -> None:
    snapshot.anchors[-1].text_context.ids[:] = [2**32 - 1]


def set_pending(snapshot: Snapshot) -> None:
    snapshot.anchors[-1].text_pending.ids[:] = [9_999]


def set_label(snapshot: Snapshot) -> None:
    snapshot.session.labels["a b"] = "c"


def set_ttl(snapshot: Snapshot) -> None:
    snapshot.session.idle_ttl.FromSeconds(-5)


BAD: list[tuple[str, Callable[[bytes], bytes], grpc.StatusCode, str, str]] = [
    ("empty", lambda data: b"", INVALID, "INVALID_FIELD", "data"),
    ("a text file", lambda data: b"This is not the file that you are looking for.", TORN, "SNAPSHOT_CORRUPT", "data"),
    ("another protobuf", lambda data: envelope(data, magic="something else"), INVALID, "INVALID_FIELD", "data"),
    ("cut short", lambda data: data[:-1], TORN, "SNAPSHOT_CORRUPT", "data"),
    ("half", lambda data: data[: len(data) // 2], TORN, "SNAPSHOT_CORRUPT", "data"),
    ("a bit flipped in the payload", lambda data: flipped(data, len(data) // 2), TORN, "SNAPSHOT_CORRUPT", "data"),
    ("a bit flipped in the checksum", lambda data: flipped(data, len(data) - 1), TORN, "SNAPSHOT_CORRUPT", "data"),
    ("no checksum", lambda data: envelope(data, sha256=b""), TORN, "SNAPSHOT_CORRUPT", "data"),
    ("of the future", lambda data: envelope(data, format_version=2), PRECONDITION, MISMATCH, "data"),
    ("without a version", lambda data: envelope(data, format_version=0), PRECONDITION, MISMATCH, "data"),
    ("without anchors", edit(lambda snapshot: snapshot.ClearField("anchors")), TORN, "SNAPSHOT_CORRUPT", "data"),
    ("of a tensor that is cut", edit(cut_tensor), TORN, "SNAPSHOT_CORRUPT", "data"),
    ("of NaN", edit(fill_tensor), TORN, "SNAPSHOT_CORRUPT", "data"),
    ("of another shape", edit(reshape_tensor), PRECONDITION, MISMATCH, "data"),
    ("of fewer tensors", edit(drop_tensor), PRECONDITION, MISMATCH, "data"),
    ("of another output", edit(cut_output), PRECONDITION, MISMATCH, "data"),
    ("of another digest", edit(set_digest), PRECONDITION, MISMATCH, "open.allow_other_model_digest"),
    ("of other numerics", edit(set_numerics), PRECONDITION, MISMATCH, "open.allow_other_numerics"),
    ("of an unknown model", edit(set_model), NOT_FOUND, "MODEL_NOT_FOUND", "open.session.model"),
    ("of the last position", edit(set_position), PRECONDITION, MISMATCH, "data"),
    ("of a text context beyond the vocabulary", edit(set_text_context), PRECONDITION, MISMATCH, "data"),
    ("of a pending token beyond the vocabulary", edit(set_pending), PRECONDITION, MISMATCH, "data"),
    ("of a bad label", edit(set_label), INVALID, "INVALID_FIELD", "open.session.labels"),
    ("of a negative time to live", edit(set_ttl), INVALID, "INVALID_FIELD", "open.session.ttl"),
]


@pytest.mark.parametrize(("change", "code", "reason", "field"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_bad_snapshots_are_refused(stubs: Stubs, change: Callable[[bytes], bytes], code: grpc.StatusCode, reason: str, field: str) -> None:
    data = await export(stubs, "subject")
    before = await names(stubs)

    told = await refusal(stubs.sessions.ImportSession(iter(import_of(change(data)))))

    assert_told(told, reason, field, code)
    assert await names(stubs) == before


@pytest.mark.parametrize(
    ("session", "reason", "field", "code"),
    [
        (Session(name="subject"), "SESSION_EXISTS", "open.session.name", grpc.StatusCode.ALREADY_EXISTS),
        (Session(name="a b"), "INVALID_FIELD", "open.session.name", INVALID),
        (Session(model="nope"), "MODEL_NOT_FOUND", "open.session.model", NOT_FOUND),
        (Session(model="gru-text"), MISMATCH, "open.allow_other_model_digest", PRECONDITION),
        (Session(labels={"a b": ""}), "INVALID_FIELD", "open.session.labels", INVALID),
        (Session(ttl=Duration(seconds=-1)), "INVALID_FIELD", "open.session.ttl", INVALID),
        (Session(durability=DURABILITY_SYNC), "INVALID_FIELD", "open.session.durability", INVALID),
        (Session(durability=99), "INVALID_FIELD", "open.session.durability", INVALID),  # type: ignore[arg-type]
    ],
)
async def test_a_good_snapshot_is_refused_with_a_bad_opening(stubs: Stubs, session: Session, reason: str, field: str, code: grpc.StatusCode) -> None:
    data = await export(stubs, "subject")

    assert_told(await refusal(stubs.sessions.ImportSession(iter(import_of(data, session=session)))), reason, field, code)


async def test_a_snapshot_of_another_cell_is_refused_even_where_other_digests_are_allowed(stubs: Stubs) -> None:
    data = await export(stubs, "subject")

    messages = import_of(data, session=Session(model="gru-text"), allow_other_model_digest=True, allow_other_numerics=True)

    assert_told(await refusal(stubs.sessions.ImportSession(iter(messages))), MISMATCH, "data", PRECONDITION)


@pytest.mark.parametrize(
    ("messages", "reason", "field"),
    [
        ([], "STREAM_PROTOCOL", "open"),
        ([ImportSessionRequest()], "STREAM_PROTOCOL", "open"),
        ([ImportSessionRequest(data=b"a")], "STREAM_PROTOCOL", "open"),
        ([OPENING, OPENING], "STREAM_PROTOCOL", "open"),
        ([OPENING, ImportSessionRequest(data=b"a"), OPENING], "STREAM_PROTOCOL", "open"),
        ([OPENING, ImportSessionRequest(data=b"")], "INVALID_FIELD", "data"),
        ([OPENING, ImportSessionRequest()], "INVALID_FIELD", "data"),
        ([OPENING, *[ImportSessionRequest(data=bytes(100_000))] * 11], "INVALID_FIELD", "data"),
        ([ImportSessionRequest(open=ImportSessionOpen(request_id="i" * 65))], "INVALID_FIELD", "open.request_id"),
    ],
    ids=["nothing", "empty", "data first", "opened twice", "opened again", "no data", "empty later", "oversize", "long request id"],
)
async def test_imports_out_of_order_or_bounds_are_refused(stubs: Stubs, messages: list[ImportSessionRequest], reason: str, field: str) -> None:
    assert_told(await refusal(stubs.sessions.ImportSession(iter(messages))), reason, field)


async def names(stubs: Stubs) -> set[str]:
    return {session.name for session in (await stubs.sessions.ListSessions(ListSessionsRequest(page_size=1000))).sessions}
