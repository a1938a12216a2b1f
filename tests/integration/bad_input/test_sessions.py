"""Calls on sessions and models that are refused."""

from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from cellstate.v1 import types_pb2
from cellstate.v1.model_pb2 import GetModelRequest, ListModelsRequest, LoadModelRequest, UnloadModelRequest
from cellstate.v1.session_pb2 import (
    DURABILITY_PERIODIC,
    DURABILITY_SYNC,
    CreateSessionRequest,
    DeleteSessionRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    InitialState,
    ListSessionsRequest,
    ResetSessionRequest,
    Session,
    UpdateSessionRequest,
)
from cellstate.v1.types_pb2 import NamedTensor, Tensor
from tests.integration.bad_input.cases import NOT_FOUND, PRECONDITION, Case, Send, assert_told, cases
from tests.integration.stubs import (
    Stubs,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


def create(**session: Any) -> Send:
    return lambda s: s.sessions.CreateSession(CreateSessionRequest(session=Session(**({"model": "lstm-text"} | session))))


def begin(*tensors: tuple[str, Tensor], model: str = "lstm-series") -> Send:
    state = InitialState(tensors=[NamedTensor(name=name, tensor=tensor) for name, tensor in tensors])
    return lambda s: s.sessions.CreateSession(CreateSessionRequest(session=Session(model=model), initial_state=state))


def state(fill: float = 0.0, shape: tuple[int, ...] = (1, 20)) -> Tensor:
    return Tensor(dtype=types_pb2.DATA_TYPE_FLOAT32, shape=shape, data=np.full(shape, fill, "<f4").tobytes())


SESSION_NAME, LABELS, TTL, AT = "session.name", "session.labels", "session.ttl", "session.expire_time"
FIRST = "initial_state.tensors[0].tensor"


@cases(
    Case("no model", create(model=""), "MODEL_NOT_FOUND", "session.model", NOT_FOUND),
    Case("unknown model", create(model="nope"), "MODEL_NOT_FOUND", "session.model", NOT_FOUND),
    Case("no session", lambda s: s.sessions.CreateSession(CreateSessionRequest()), "MODEL_NOT_FOUND", "session.model", NOT_FOUND),
    Case("name in use", create(name="subject"), "SESSION_EXISTS", SESSION_NAME, grpc.StatusCode.ALREADY_EXISTS),
    Case("name with a space", create(name="a b"), "INVALID_FIELD", SESSION_NAME),
    Case("name with a slash", create(name="a/b"), "INVALID_FIELD", SESSION_NAME),
    Case("name with a newline", create(name="a\n"), "INVALID_FIELD", SESSION_NAME),
    Case("name beyond ASCII", create(name="caf\u00e9"), "INVALID_FIELD", SESSION_NAME),
    Case("name of 129 characters", create(name="a" * 129), "INVALID_FIELD", SESSION_NAME),
    Case("33 labels", create(labels={f"k{index}": "v" for index in range(33)}), "INVALID_FIELD", LABELS),
    Case("empty label", create(labels={"": "v"}), "INVALID_FIELD", LABELS),
    Case("label of 64 characters", create(labels={"k" * 64: "v"}), "INVALID_FIELD", LABELS),
    Case("label value of 64 characters", create(labels={"k": "v" * 64}), "INVALID_FIELD", LABELS),
    Case("label value with a space", create(labels={"k": "a b"}), "INVALID_FIELD", LABELS),
    Case("durability SYNC", create(durability=DURABILITY_SYNC), "INVALID_FIELD", "session.durability"),
    Case("durability PERIODIC", create(durability=DURABILITY_PERIODIC), "INVALID_FIELD", "session.durability"),
    Case("unknown durability", create(durability=99), "INVALID_FIELD", "session.durability"),
    Case("ttl of 0", create(ttl=Duration()), "INVALID_FIELD", TTL),
    Case("negative ttl", create(ttl=Duration(seconds=-1)), "INVALID_FIELD", TTL),
    Case("ttl of ages", create(ttl=Duration(seconds=315_576_000_000)), "INVALID_FIELD", TTL),
    Case("ttl out of its range", create(ttl=Duration(seconds=2**62, nanos=2**31 - 1)), "INVALID_FIELD", TTL),
    Case("expire time in the past", create(expire_time=Timestamp(seconds=1)), "INVALID_FIELD", AT),
    Case("expire time before Christ", create(expire_time=Timestamp(seconds=-(2**62))), "INVALID_FIELD", AT),
    Case("expire time in ages", create(expire_time=Timestamp(seconds=253_402_300_799)), "INVALID_FIELD", AT),
    Case("expire time out of its range", create(expire_time=Timestamp(seconds=2**62)), "INVALID_FIELD", AT),
    Case("no state tensors", begin(), "INVALID_TENSOR", "initial_state.tensors"),
    Case("a state tensor less", begin(("h", state())), "INVALID_TENSOR", "initial_state.tensors"),
    Case("a state tensor more", begin(("h", state()), ("c", state()), ("x", state())), "INVALID_TENSOR", "initial_state.tensors"),
    Case("a state tensor twice", begin(("h", state()), ("h", state())), "INVALID_TENSOR", "initial_state.tensors[1].name"),
    Case("a state of another shape", begin(("h", state()), ("c", state(shape=(20,)))), "INVALID_TENSOR", "initial_state.tensors"),
    Case("a state of another width", begin(("h", state()), ("c", state(shape=(1, 24)))), "INVALID_TENSOR", "initial_state.tensors"),
    Case("a state with NaN", begin(("h", state(float("nan"))), ("c", state())), "NOT_FINITE", f"{FIRST}.data"),
    Case("a state without dtype", begin(("h", Tensor(shape=[1, 20], data=b"\0" * 80))), "INVALID_TENSOR", f"{FIRST}.dtype"),
    Case("a state of a model without", begin(("h", state()), model="flowers"), "INVALID_TENSOR", "initial_state.tensors"),
)
async def test_bad_sessions_are_not_created(stubs: Stubs, case: Case) -> None:
    before = {session.name for session in (await stubs.sessions.ListSessions(ListSessionsRequest(page_size=1000))).sessions}

    await case.check(stubs)

    assert {session.name for session in (await stubs.sessions.ListSessions(ListSessionsRequest(page_size=1000))).sessions} == before


def update(*paths: str, **session: Any) -> Send:
    request = UpdateSessionRequest(session=Session(**({"name": "subject"} | session)), update_mask=FieldMask(paths=paths))
    return lambda s: s.sessions.UpdateSession(request)


def fork(name: str = "subject", **parts: Any) -> Send:
    return lambda s: s.sessions.ForkSession(ForkSessionRequest(name=name, **parts))


LONG_ID = "i" * 65


@cases(
    Case("update of the unknown", update(name="nope"), "SESSION_NOT_FOUND", SESSION_NAME, NOT_FOUND),
    Case("update of nothing", lambda s: s.sessions.UpdateSession(UpdateSessionRequest()), "SESSION_NOT_FOUND", SESSION_NAME, NOT_FOUND),
    Case("update of the position", update("position"), "INVALID_FIELD", "update_mask"),
    Case("update of the name", update("session.name"), "INVALID_FIELD", "update_mask"),
    Case("update of a long path", update("\u20ac" * 9_000), "INVALID_FIELD", "update_mask"),
    Case("update of a ttl without one", update("ttl"), "INVALID_FIELD", TTL),
    Case("update of an expire time by a ttl", update("expire_time", ttl=Duration(seconds=9)), "INVALID_FIELD", AT),
    Case("update of both expiries", update("expire_time", "ttl", ttl=Duration(seconds=9)), "INVALID_FIELD", AT),
    Case("update of a ttl to 0", update(ttl=Duration()), "INVALID_FIELD", TTL),
    Case("update of the expire time to the past", update(expire_time=Timestamp(seconds=9)), "INVALID_FIELD", AT),
    Case("update of the durability", update(durability=DURABILITY_SYNC, labels={"a": "b"}), "INVALID_FIELD", "session.durability"),
    Case("update of labels", update(labels={"a b": "c"}, ttl=Duration(seconds=5)), "INVALID_FIELD", LABELS),
    Case("read of the unknown", lambda s: s.sessions.GetSession(GetSessionRequest(name="nope")), "SESSION_NOT_FOUND", "name", NOT_FOUND),
    Case("delete of the unknown", lambda s: s.sessions.DeleteSession(DeleteSessionRequest(name="nope")), "SESSION_NOT_FOUND", "name", NOT_FOUND),
    Case("delete of another uid", lambda s: s.sessions.DeleteSession(DeleteSessionRequest(name="subject", uid="x")), "UID_MISMATCH", "uid", PRECONDITION),
    Case("reset of the unknown", lambda s: s.sessions.ResetSession(ResetSessionRequest(name="nope")), "SESSION_NOT_FOUND", "name", NOT_FOUND),
    Case("reset of another uid", lambda s: s.sessions.ResetSession(ResetSessionRequest(name="subject", uid="x")), "UID_MISMATCH", "uid", PRECONDITION),
    Case("reset of a busy one", lambda s: s.sessions.ResetSession(ResetSessionRequest(name="canary")), "SESSION_BUSY", "name", PRECONDITION),
    Case("fork of the unknown", fork("nope"), "SESSION_NOT_FOUND", "name", NOT_FOUND),
    Case("fork of another uid", fork(uid="x"), "UID_MISMATCH", "uid", PRECONDITION),
    Case("fork at another position", fork(position=4), "POSITION_MISMATCH", "position", PRECONDITION),
    Case("fork at another position of a busy one", fork("canary", position=99), "POSITION_MISMATCH", "position", PRECONDITION),
    Case("fork to a name in use", fork(session=Session(name="canary")), "SESSION_EXISTS", SESSION_NAME, grpc.StatusCode.ALREADY_EXISTS),
    Case("fork to a bad name", fork(session=Session(name="?")), "INVALID_FIELD", SESSION_NAME),
    Case("fork to another model", fork(session=Session(model="ids")), "INVALID_FIELD", "session.model"),
    Case("fork with a bad ttl", fork(session=Session(ttl=Duration(seconds=-5))), "INVALID_FIELD", TTL),
    Case("export of the unknown", lambda s: s.sessions.ExportSession(ExportSessionRequest(name="nope")), "SESSION_NOT_FOUND", "name", NOT_FOUND),
)
async def test_bad_calls_on_sessions_are_refused(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


def listing(**parts: Any) -> Send:
    return lambda s: s.sessions.ListSessions(ListSessionsRequest(**parts))


@cases(
    Case("negative page", listing(page_size=-1), "INVALID_FIELD", "page_size"),
    Case("absurd page", listing(page_size=2**31 - 1), "INVALID_FIELD", "page_size"),
    Case("page of 1001", listing(page_size=1001), "INVALID_FIELD", "page_size"),
    Case("made-up page token", listing(page_token="abc"), "INVALID_FIELD", "page_token"),
    Case("page token beyond ASCII", listing(page_token="\u20ac"), "INVALID_FIELD", "page_token"),
    Case("page token of another filter", listing(page_token="MS5lM2IwYzQ0Mg==", filter="busy=true"), "INVALID_FIELD", "page_token"),
    Case("filter of an unknown field", listing(filter='owner="me"'), "INVALID_FIELD", "filter"),
    Case("filter without quotes", listing(filter="model=a"), "INVALID_FIELD", "filter"),
    Case("filter with OR", listing(filter='model="a" OR model="b"'), "INVALID_FIELD", "filter"),
    Case("filter that ends with AND", listing(filter='model="a" AND '), "INVALID_FIELD", "filter"),
    Case("filter of five thousand terms", listing(filter=" AND ".join(["busy=true"] * 5_000)), "INVALID_FIELD", "filter"),
    Case("models: negative page", lambda s: s.models.ListModels(ListModelsRequest(page_size=-1)), "INVALID_FIELD", "page_size"),
    Case("models: made-up page token", lambda s: s.models.ListModels(ListModelsRequest(page_token="?")), "INVALID_FIELD", "page_token"),
    Case("models: unknown", lambda s: s.models.GetModel(GetModelRequest(name="nope")), "MODEL_NOT_FOUND", "name", NOT_FOUND),
    Case("models: long name", lambda s: s.models.GetModel(GetModelRequest(name="\U0001f600" * 30_000)), "MODEL_NOT_FOUND", "name", NOT_FOUND),
    Case("models: load", lambda s: s.models.LoadModel(LoadModelRequest()), "NOT_OFFERED", "", grpc.StatusCode.UNIMPLEMENTED),
    Case("models: unload", lambda s: s.models.UnloadModel(UnloadModelRequest()), "NOT_OFFERED", "", grpc.StatusCode.UNIMPLEMENTED),
)
async def test_bad_listings_and_model_calls_are_refused(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


@cases(
    Case(
        "create",
        lambda s: s.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text"), request_id=LONG_ID)),
        "INVALID_FIELD",
        "request_id",
    ),
    Case("fork", fork(request_id=LONG_ID), "INVALID_FIELD", "request_id"),
    Case("reset", lambda s: s.sessions.ResetSession(ResetSessionRequest(name="subject", request_id=LONG_ID)), "INVALID_FIELD", "request_id"),
    Case("delete", lambda s: s.sessions.DeleteSession(DeleteSessionRequest(name="subject", request_id=LONG_ID)), "INVALID_FIELD", "request_id"),
)
async def test_long_request_ids_are_refused(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


async def test_a_request_id_with_other_content_is_refused(stubs: Stubs) -> None:
    def request(seed: int) -> CreateSessionRequest:
        return CreateSessionRequest(session=Session(model="lstm-text", name=f"asked-{seed}", seed=seed), request_id="bad-input-1")

    await stubs.sessions.CreateSession(request(1))

    told = await refusal(stubs.sessions.CreateSession(request(2)))

    assert_told(told, "REQUEST_ID_CONFLICT", "request_id", grpc.StatusCode.ABORTED)
    assert (await refusal(stubs.sessions.GetSession(GetSessionRequest(name="asked-2")))).reason == "SESSION_NOT_FOUND"
