"""Values, generation settings and output options that are refused, by every call that takes them."""

from typing import Any

import numpy as np
import pytest
from google.rpc import code_pb2

from cellstate.v1 import error_pb2, types_pb2
from cellstate.v1.inference_pb2 import (
    OneToManyRequest,
    OneToOneRequest,
    Program,
    RunRequest,
)
from cellstate.v1.session_pb2 import (
    CreateSessionRequest,
    Session,
)
from cellstate.v1.types_pb2 import Generation, OutputOptions, Sampling, Sequence, Tensor, TokenIds
from tests.integration.bad_input.cases import MAX_STEPS, PRECONDITION, UNSUPPORTED, Case, assert_told, cases, run_refusal, table
from tests.integration.canary import read_session
from tests.integration.stubs import (
    Stubs,
    chunk,
    generate,
    generation,
    many_to_one,
    on_model,
    on_session,
    open_many,
    options,
    refusal,
    text,
    tokens,
    values,
)

pytestmark = pytest.mark.asyncio(loop_scope="package")


def tensor(dtype: str, shape: list[int], array: Any, number: int | None = None) -> Sequence:
    numbers = {"<f4": 1, "<f8": 2, "<f2": 3, "<u2": 4, "<i4": 5, "<i8": 6, "u1": 7}
    data = array if isinstance(array, bytes) else np.asarray(array, dtype=dtype).tobytes()
    return Sequence(tensor=Tensor(dtype=numbers[dtype] if number is None else number, shape=shape, data=data))  # type: ignore[arg-type]


F4 = np.float32(1).tobytes()
BAD_VALUES: list[tuple[str, str, Sequence, str, str]] = [
    ("no dtype", "lstm-series", tensor("<f4", [1], F4, 0), "INVALID_TENSOR", ".tensor.dtype"),
    ("unknown dtype", "lstm-series", tensor("<f4", [1], F4, 99), "INVALID_TENSOR", ".tensor.dtype"),
    ("two features for one", "lstm-series", tensor("<f4", [1, 2], [1, 2]), "INVALID_TENSOR", ".tensor.shape"),
    ("one feature for two", "pairs", tensor("<f4", [2, 1], [1, 2]), "INVALID_TENSOR", ".tensor.shape"),
    ("no features for two", "pairs", tensor("<f4", [2], [1, 2]), "INVALID_TENSOR", ".tensor.shape"),
    ("scalar", "lstm-series", tensor("<f4", [], F4), "INVALID_TENSOR", ".tensor.shape"),
    ("three dimensions", "lstm-series", tensor("<f4", [1, 1, 1], F4), "INVALID_TENSOR", ".tensor.shape"),
    ("a thousand dimensions", "lstm-series", tensor("<f4", [1] * 1000, F4), "INVALID_TENSOR", ".tensor.shape"),
    ("negative size", "lstm-series", tensor("<f4", [-1, 1], F4), "INVALID_TENSOR", ".tensor.shape"),
    ("negative length", "lstm-series", tensor("<f4", [-1], F4), "INVALID_TENSOR", ".tensor.shape"),
    ("absurd size", "lstm-series", tensor("<f4", [2**62, 1], F4), "INVALID_TENSOR", ".tensor.data"),
    ("size that wraps around", "lstm-series", tensor("<f4", [2**62], b""), "INVALID_TENSOR", ".tensor.data"),
    ("too few bytes", "lstm-series", tensor("<f4", [2, 1], F4), "INVALID_TENSOR", ".tensor.data"),
    ("too many bytes", "lstm-series", tensor("<f4", [1, 1], F4 + b"\0"), "INVALID_TENSOR", ".tensor.data"),
    ("bytes of another dtype", "lstm-series", tensor("<f8", [1], F4), "INVALID_TENSOR", ".tensor.data"),
    ("NaN", "lstm-series", tensor("<f4", [2], [0, np.nan]), "NOT_FINITE", ".tensor.data"),
    ("infinity", "lstm-series", tensor("<f4", [1], [np.inf]), "NOT_FINITE", ".tensor.data"),
    ("minus infinity", "pairs", tensor("<f4", [1, 2], [0, -np.inf]), "NOT_FINITE", ".tensor.data"),
    ("float64 beyond float32", "lstm-series", tensor("<f8", [1], [1e300]), "NOT_FINITE", ".tensor.data"),
    ("float64 NaN", "lstm-series", tensor("<f8", [1], [np.nan]), "NOT_FINITE", ".tensor.data"),
    ("float16 infinity", "lstm-series", tensor("<f2", [1], [np.inf]), "NOT_FINITE", ".tensor.data"),
    ("bfloat16 NaN", "lstm-series", tensor("<u2", [1], [0x7FC0]), "NOT_FINITE", ".tensor.data"),
    ("no steps", "lstm-series", tensor("<f4", [0, 1], b""), "EMPTY_SEQUENCE", ""),
    ("nothing", "lstm-series", Sequence(), "EMPTY_SEQUENCE", ""),
    ("empty text", "lstm-text", text(""), "EMPTY_SEQUENCE", ""),
    ("no tokens", "lstm-text", tokens([]), "EMPTY_SEQUENCE", ""),
    ("text for numbers", "lstm-series", text("1"), "NOT_SUPPORTED_BY_MODEL", ".text"),
    ("tokens for numbers", "lstm-series", tokens([1]), "NOT_SUPPORTED_BY_MODEL", ".tokens"),
    ("numbers for tokens", "lstm-text", values([1]), "NOT_SUPPORTED_BY_MODEL", ".tensor"),
    ("text without a tokenizer", "ids", text("a"), "NOT_SUPPORTED_BY_MODEL", ".text"),
    ("a character without token", "lstm-text", text("caf\u00e9"), "TEXT_NOT_ENCODABLE", ".text"),
    ("a character beyond the basic plane", "lstm-text", text("\U0001f600"), "TEXT_NOT_ENCODABLE", ".text"),
    ("token at the vocabulary's size", "ids", tokens([0, 50]), "TOKEN_OUT_OF_RANGE", ".tokens.ids[1]"),
    ("the largest token", "ids", tokens([2**32 - 1]), "TOKEN_OUT_OF_RANGE", ".tokens.ids[0]"),
    ("too many steps", "lstm-text", text("a" * (MAX_STEPS + 1)), "INVALID_FIELD", ""),
    ("text of a hundred thousand steps", "lstm-text", text("a" * 100_000), "INVALID_FIELD", ""),
    ("too many numbers", "lstm-series", values([0.0] * (MAX_STEPS + 1)), "INVALID_FIELD", ""),
]


@table("model,sequence,reason,suffix", BAD_VALUES)
async def test_bad_values_are_refused_by_every_call(stubs: Stubs, model: str, sequence: Sequence, reason: str, suffix: str) -> None:
    target, calls = on_model(model), stubs.inference
    told = [
        ("input", await refusal(calls.OneToOne(OneToOneRequest(target=target, input=sequence)))),
        ("input.values", await refusal(calls.ManyToOne(iter(many_to_one(target, sequence))))),
        ("input", await refusal(calls.OneToMany(OneToManyRequest(target=target, input=sequence, generation=generation(2))))),
        ("input.values", await refusal(calls.ManyToMany(iter([open_many(target), chunk(sequence)])))),
        ("programs[0].input", await run_refusal(stubs, Program(target=target, input=sequence))),
    ]

    for prefix, refused in told:
        assert_told(refused, reason, prefix + suffix)


async def test_good_chunks_before_a_bad_one_stay_taken(stubs: Stubs) -> None:
    await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(name="half", model="lstm-series")))

    told = await refusal(stubs.inference.ManyToMany(iter([open_many(on_session("half")), chunk(values([1, 2, 3])), chunk(values([np.nan]))])))

    assert (told.reason, told.metadata["position"]) == ("NOT_FINITE", "3")
    assert (await read_session(stubs, "half")).position == 3


async def test_numbers_that_overflow_in_the_model_fail_their_session_only(stubs: Stubs) -> None:
    await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(name="overflow", model="steep")))
    await stubs.inference.OneToOne(OneToOneRequest(target=on_session("overflow"), input=values([1])))
    programs = [Program(target=on_session("overflow"), input=values([1, 2, 3e38, 3])), Program(target=on_model("steep"), input=values([1]))]

    failed, fine = (await stubs.inference.Run(RunRequest(programs=programs))).results

    assert failed.failure.reason == error_pb2.ERROR_REASON_STEP_FAILED
    assert failed.failure.code == code_pb2.INTERNAL
    assert failed.failure.position == (await read_session(stubs, "overflow")).position == 3
    assert fine.HasField("completion")


def generates(**parts: Any) -> Generation:
    return Generation(**parts)


NAN = float("nan")
BAD_GENERATIONS: list[tuple[str, str, Generation, str, str]] = [
    ("no steps", "lstm-text", generates(max_steps=0), "INVALID_FIELD", ".max_steps"),
    ("above the model's limit", "lstm-text", generates(max_steps=1_000_001), "INVALID_FIELD", ".max_steps"),
    ("absurd steps", "lstm-series", generates(max_steps=2**32 - 1), "INVALID_FIELD", ".max_steps"),
    ("too many stops", "lstm-text", generates(stop_sequences=["a"] * 17), "INVALID_FIELD", ".stop_sequences"),
    ("ten thousand stops", "lstm-text", generates(stop_sequences=["a"] * 10_000), "INVALID_FIELD", ".stop_sequences"),
    ("too many stops of tokens", "ids", generates(stop_token_sequences=[TokenIds(ids=[1])] * 17), "INVALID_FIELD", ".stop_sequences"),
    ("empty stop", "lstm-text", generates(stop_sequences=["a", ""]), "INVALID_FIELD", ".stop_sequences[1]"),
    ("long stop", "lstm-text", generates(stop_sequences=["a" * 257]), "INVALID_FIELD", ".stop_sequences[0]"),
    ("stop of many bytes", "lstm-text", generates(stop_sequences=["\u20ac" * 86]), "INVALID_FIELD", ".stop_sequences[0]"),
    ("empty stop of tokens", "ids", generates(stop_token_sequences=[TokenIds()]), "INVALID_FIELD", ".stop_token_sequences[0]"),
    ("long stop of tokens", "ids", generates(stop_token_sequences=[TokenIds(ids=[1] * 257)]), "INVALID_FIELD", ".stop_token_sequences[0]"),
    ("stop token out of range", "ids", generates(stop_token_sequences=[TokenIds(ids=[1, 50])]), "TOKEN_OUT_OF_RANGE", ".stop_token_sequences[0].ids[1]"),
    ("stop text without a tokenizer", "ids", generates(stop_sequences=["a"]), "NOT_SUPPORTED_BY_MODEL", ".stop_sequences"),
    ("stop text for numbers", "lstm-series", generates(stop_sequences=["a"]), "NOT_SUPPORTED_BY_MODEL", ".stop_sequences"),
    ("stop tokens for numbers", "lstm-series", generates(stop_token_sequences=[TokenIds(ids=[1])]), "NOT_SUPPORTED_BY_MODEL", ".stop_token_sequences"),
    ("sampling for numbers", "lstm-series", generates(sampling=Sampling(temperature=1)), "NOT_SUPPORTED_BY_MODEL", ".sampling"),
]
BAD_SAMPLINGS: list[tuple[str, Sampling, str]] = [
    ("negative temperature", Sampling(temperature=-0.01), ".temperature"),
    ("hot temperature", Sampling(temperature=100.5), ".temperature"),
    ("NaN temperature", Sampling(temperature=NAN), ".temperature"),
    ("infinite temperature", Sampling(temperature=float("inf")), ".temperature"),
    ("top_p of 0", Sampling(top_p=0), ".top_p"),
    ("negative top_p", Sampling(top_p=-0.5), ".top_p"),
    ("top_p above 1", Sampling(top_p=1.01), ".top_p"),
    ("NaN top_p", Sampling(top_p=NAN), ".top_p"),
    ("infinite top_p", Sampling(top_p=float("inf")), ".top_p"),
]
BAD_GENERATIONS += [(name, "lstm-text", generates(sampling=sampling), "INVALID_FIELD", f".sampling{field}") for name, sampling, field in BAD_SAMPLINGS]


@table("model,message,reason,suffix", BAD_GENERATIONS)
async def test_bad_generations_are_refused_by_every_call(stubs: Stubs, model: str, message: Generation, reason: str, suffix: str) -> None:
    target, calls = on_model(model), stubs.inference
    told = [
        ("generation", await refusal(calls.OneToMany(OneToManyRequest(target=target, generation=message)))),
        ("generate.generation", await refusal(calls.ManyToMany(iter([open_many(target), generate(message)])))),
        ("programs[0].generation", await run_refusal(stubs, Program(target=target, generation=message))),
    ]

    for prefix, refused in told:
        assert_told(refused, reason, prefix + suffix)


@table("sampling,suffix", BAD_SAMPLINGS)
async def test_bad_sampling_of_inputs_is_refused_by_every_call(stubs: Stubs, sampling: Sampling, suffix: str) -> None:
    target, calls = on_model("lstm-text"), stubs.inference
    told = [
        ("sampling", await refusal(calls.OneToOne(OneToOneRequest(target=target, input=text("a"), sampling=sampling)))),
        ("open.sampling", await refusal(calls.ManyToOne(iter(many_to_one(target, sampling=sampling))))),
        ("open.sampling", await refusal(calls.ManyToMany(iter([open_many(target, sampling=sampling)])))),
        ("programs[0].sampling", await run_refusal(stubs, Program(target=target, input=text("a"), sampling=sampling))),
    ]

    for prefix, refused in told:
        assert_told(refused, "INVALID_FIELD", prefix + suffix)


BAD_OPTIONS: list[tuple[str, str, Sequence, OutputOptions, str, str]] = [
    ("text of numbers", "lstm-series", values([1]), options(types_pb2.OUTPUT_FORM_TEXT), UNSUPPORTED, ".form"),
    ("tokens of numbers", "lstm-series", values([1]), options(types_pb2.OUTPUT_FORM_TOKENS), UNSUPPORTED, ".form"),
    ("logits of numbers", "lstm-series", values([1]), options(types_pb2.OUTPUT_FORM_LOGITS), UNSUPPORTED, ".form"),
    ("numbers of tokens", "lstm-text", text("a"), options(types_pb2.OUTPUT_FORM_VALUES), UNSUPPORTED, ".form"),
    ("text without a tokenizer", "ids", tokens([1]), options(types_pb2.OUTPUT_FORM_TEXT), UNSUPPORTED, ".form"),
    ("unknown form", "lstm-text", text("a"), options(99), "INVALID_FIELD", ".form"),
    ("log-probabilities of numbers", "lstm-series", values([1]), options(0, log_probabilities=True), UNSUPPORTED, ".log_probabilities"),
]


@table("model,sequence,output,reason,suffix", BAD_OPTIONS)
async def test_bad_output_options_are_refused_by_every_call(
    stubs: Stubs, model: str, sequence: Sequence, output: OutputOptions, reason: str, suffix: str
) -> None:
    target, calls = on_model(model), stubs.inference
    told = [
        ("output", await refusal(calls.OneToOne(OneToOneRequest(target=target, input=sequence, output=output)))),
        ("open.output", await refusal(calls.ManyToOne(iter(many_to_one(target, output=output))))),
        ("output", await refusal(calls.OneToMany(OneToManyRequest(target=target, input=sequence, output=output, generation=generation(1))))),
        ("open.output", await refusal(calls.ManyToMany(iter([open_many(target, output=output)])))),
        ("programs[0].output", await run_refusal(stubs, Program(target=target, input=sequence, output=output))),
    ]

    for prefix, refused in told:
        assert_told(refused, reason, prefix + suffix)


@cases(
    Case(
        "one to many",
        lambda s: s.inference.OneToMany(OneToManyRequest(target=on_model("lstm-text"), output=options(types_pb2.OUTPUT_FORM_LOGITS), generation=generation(2))),
        UNSUPPORTED,
        "output.form",
    ),
    Case(
        "many to many",
        lambda s: s.inference.ManyToMany(iter([open_many(on_model("lstm-text"), output=options(types_pb2.OUTPUT_FORM_LOGITS)), generate(generation(2))])),
        UNSUPPORTED,
        "open.output.form",
    ),
)
async def test_logits_are_refused_with_generation(stubs: Stubs, case: Case) -> None:
    await case.check(stubs)


@pytest.mark.parametrize("model", ["lstm-series", "nostart"])
async def test_generation_from_nothing_is_refused(stubs: Stubs, model: str) -> None:
    target = on_model(model)

    for refused in (
        await refusal(stubs.inference.OneToMany(OneToManyRequest(target=target, generation=generation(2)))),
        await refusal(stubs.inference.ManyToMany(iter([open_many(target), generate(generation(2))]))),
    ):
        assert_told(refused, "NOTHING_TO_GENERATE_FROM", "input", PRECONDITION)
    refused = await run_refusal(stubs, Program(target=target, generation=generation(2)))
    assert_told(refused, "NOTHING_TO_GENERATE_FROM", "programs[0].input", PRECONDITION)
