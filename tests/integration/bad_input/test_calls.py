"""Calls of the inference service that are refused: what they run on, in what order their messages come, how large they are."""

import contextlib
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from cellstate.v1 import error_pb2, types_pb2
from cellstate.v1.inference_pb2 import (
    InputChunk,
    ManyToManyRequest,
    ManyToOneRequest,
    OneToManyRequest,
    OneToOneRequest,
    Program,
    RunRequest,
    Target,
)
from cellstate.v1.types_pb2 import Sequence
from tests.integration.bad_input.cases import (
    BUSY,
    INVALID,
    MAX_MESSAGE_BYTES,
    MAX_PROGRAMS,
    MAX_STEPS,
    NOT_FOUND,
    PRECONDITION,
    SUBJECT,
    UNSUPPORTED,
    Case,
    Send,
    assert_told,
    cases,
    run_refusal,
)
from tests.integration.stubs import (
    STOP,
    Stubs,
    chunk,
    generate,
    generation,
    many_to_one,
    on_model,
    on_session,
    open_many,
    options,
    read_refusal,
    refusal,
    text,
    values,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


LOGITS = options(types_pb2.OUTPUT_FORM_LOGITS)
FLOWER = values([[1, 2, 3, 4]])


def one_to_one(target: Target | None, sequence: Sequence | None = None) -> Send:
    return lambda s: s.inference.OneToOne(OneToOneRequest(target=target, input=sequence or text("a")))


def one_to_many(target: Target | None, **parts: Any) -> Send:
    return lambda s: s.inference.OneToMany(OneToManyRequest(target=target, **parts))


def into_many(*messages: ManyToManyRequest) -> Send:
    return lambda s: s.inference.ManyToMany(iter(messages))


def into_one(*messages: ManyToOneRequest) -> Send:
    return lambda s: s.inference.ManyToOne(iter(messages))


ONE_OPENING = many_to_one(on_model("lstm-text"))[0]


@cases(
    Case("no target", one_to_one(None), "INVALID_FIELD", "target"),
    Case("no target to many", one_to_many(None), "INVALID_FIELD", "target"),
    Case("no target in a stream", into_many(open_many(Target())), "INVALID_FIELD", "open.target"),
    Case("no target in a client stream", into_one(*many_to_one(Target())), "INVALID_FIELD", "open.target"),
    Case("empty model", one_to_one(on_model("")), "MODEL_NOT_FOUND", "target.model", NOT_FOUND),
    Case("unknown model", one_to_one(on_model("nope")), "MODEL_NOT_FOUND", "target.model", NOT_FOUND),
    Case("model with a long name", one_to_one(on_model("\u20ac" * 30_000)), "MODEL_NOT_FOUND", "target.model", NOT_FOUND),
    Case("unknown model to many", one_to_many(on_model("nope")), "MODEL_NOT_FOUND", "target.model", NOT_FOUND),
    Case("unknown model in a stream", into_many(open_many(on_model("nope"))), "MODEL_NOT_FOUND", "open.target.model", NOT_FOUND),
    Case("unknown model in a client stream", into_one(*many_to_one(on_model("nope"))), "MODEL_NOT_FOUND", "open.target.model", NOT_FOUND),
    Case("empty session", one_to_one(on_session("")), "INVALID_FIELD", "target.session.name"),
    Case("unknown session", one_to_one(on_session("nope")), "SESSION_NOT_FOUND", "target.session.name", NOT_FOUND),
    Case("session with an odd name", one_to_one(on_session("\u20ac\n" * 9_000)), "SESSION_NOT_FOUND", "target.session.name", NOT_FOUND),
    Case("unknown session to many", one_to_many(on_session("nope")), "SESSION_NOT_FOUND", "target.session.name", NOT_FOUND),
    Case("unknown session in a stream", into_many(open_many(on_session("nope"))), "SESSION_NOT_FOUND", "open.target.session.name", NOT_FOUND),
    Case("another uid", one_to_one(on_session("subject", uid="0" * 32)), "UID_MISMATCH", "target.session.uid", PRECONDITION),
    Case("another uid in a stream", into_many(open_many(on_session("subject", uid="x"))), "UID_MISMATCH", "open.target.session.uid", PRECONDITION),
    Case("busy", one_to_one(BUSY), "SESSION_BUSY", "target.session.name", PRECONDITION),
    Case("busy in a stream", into_many(open_many(BUSY)), "SESSION_BUSY", "open.target.session.name", PRECONDITION),
    Case("wrong stream token", one_to_one(on_session("canary", stream_token="guess")), "SESSION_BUSY", "target.session.name", PRECONDITION),
    Case("stream token beyond ASCII", one_to_one(on_session("canary", stream_token="\u20ac")), "SESSION_BUSY", "target.session.name", PRECONDITION),
)
async def test_bad_targets_are_refused(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


@cases(
    Case("sequence mode of a feed-forward model", into_one(*many_to_one(on_model("flowers"))), UNSUPPORTED, "open.target"),
    Case("stream on a feed-forward model", into_many(open_many(on_model("flowers"))), UNSUPPORTED, "open.target"),
    Case("generation of a feed-forward model", one_to_many(on_model("flowers"), input=FLOWER), UNSUPPORTED, "target"),
    Case("generation of other features", into_many(open_many(on_model("counts")), generate(generation(2))), UNSUPPORTED, "generate.generation"),
    Case("two steps where one is taken", one_to_one(on_model("lstm-text"), text("ab")), "INVALID_FIELD", "input"),
    Case("unknown emit", into_many(open_many(on_model("lstm-text"), emit=99)), "INVALID_FIELD", "open.emit"),
    Case("unknown emit of a chunk", into_many(open_many(on_model("lstm-text")), chunk(text("a"), emit=99)), "INVALID_FIELD", "input.emit"),
)
async def test_what_a_model_or_call_does_not_do_is_refused(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


@pytest.mark.parametrize("position", [0, 4, 6, 2**64 - 1])
async def test_another_position_is_refused_with_the_expected_one(stubs: Stubs, position: int) -> None:
    target = on_session("subject", position=position)
    at_position = ManyToOneRequest(input=InputChunk(values=text("a"), position=position))
    told = [
        await refusal(one_to_one(target)(stubs)),
        await refusal(one_to_many(target)(stubs)),
        await refusal(into_many(open_many(target), chunk(text("a")))(stubs)),
        await refusal(into_many(open_many(SUBJECT), chunk(text("a"), position=position))(stubs)),
        await refusal(into_many(open_many(SUBJECT), generate(generation(1), position=position))(stubs)),
        await refusal(into_one(*many_to_one(SUBJECT), at_position)(stubs)),
    ]

    for refused in told:
        assert (refused.code, refused.reason, refused.metadata["position"]) == (PRECONDITION, "POSITION_MISMATCH", "5")
    assert (await run_refusal(stubs, Program(target=target, input=text("a")))).reason == "POSITION_MISMATCH"


@cases(
    Case("empty", into_many(), "STREAM_PROTOCOL", "open"),
    Case("empty message first", into_many(ManyToManyRequest()), "STREAM_PROTOCOL", "open"),
    Case("input first", into_many(chunk(text("a"))), "STREAM_PROTOCOL", "open"),
    Case("generation first", into_many(generate(generation(1))), "STREAM_PROTOCOL", "open"),
    Case("stop first", into_many(STOP), "STREAM_PROTOCOL", "open"),
    Case("opened twice", into_many(*[open_many(on_model("lstm-text"))] * 2), "STREAM_PROTOCOL", "open"),
    Case("empty message later", into_many(open_many(on_model("lstm-text")), ManyToManyRequest()), "STREAM_PROTOCOL", "message"),
    Case("client stream empty", into_one(), "STREAM_PROTOCOL", "open"),
    Case("client stream with input first", into_one(ManyToOneRequest(input=InputChunk(values=text("a")))), "STREAM_PROTOCOL", "open"),
    Case("client stream with an empty message first", into_one(ManyToOneRequest()), "STREAM_PROTOCOL", "open"),
    Case("client stream opened twice", into_one(ONE_OPENING, ONE_OPENING), "STREAM_PROTOCOL", "open"),
    Case("client stream without input", into_one(ONE_OPENING), "EMPTY_SEQUENCE", "input"),
    Case("generation without a form to draw", into_many(open_many(SUBJECT, output=options(2)), chunk(Sequence())), "EMPTY_SEQUENCE", "input.values"),
)
async def test_streams_out_of_order_are_refused(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


async def test_a_stream_of_one_session_takes_no_channel(stubs: Stubs) -> None:
    later = ManyToManyRequest(input=chunk(text("a")).input, channel=2**64 - 1)

    told = await refusal(stubs.inference.ManyToMany(iter([open_many(on_model("lstm-text")), later])))
    assert_told(told, "STREAM_PROTOCOL", "channel", grpc.StatusCode.INVALID_ARGUMENT)


async def test_an_error_comes_after_the_outputs_before_it(stubs: Stubs) -> None:
    stream = stubs.inference.ManyToMany(iter([open_many(on_model("lstm-series")), chunk(values([1, 2])), chunk(values([np.inf]))]))

    answers = []

    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 (what came before it counts)
        async for answer in stream:
            answers.append(answer)  # noqa: PERF401 (a comprehension would lose them)

    assert answers[0].HasField("opened")
    assert answers[-1].output.position == 2
    assert read_refusal(caught.value).reason == "NOT_FINITE"


def run(*programs: Program) -> Send:
    return lambda s: s.inference.Run(RunRequest(programs=programs))


PROGRAM = Program(target=on_model("lstm-text"), input=text("a"))


@cases(
    Case("no programs", run(), "INVALID_FIELD", "programs"),
    Case("too many programs", run(*[PROGRAM] * (MAX_PROGRAMS + 1)), "INVALID_FIELD", "programs"),
    Case("two on one session", run(*[Program(target=SUBJECT, input=text("a"))] * 2), "INVALID_FIELD", "programs"),
)
async def test_bad_runs_are_refused(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


@pytest.mark.parametrize(
    ("program", "reason", "field", "code"),
    [
        (Program(), "INVALID_FIELD", "target", INVALID),
        (Program(target=on_model("lstm-text")), "EMPTY_SEQUENCE", "input", INVALID),
        (Program(target=on_model("lstm-text"), input=text("a"), emit=99), "INVALID_FIELD", "emit", INVALID),  # type: ignore[arg-type]
        (Program(target=on_model("nope"), input=text("a")), "MODEL_NOT_FOUND", "target.model", NOT_FOUND),
        (Program(target=on_session("nope"), input=text("a")), "SESSION_NOT_FOUND", "target.session.name", NOT_FOUND),
        (Program(target=on_session("subject", uid="x"), input=text("a")), "UID_MISMATCH", "target.session.uid", PRECONDITION),
        (Program(target=BUSY, input=text("a")), "SESSION_BUSY", "target.session.name", PRECONDITION),
        (Program(target=on_model("flowers"), input=FLOWER, generation=generation(2)), UNSUPPORTED, "generation", INVALID),
        (Program(target=on_model("lstm-text"), generation=generation(900_000)), "INVALID_FIELD", "generation.max_steps", INVALID),
        (Program(target=on_model("lstm-text"), output=LOGITS, generation=generation(2)), UNSUPPORTED, "output.form", INVALID),
        (
            Program(target=on_model("lstm-text"), input=text("a" * MAX_STEPS), output=LOGITS, emit=types_pb2.EMIT_ALL),
            "INVALID_FIELD",
            "input",
            INVALID,
        ),
    ],
)
async def test_a_bad_program_fails_beside_good_ones(stubs: Stubs, program: Program, reason: str, field: str, code: grpc.StatusCode) -> None:
    good, bad, last = (await stubs.inference.Run(RunRequest(programs=[PROGRAM, program, PROGRAM]))).results

    assert good.emitted.values == last.emitted.values or good.HasField("completion")
    assert error_pb2.ErrorReason.Name(bad.failure.reason) == f"ERROR_REASON_{reason}"
    assert (bad.failure.field, bad.failure.code) == (f"programs[1].{field}", code.value[0])
    assert not bad.HasField("completion")


@pytest.mark.parametrize("send", [one_to_one(SUBJECT, text("a" * MAX_MESSAGE_BYTES)), into_many(open_many(SUBJECT), chunk(text("a" * MAX_MESSAGE_BYTES)))])
async def test_a_message_above_the_limit_is_refused_by_grpc(stubs: Stubs, send: Send) -> None:
    call = send(stubs)

    with contextlib.suppress(grpc.aio.AioRpcError):
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for _ in call:
                pass

    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
