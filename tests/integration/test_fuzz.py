"""Whatever comes over the wire, the server answers with a proper status and lives, and nobody else's session notices.

FUZZ_EXAMPLES in the environment raises how much is tried.
"""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from cellstate.v1 import inference_pb2, model_pb2, session_pb2
from cellstate.v1.inference_pb2 import ManyToManyRequest, ManyToManyResponse, OneToManyRequest
from cellstate.v1.session_pb2 import CreateSessionRequest, ImportSessionResponse, ListSessionsRequest, Session
from cellstate.v1.snapshot_pb2 import Anchor, Snapshot
from cellstate.v1.types_pb2 import EMIT_ALL
from cellstate_service.settings import SessionSettings
from tests.integration.canary import Canary, canary_on
from tests.integration.serving import Served, serving
from tests.integration.snapshots import export, import_of, tampered
from tests.integration.stubs import STOP, Stubs, chunk, generate, generation, on_model, on_session, open_many, read_refusal, text
from tests.integration.tokens import OwnersStubs, write_tokens
from tests.integration.wild import MAX_STEPS_LIMIT, NAMES, messages
from tests.models_on_disk import write_feed_forward, write_recurrent

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "250"))
METHODS: list[MethodDescriptor] = [
    method for file in (inference_pb2, session_pb2, model_pb2) for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
TOKEN = (("authorization", "Bearer fuzz"),)
#: What grpc.aio's client makes of a message that it sends while the server's status is on its way.
CLIENTS_OWN = "Internal error from Core"

fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), print_blob=True)


@dataclass
class Target:
    """A server with a session of its own that nobody else can reach, and a snapshot of it."""

    server: Served
    canary: Canary
    stubs: Stubs
    snapshot: bytes

    async def send(self, method: MethodDescriptor, requests: list[bytes]) -> list[bytes]:
        """Call a method with bytes, and return the bytes that come back; check the status, and that the other session did not notice."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        caller = getattr(self.server.stubs.channel, kind)(path)
        call = caller(iter(requests) if method.client_streaming else requests[0], metadata=TOKEN, timeout=20)
        answers: list[bytes] = []
        try:
            if method.server_streaming:
                async for answer in call:
                    answers.append(answer)  # noqa: PERF401 (what came before an error is kept)
            else:
                answers.append(await call)
        except grpc.aio.AioRpcError as error:
            check_status(error)
        await self.canary.assert_untouched()
        return answers


def check_status(error: grpc.aio.AioRpcError) -> None:
    """A status that tells what is wrong; never an unforeseen fault, never none within the time."""
    if error.details() == CLIENTS_OWN:
        return
    assert error.code() not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}, error
    told = read_refusal(error)
    assert told.reason
    assert told.reason != "INTERNAL", error
    assert (error.code() is grpc.StatusCode.INTERNAL) == (told.reason == "STEP_FAILED"), error


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    short = {"max_steps": 3, "max_steps_limit": MAX_STEPS_LIMIT}
    write_recurrent(folder / "text", generation=short)
    write_recurrent(folder / "series", cell="rnn_relu", input_kind="numeric", generation=short)
    write_recurrent(folder / "ids", cell="gru", vocabulary_size=50, generation=short)
    write_feed_forward(folder / "flowers", labels=["a", "b", "c"])
    tokens = write_tokens(folder / "tokens", ada="canary", bob="fuzz")
    async with serving(folder, tokens_file=tokens, metrics_port=None, sessions=SessionSettings(max_sessions_per_owner=40)) as server:
        ada, bob = OwnersStubs(server.stubs.channel, "canary"), OwnersStubs(server.stubs.channel, "fuzz")
        async with canary_on(ada, "text") as canary:
            for model, name in zip(("text", "series"), NAMES, strict=False):
                await bob.sessions.CreateSession(CreateSessionRequest(session=Session(model=model, name=name)))
            yield Target(server, canary, bob, await export(ada, canary.name))
            await canary.assert_untouched()
            await canary.assert_steps()


async def test_every_call_of_the_contract_is_tried() -> None:
    assert len(METHODS) == 5 + 9 + 4


@fuzzed
@given(method=st.sampled_from(METHODS), requests=st.lists(st.binary(max_size=60), min_size=1, max_size=4))
async def test_random_bytes_are_answered(target: Target, method: MethodDescriptor, requests: list[bytes]) -> None:
    await target.send(method, requests)


@st.composite
def wild_calls(draw: st.DrawFn) -> tuple[MethodDescriptor, list[Message]]:
    """A method and wild messages for it; streams mostly open with an opening."""
    method = draw(st.sampled_from(METHODS))
    requests = draw(st.lists(messages(method.input_type), min_size=1, max_size=4 if method.client_streaming else 1))
    if method.client_streaming and draw(st.integers(0, 4)):
        opening = method.input_type.fields_by_name["open"].message_type
        first = message_factory.GetMessageClass(method.input_type)()
        first.open.CopyFrom(draw(messages(opening)))  # type: ignore[attr-defined]
        requests.insert(0, first)
    return method, requests


@fuzzed
@given(call=wild_calls())
async def test_wild_messages_are_answered(target: Target, call: tuple[MethodDescriptor, list[Message]]) -> None:
    method, requests = call

    await target.send(method, [request.SerializeToString() for request in requests])


MANY_TO_MANY = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name["ManyToMany"]
IMPORT = session_pb2.DESCRIPTOR.services_by_name["SessionService"].methods_by_name["ImportSession"]
ORDERLY: st.SearchStrategy[ManyToManyRequest] = st.one_of(
    st.text("Helo \n", min_size=1, max_size=5).map(lambda characters: chunk(text(characters), emit=EMIT_ALL)),
    st.integers(1, 12).map(lambda steps: generate(generation(steps, seed=steps))),
    st.just(STOP),
    st.integers(0, 5).map(lambda position: ManyToManyRequest(acknowledge=inference_pb2.Acknowledgement(position=position))),
)


@fuzzed
@given(requests=st.lists(ORDERLY, max_size=8), wild=st.none() | messages(ManyToManyRequest.DESCRIPTOR))
async def test_outputs_of_a_stream_are_contiguous_up_to_its_end(target: Target, requests: list[ManyToManyRequest], wild: Message | None) -> None:
    sent = [open_many(on_session(NAMES[0], take_over=True)), *requests, *([] if wild is None else [wild])]
    await _make_sure(target, NAMES[0], "text")

    answers = [ManyToManyResponse.FromString(data) for data in await target.send(MANY_TO_MANY, [message.SerializeToString() for message in sent])]

    note("; ".join(str(answer).replace("\n", " ") for answer in answers))
    assert answers[0].HasField("opened")
    position = answers[0].opened.position
    for answer in answers[1:]:
        if answer.HasField("output"):
            assert answer.output.first_position in {position, position + (position == 0)}  # the start value is consumed without an output
            position = answer.output.position
        if answer.HasField("completion"):
            assert answer.completion.position == position
        if answer.HasField("stopped"):
            assert answer.stopped.position == position
    if wild is None:
        generations, stops = (sum(message.HasField(kind) for message in requests) for kind in ("generate", "stop"))
        assert sum(answer.HasField("completion") for answer in answers) == generations
        assert sum(answer.HasField("stopped") for answer in answers) == stops


OPENINGS: st.SearchStrategy[ManyToManyRequest] = st.sampled_from(["text", "text", "no such"]).map(lambda model: open_many(on_model(model)))
CLOSE = ManyToManyRequest(close=inference_pb2.CloseDirective())


@st.composite
def gateways(draw: st.DrawFn) -> list[ManyToManyRequest]:
    """What a gateway sends: messages on a few channels, in the right order or not, some of them put into others."""
    sent = []
    for number in draw(st.lists(st.integers(0, 3), max_size=16)):
        message = ManyToManyRequest()
        message.CopyFrom(draw(ORDERLY | OPENINGS | st.just(CLOSE)))
        message.channel = number
        if sent and draw(st.booleans()):
            sent[-1].more.append(message)
        else:
            sent.append(message)
    return sent


@fuzzed
@given(requests=gateways(), wild=st.none() | messages(ManyToManyRequest.DESCRIPTOR))
async def test_channels_of_a_stream_are_told_in_order_whatever_is_sent(target: Target, requests: list[ManyToManyRequest], wild: Message | None) -> None:
    first = ManyToManyRequest(open=open_many(on_model("text")).open, channel=1)
    sent = [first, *requests, *([] if wild is None else [wild])]

    answers = [ManyToManyResponse.FromString(data) for data in await target.send(MANY_TO_MANY, [message.SerializeToString() for message in sent])]

    positions: dict[int, int] = {}
    for part in [part for answer in answers for part in (answer, *answer.more)]:
        note(str(part).replace("\n", " "))
        if part.HasField("opened"):
            assert part.channel not in positions
            positions[part.channel] = part.opened.position
        if part.HasField("output"):
            assert part.output.first_position in {positions[part.channel], positions[part.channel] + (positions[part.channel] == 0)}
            positions[part.channel] = part.output.position
        if part.HasField("completion") and not positions[part.channel]:  # the start value was consumed without an output, and then it was stopped
            assert part.completion.position <= 1
            positions[part.channel] = part.completion.position
        for kind in ("completion", "stopped", "closed"):
            if part.HasField(kind):
                assert getattr(part, kind).position == positions[part.channel]
        if part.HasField("closed"):
            del positions[part.channel]
        if part.HasField("failure"):
            positions.pop(part.channel, None)
    if wild is None:
        assert not positions


async def _make_sure(target: Target, name: str, model: str) -> None:
    """Create a session, unless it is there; wild calls may have deleted it, and taken all places."""
    sessions = (await target.stubs.sessions.ListSessions(ListSessionsRequest(page_size=1000))).sessions
    if any((session.name, session.model) == (name, model) for session in sessions):
        return
    for session in sessions:
        await target.stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(name=session.name))
    await target.stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model=model, name=name)))


@fuzzed
@given(anchor=messages(Anchor.DESCRIPTOR, 4), session=messages(Session.DESCRIPTOR, 2), schema=st.booleans())
async def test_crafted_snapshots_are_refused_or_go_on(target: Target, anchor: Anchor, session: Session, schema: bool) -> None:
    session.model = "text"

    def craft(snapshot: Snapshot) -> None:
        if not schema:
            anchor.ClearField("state")
            anchor.ClearField("last_output")
        snapshot.anchors[-1].MergeFrom(anchor)
        snapshot.session.MergeFrom(session)

    requests = import_of(tampered(target.snapshot, craft), allow_other_numerics=True, allow_other_model_digest=True)
    for answer in await target.send(IMPORT, [request.SerializeToString() for request in requests]):
        name = ImportSessionResponse.FromString(answer).session.name
        request = OneToManyRequest(target=on_session(name), input=text("el"), generation=generation(5, stop=("lo",)))
        async for step in target.stubs.inference.OneToMany(request):
            assert step
        await target.stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(name=name))


@fuzzed
@given(cut=st.integers(0, 5000), flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), max_size=4))
async def test_damaged_snapshots_are_answered(target: Target, cut: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(target.snapshot[: cut or None])
    for at, mask in flips:
        data[at % len(data)] ^= mask

    answers = await target.send(IMPORT, [request.SerializeToString() for request in import_of(bytes(data))])

    if bytes(data) != target.snapshot:
        assert not answers
    for answer in answers:
        name = ImportSessionResponse.FromString(answer).session.name
        await target.stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(name=name))
