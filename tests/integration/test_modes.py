"""Each mode over a real server, for every cell and kind of value: what comes back is what a plain loop over `torch.nn` gives."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from cellstate.v1.inference_pb2 import OneToOneRequest, Program, RunRequest
from cellstate.v1.types_pb2 import (
    EMIT_ALL,
    EMIT_LAST,
    EMIT_NONE,
    FINISH_REASON_INPUT_CONSUMED,
    FINISH_REASON_MAX_STEPS,
    OUTPUT_FORM_LOGITS,
    OUTPUT_FORM_VALUES,
    Output,
    Sequence,
)
from tests.integration.conftest import CELLS
from tests.integration.serving import Served, drawn_with, link_models, one_to_many, serving
from tests.integration.stubs import (
    array,
    chunk,
    generate,
    generation,
    many_to_one,
    on_model,
    on_session,
    open_many,
    options,
    responses,
    text,
    values,
)
from tests.models_on_disk import write_feed_forward
from tests.oracle import GREEDY, Oracle, Sampling

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "To be, or not to be: that"
NUMBERS = np.linspace(-2.0, 3.0, 25, dtype=np.float32) ** 2
TOLERANCE = 1e-4
KINDS = ("text", "series")
LOGITS, VALUES = options(OUTPUT_FORM_LOGITS), options(OUTPUT_FORM_VALUES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("modes"))
    write_feed_forward(folder / "gelu", hidden_sizes=[8, 5], activation="gelu", features=2, outputs=1, seed=43, modes=["one_to_one", "many_to_many"])
    async with serving(folder) as served:
        yield served


names = (f"session-{number}" for number in itertools.count())


def inputs_of(oracle: Oracle, kind: str, part: slice = slice(None)) -> tuple[Any, Sequence]:
    """Inputs as the oracle takes them, and as a message."""
    if kind == "text":
        return oracle.encode(TEXT[part]), text(TEXT[part])
    return NUMBERS[part], values(NUMBERS[part])


def close(output: Output, expected: Any) -> None:
    np.testing.assert_allclose(array(output), expected, rtol=TOLERANCE, atol=TOLERANCE)


# -- every cell in every mode


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
async def test_one_to_one_takes_one_step_of_a_session_each_time(server: Served, cell: str, kind: str) -> None:
    oracle, name = server.oracle(f"{cell}-{kind}"), next(names)
    await server.create(f"{cell}-{kind}", name)
    expected = oracle.session().consume(inputs_of(oracle, kind)[0])
    for step in range(5):
        _, message = inputs_of(oracle, kind, slice(step, step + 1))
        answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name), input=message, output=LOGITS if kind == "text" else VALUES))
        close(answer.output, expected[step : step + 1])
        assert (answer.output.first_position, answer.output.position, answer.completion.position) == (step, step + 1, step + 1)
        assert (answer.completion.consumed_steps, answer.completion.reason) == (1, FINISH_REASON_INPUT_CONSUMED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
async def test_many_to_one_answers_the_last_output(server: Served, cell: str, kind: str) -> None:
    oracle = server.oracle(f"{cell}-{kind}")
    chunks = [inputs_of(oracle, kind, slice(*bounds))[1] for bounds in ((0, 3), (3, 4), (4, 25))]
    requests = many_to_one(on_model(f"{cell}-{kind}"), *chunks, output=LOGITS if kind == "text" else VALUES)
    answer = await server.stubs.inference.ManyToOne(iter(requests))
    close(answer.output, oracle.session().consume(inputs_of(oracle, kind)[0])[-1:])
    assert (answer.output.first_position, answer.output.position) == (24, 25)
    completion = answer.completion
    assert (completion.position, completion.consumed_steps, completion.generated_steps) == (25, 25, 0)
    assert completion.reason == FINISH_REASON_INPUT_CONSUMED
    assert completion.run_s > 0


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("cell", CELLS)
async def test_one_to_many_generates_text_after_a_prompt(server: Served, cell: str, sampling: Sampling) -> None:
    oracle = server.oracle(f"{cell}-text")
    session = oracle.session()
    session.consume(oracle.encode(TEXT))
    expected = session.generate(30, sampling, seed=5)
    answers = await one_to_many(server, on_model(f"{cell}-text"), input=text(TEXT), generation=generation(30, **drawn_with(sampling, 5)))
    assert "".join(answer.output.values.text for answer in answers) == oracle.decode(expected)
    assert [answer.HasField("completion") for answer in answers] == [False] * (len(answers) - 1) + [True]
    completion = answers[-1].completion
    assert (completion.position, completion.consumed_steps, completion.generated_steps, completion.seed) == (55, 25, 30, 5)
    assert completion.reason == FINISH_REASON_MAX_STEPS
    assert not answers[0].HasField("opened")


@pytest.mark.parametrize("cell", CELLS)
async def test_one_to_many_forecasts(server: Served, cell: str) -> None:
    session = server.oracle(f"{cell}-series").session()
    session.consume(NUMBERS)
    expected = session.generate(12)
    answers = await one_to_many(server, on_model(f"{cell}-series"), input=values(NUMBERS), generation=generation(12))
    made = np.concatenate([array(answer.output) for answer in answers if answer.HasField("output")])
    np.testing.assert_allclose(made, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert answers[-1].completion.position == 37
    assert not answers[-1].completion.HasField("seed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
async def test_many_to_many_answers_each_input_and_generates(server: Served, cell: str, kind: str) -> None:
    oracle = server.oracle(f"{cell}-{kind}")
    steps, message = inputs_of(oracle, kind)
    session = oracle.session()
    expected = session.consume(steps)
    directives = [] if kind == "text" else [generate(generation(6))]
    sent = [open_many(on_model(f"{cell}-{kind}"), output=LOGITS if kind == "text" else VALUES), chunk(message), *directives]
    opened, *answers = await responses(server.stubs.inference.ManyToMany(iter(sent)))
    assert opened.opened.position == 0
    outputs = [answer.output for answer in answers if answer.HasField("output")]
    rows = np.concatenate([array(output) for output in outputs])
    np.testing.assert_allclose(rows[:25], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert [output.first_position for output in outputs] == [0, *(output.position for output in outputs[:-1])]
    if kind == "series":
        np.testing.assert_allclose(rows[25:], session.generate(6), rtol=TOLERANCE, atol=TOLERANCE)
        assert answers[-1].completion.position == 31


# -- models of other shapes


async def test_feed_forward_answers_one_to_one_with_labels(server: Served) -> None:
    oracle = server.oracle("flowers")
    for row in ([5.1, 3.5, 1.4, 0.2], [6.0, 2.2, 5.0, 1.5], [-3.0, 4.0, 0.5, 9.0]):
        answer = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_model("flowers"), input=values([row])))
        expected = oracle.session().consume([row])
        close(answer.output, expected)
        assert array(answer.output).sum() == pytest.approx(1, abs=1e-5)
        assert list(answer.output.labels) == oracle.labels(expected)
        assert answer.completion.position == 1


async def test_feed_forward_answers_many_to_many_row_by_row(server: Served) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_model("gelu")), chunk(values(rows))])))
    np.testing.assert_allclose(np.concatenate([array(answer.output) for answer in answers]), server.oracle("gelu").session().consume(rows), atol=TOLERANCE)


async def test_several_features_and_projected_layers(server: Served) -> None:
    rows = np.random.default_rng(1).normal(size=(11, 2)).astype(np.float32)
    session = server.oracle("pairs").session()
    expected = session.consume(rows)
    program = Program(target=on_model("pairs"), input=values(rows), emit=EMIT_ALL, generation=generation(7))
    (result,) = (await server.stubs.inference.Run(RunRequest(programs=[program]))).results
    close(result.emitted, expected)
    close(result.generated, session.generate(7))
    assert result.completion.position == 18


async def test_outputs_may_have_other_features_than_inputs(server: Served) -> None:
    rows = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
    answer = await server.stubs.inference.ManyToOne(iter(many_to_one(on_model("counts"), values(rows))))
    close(answer.output, server.oracle("counts").session().consume(rows)[-1:])
    assert list(answer.output.values.tensor.shape) == [1, 2]


# -- emit and forms


@pytest.mark.parametrize(("emit", "rows"), [(EMIT_NONE, 0), (EMIT_LAST, 1), (EMIT_ALL, 25)])
async def test_run_emits_what_is_asked_and_then_generates(server: Served, emit: Any, rows: int) -> None:
    oracle = server.oracle("gru-series")
    session = oracle.session()
    expected = session.consume(NUMBERS)
    program = Program(target=on_model("gru-series"), input=values(NUMBERS), emit=emit, generation=generation(4))
    (result,) = (await server.stubs.inference.Run(RunRequest(programs=[program]))).results
    assert result.HasField("emitted") == (rows > 0)
    if rows:
        close(result.emitted, expected[25 - rows :])
        assert (result.emitted.first_position, result.emitted.position) == (25 - rows, 25)
    close(result.generated, session.generate(4))
    assert (result.generated.first_position, result.generated.position) == (25, 29)


async def test_chunks_of_a_stream_emit_what_each_asks(server: Served) -> None:
    expected = server.oracle("lstm-series").session().consume(NUMBERS[:9])
    sent = [
        open_many(on_model("lstm-series"), emit=EMIT_LAST),
        chunk(values(NUMBERS[:3])),
        chunk(values(NUMBERS[3:6]), emit=EMIT_NONE),
        chunk(values(NUMBERS[6:9]), emit=EMIT_ALL),
    ]
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter(sent)))
    outputs = [answer.output for answer in answers]
    close(outputs[0], expected[2:3])
    assert (outputs[0].first_position, outputs[0].position) == (2, 3)
    assert not outputs[1].HasField("values")
    assert (outputs[1].first_position, outputs[1].position) == (3, 6)
    np.testing.assert_allclose(np.concatenate([array(output) for output in outputs[2:]]), expected[6:], atol=TOLERANCE)


# -- run


async def test_run_takes_many_programs_and_each_ends_by_itself(server: Served) -> None:
    oracles = {name: server.oracle(name) for name in ("lstm-text", "gru-series", "flowers")}
    programs = []
    for index in range(30):
        programs.append(
            Program(target=on_model("lstm-text"), input=text(TEXT[: index % 7 + 1]), generation=generation(index % 5 + 1, temperature=0, seed=index))
        )
        programs.append(Program(target=on_model("gru-series"), input=values(NUMBERS[index % 3 : index % 9 + 4])))
        programs.append(Program(target=on_model("flowers"), input=values([[index, 1, 2, 3]])))
    programs.append(Program(target=on_model("gru-series"), input=values([[1.0, 2.0]])))
    results = (await server.stubs.inference.Run(RunRequest(programs=programs))).results
    assert len(results) == 91
    for index in range(30):
        written, forecast, labelled = results[3 * index : 3 * index + 3]
        session = oracles["lstm-text"].session()
        session.consume(oracles["lstm-text"].encode(TEXT[: index % 7 + 1]))
        assert written.generated.values.text == oracles["lstm-text"].decode(session.generate(index % 5 + 1))
        close(forecast.emitted, oracles["gru-series"].session().consume(NUMBERS[index % 3 : index % 9 + 4])[-1:])
        close(labelled.emitted, oracles["flowers"].session().consume([[index, 1, 2, 3]]))
    failure = results[-1].failure
    assert (failure.code, failure.field) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "programs[90].input.tensor.shape")
    assert not results[-1].HasField("completion")


# -- sessions


@pytest.mark.parametrize("model", ["lstm-text", "pairs"])
async def test_calls_in_all_modes_continue_a_session_as_one_call(server: Served, model: str) -> None:
    """The bytes of one long call and of a session that is called in five ways are the same."""
    numeric = model == "pairs"
    rows = np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32)
    parts = [values(rows[a:b]) if numeric else text(TEXT[a:b]) for a, b in ((0, 1), (1, 6), (6, 13), (13, 20))]
    whole = values(rows) if numeric else text(TEXT[:20])
    form = VALUES if numeric else LOGITS
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_model(model), output=form), chunk(whole)])))
    expected = b"".join(answer.output.values.tensor.data for answer in answers)
    width = len(expected) // 20
    name = next(names)
    await server.create(model, name)
    one = await server.stubs.inference.OneToOne(OneToOneRequest(target=on_session(name), input=parts[0], output=form))
    last = await server.stubs.inference.ManyToOne(iter(many_to_one(on_session(name, position=1), parts[1], output=form)))
    _, *streamed = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_session(name, position=6), output=form), chunk(parts[2])])))
    program = Program(target=on_session(name, position=13), input=parts[3], emit=EMIT_ALL, output=form)
    (ran,) = (await server.stubs.inference.Run(RunRequest(programs=[program]))).results
    assert one.output.values.tensor.data == expected[:width]
    assert last.output.values.tensor.data == expected[5 * width : 6 * width]
    assert b"".join(answer.output.values.tensor.data for answer in streamed) == expected[6 * width : 13 * width]
    assert ran.emitted.values.tensor.data == expected[13 * width :]
    assert (await server.get(name)).position == 20


@settings(max_examples=30)
@given(cuts=st.sets(st.integers(1, 24)), model=st.sampled_from(["lstm-text", "gru-text", "rnn_relu-series", "lstm-series"]))
async def test_chunking_never_changes_a_byte(server: Served, cuts: set[int], model: str) -> None:
    form = LOGITS if model.endswith("text") else VALUES

    async def outputs(bounds: list[int]) -> bytes:
        chunks = [chunk(inputs_of(server.oracle(model), model.split("-")[1], slice(a, b))[1]) for a, b in itertools.pairwise(bounds)]
        _, *answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_model(model), output=form), *chunks])))
        return b"".join(answer.output.values.tensor.data for answer in answers)

    assert await outputs([0, *sorted(cuts), 25]) == await outputs([0, 25])
