"""Each mode over a real server, for every cell and kind of value: what comes back is what a plain loop over `torch.nn` gives."""

import itertools
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToManyResponse, OneToOneRequest, Program, RunRequest, Target
from cellstate.v1.types_pb2 import (
    EMIT_ALL,
    EMIT_LAST,
    EMIT_NONE,
    FINISH_REASON_END_TOKEN,
    FINISH_REASON_INPUT_CONSUMED,
    FINISH_REASON_MAX_STEPS,
    FINISH_REASON_STOP_DIRECTIVE,
    FINISH_REASON_STOP_SEQUENCE,
    OUTPUT_FORM_LOGITS,
    OUTPUT_FORM_TEXT,
    OUTPUT_FORM_TOKENS,
    OUTPUT_FORM_VALUES,
    Generation,
    Output,
    Sequence,
    TokenIds,
)
from cellstate.v1.types_pb2 import Sampling as SamplingMessage
from tests.integration.conftest import CELLS
from tests.integration.serving import Served, link_models, serving
from tests.integration.stubs import (
    STOP,
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
    tokens,
    values,
)
from tests.models_on_disk import write_feed_forward, write_recurrent
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
    write_recurrent(folder / "begins", input_kind="numeric", features=2, seed=40, start=[0.25, -1.0])
    write_recurrent(folder / "ends", vocabulary_size=12, hidden_size=16, seed=41, end_token=3)
    write_recurrent(folder / "bytes", vocabulary_size=256, hidden_size=16, seed=42, tokenizer={"kind": "bytes"})
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


def drawn_with(sampling: Sampling, seed: int) -> dict[str, Any]:
    return {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "seed": seed}


def ids(outputs: Iterable[Output]) -> list[int]:
    return [token for output in outputs for token in output.values.tokens.ids]


async def one_to_many(server: Served, target: Target, **parts: Any) -> list[OneToManyResponse]:
    return [response async for response in server.stubs.inference.OneToMany(OneToManyRequest(target=target, **parts))]


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


# -- sampling


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(0.7), Sampling(1.3, top_k=5), Sampling(1.0, top_p=0.6), Sampling(0.9, top_k=10, top_p=0.8), Sampling(2.0, top_k=1), Sampling(100.0)],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 12347, 2**64 - 1])
async def test_token_ids_are_drawn_as_documented(server: Served, sampling: Sampling, seed: int) -> None:
    session = server.oracle("ids").session()
    session.consume([1, 2, 3])
    expected = session.generate(24, sampling, seed)
    answers = await one_to_many(server, on_model("ids"), input=tokens([1, 2, 3]), generation=generation(24, **drawn_with(sampling, seed)))
    assert ids(answer.output for answer in answers) == expected
    assert answers[-1].completion.seed == seed


async def test_log_probabilities_are_those_of_the_model(server: Served) -> None:
    oracle = server.oracle("gru-text")
    session = oracle.session()
    session.consume(oracle.encode(TEXT))
    expected = []
    for _ in range(10):
        token = session.draw(Sampling(0.5, top_k=8), 3)
        expected.append((token, session.log_probability(token)))
        session.consume([token])
    form = options(OUTPUT_FORM_TOKENS, log_probabilities=True)
    answers = await one_to_many(server, on_model("gru-text"), input=text(TEXT), output=form, generation=generation(10, temperature=0.5, top_k=8, seed=3))
    assert ids(answer.output for answer in answers) == [token for token, _ in expected]
    logs = [log for answer in answers for log in answer.output.log_probabilities]
    assert logs == pytest.approx([log for _, log in expected], abs=TOLERANCE)


@pytest.mark.parametrize("form", [OUTPUT_FORM_TEXT, OUTPUT_FORM_TOKENS])
async def test_outputs_of_inputs_are_drawn_with_seed_and_position(server: Served, form: int) -> None:
    oracle = server.oracle("lstm-text")
    session, expected = oracle.session(), []
    for token in oracle.encode(TEXT):
        session.consume([token])
        drawn = session.draw(Sampling(0.9), 8)
        expected.append((drawn, session.log_probability(drawn)))
    opening = open_many(on_model("lstm-text"), output=options(form, log_probabilities=True), sampling=SamplingMessage(temperature=0.9, seed=8))
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter([opening, chunk(text(TEXT[:9])), chunk(text(TEXT[9:]))])))
    if form == OUTPUT_FORM_TOKENS:
        assert ids(answer.output for answer in answers) == [token for token, _ in expected]
    else:
        assert "".join(answer.output.values.text for answer in answers) == oracle.decode([token for token, _ in expected])
    assert [log for answer in answers for log in answer.output.log_probabilities] == pytest.approx([log for _, log in expected], abs=TOLERANCE)


async def test_the_token_answered_for_an_input_is_the_one_that_generation_feeds(server: Served) -> None:
    name = next(names)
    await server.create("lstm-text", name, seed=4)
    sampled = SamplingMessage(temperature=1.0)
    answer = await server.stubs.inference.OneToOne(
        OneToOneRequest(target=on_session(name), input=text("T"), output=options(OUTPUT_FORM_TOKENS), sampling=sampled)
    )
    answers = await one_to_many(server, on_session(name), output=options(OUTPUT_FORM_TOKENS), generation=generation(3, temperature=1.0))
    assert ids(answer.output for answer in answers)[:1] == list(answer.output.values.tokens.ids)
    assert answers[-1].completion.seed == answer.completion.seed == 4


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


@settings(max_examples=30, deadline=None)
@given(cuts=st.sets(st.integers(1, 24)), model=st.sampled_from(["lstm-text", "gru-text", "rnn_relu-series", "lstm-series"]))
async def test_chunking_never_changes_a_byte(server: Served, cuts: set[int], model: str) -> None:
    form = LOGITS if model.endswith("text") else VALUES

    async def outputs(bounds: list[int]) -> bytes:
        chunks = [chunk(inputs_of(server.oracle(model), model.split("-")[1], slice(a, b))[1]) for a, b in itertools.pairwise(bounds)]
        _, *answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_model(model), output=form), *chunks])))
        return b"".join(answer.output.values.tensor.data for answer in answers)

    assert await outputs([0, *sorted(cuts), 25]) == await outputs([0, 25])


@pytest.mark.parametrize("model", ["lstm-text", "bytes", "ids", "pairs"])
async def test_generating_ten_is_generating_five_and_five(server: Served, model: str) -> None:
    begin = {"lstm-text": text("Once"), "bytes": text("Once"), "ids": tokens([4, 5]), "pairs": values([[1.0, 2.0]])}[model]

    async def generated(*counts: int) -> tuple[Any, int]:
        name = next(names)
        await server.create(model, name, seed=6)
        await server.stubs.inference.ManyToOne(iter(many_to_one(on_session(name), begin)))
        answers = [answer for count in counts for answer in await one_to_many(server, on_session(name), generation=generation(count))]
        sequences = [answer.output.values for answer in answers]
        made = [("".join(part.text for part in sequences)), ids(answer.output for answer in answers), b"".join(part.tensor.data for part in sequences)]
        return made, answers[-1].completion.position

    assert await generated(40) == await generated(20, 20) == await generated(1, 7, 2, 30)


async def test_a_session_draws_with_its_own_seed(server: Served) -> None:
    oracle, name = server.oracle("ids"), next(names)
    created = await server.create("ids", name, seed=77)
    assert created.seed == 77
    answers = await one_to_many(server, on_session(name), generation=generation(12))
    assert ids(answer.output for answer in answers) == oracle.session(seed=77).generate(12, Sampling())
    assert answers[0].opened.seed == answers[-1].completion.seed == 77


# -- generation: where it begins and ends


@pytest.mark.parametrize("model", ["gru-text", "begins"])
async def test_generation_from_nothing_takes_the_start_value(server: Served, model: str) -> None:
    oracle = server.oracle(model)
    answers = await one_to_many(server, on_model(model), generation=generation(9, temperature=0) if oracle.tokens_out else generation(9))
    expected = oracle.session().generate(9)
    if oracle.tokens_out:
        assert "".join(answer.output.values.text for answer in answers) == oracle.decode(expected)
    else:
        np.testing.assert_allclose(np.concatenate([array(answer.output) for answer in answers if answer.HasField("output")]), expected, atol=TOLERANCE)
    completion = answers[-1].completion
    assert (completion.position, completion.consumed_steps, completion.generated_steps) == (10, 1, 9)


async def test_a_stop_text_ends_generation_and_is_in_the_state(server: Served) -> None:
    oracle = server.oracle("lstm-text")
    session = oracle.session()
    session.consume(oracle.encode("Once"))
    written = oracle.decode(session.generate(60, Sampling(), 2))
    stop = written[20:23]
    end = written.index(stop) + 3
    name = next(names)
    await server.create("lstm-text", name, seed=2)
    first = await one_to_many(server, on_session(name), input=text("Once"), generation=generation(60, stop=("never there", stop)))
    assert "".join(answer.output.values.text for answer in first) == written[:end]
    completion = first[-1].completion
    assert (completion.reason, completion.stop_sequence.text, completion.position) == (FINISH_REASON_STOP_SEQUENCE, stop, 4 + end)
    rest = await one_to_many(server, on_session(name), generation=generation(60 - end))
    assert "".join(answer.output.values.text for answer in rest) == written[end:]


async def test_a_stop_text_that_began_in_the_call_before_ends_generation(server: Served) -> None:
    oracle = server.oracle("lstm-text")
    session = oracle.session()
    session.consume(oracle.encode("Once"))
    written = oracle.decode(session.generate(12, Sampling(), 2))
    name = next(names)
    await server.create("lstm-text", name, seed=2)
    await one_to_many(server, on_session(name), input=text("Once"), generation=generation(10))
    rest = await one_to_many(server, on_session(name), generation=generation(50, stop=(written[8:12],)))
    assert "".join(answer.output.values.text for answer in rest) == written[10:12]
    assert rest[-1].completion.reason == FINISH_REASON_STOP_SEQUENCE


async def test_stop_token_sequences_and_the_end_token_end_generation(server: Served) -> None:
    session = server.oracle("ids").session(seed=9)
    session.consume([1])
    expected = session.generate(30, Sampling())
    stop = Generation(max_steps=30, stop_token_sequences=[TokenIds(ids=expected[10:12])], sampling=SamplingMessage(seed=9))
    answers = await one_to_many(server, on_model("ids"), input=tokens([1]), generation=stop)
    end = next(index for index in range(30) if expected[index : index + 2] == expected[10:12]) + 2
    assert ids(answer.output for answer in answers) == expected[:end]
    assert list(answers[-1].completion.stop_sequence.tokens.ids) == expected[10:12]
    session = server.oracle("ends").session(seed=1)
    session.consume([1])
    expected = session.generate(200, Sampling())
    answers = await one_to_many(server, on_model("ends"), input=tokens([1]), generation=generation(200, seed=1))
    assert ids(answer.output for answer in answers) == expected[: expected.index(3) + 1]
    assert answers[-1].completion.reason == FINISH_REASON_END_TOKEN


# -- many-to-many: the order of things


async def test_chunks_and_directives_apply_in_the_order_they_were_sent(server: Served) -> None:
    session = server.oracle("gru-series").session()
    parts = [
        session.consume(NUMBERS[:4]),
        session.generate(3),
        session.consume(NUMBERS[4:5]),
        session.generate(2),
        session.generate(1),
        session.consume(NUMBERS[5:9]),
    ]
    sent = [chunk(values(NUMBERS[:4]))]
    sent += [generate(generation(3)), chunk(values(NUMBERS[4:5])), generate(generation(2)), generate(generation(1)), chunk(values(NUMBERS[5:9]))]
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_model("gru-series")), *sent])))
    rows = np.concatenate([array(answer.output) for answer in answers if answer.HasField("output")])
    np.testing.assert_allclose(rows, np.concatenate(parts), rtol=TOLERANCE, atol=TOLERANCE)
    completions = [answer.completion for answer in answers if answer.HasField("completion")]
    assert [(completion.position, completion.generated_steps) for completion in completions] == [(7, 3), (10, 2), (11, 1)]


async def test_positions_of_chunks_and_directives_are_checked(server: Served) -> None:
    sent = [open_many(on_model("gru-series")), chunk(values(NUMBERS[:4]), position=0), generate(generation(3), position=4), chunk(values([1.0]), position=7)]
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter(sent)))
    assert answers[-1].output.position == 8


async def test_stop_tells_the_exact_position_where_it_took_effect(server: Served) -> None:
    oracle, name = server.oracle("lstm-text"), next(names)
    await server.create("lstm-text", name, seed=3)
    call = server.stubs.inference.ManyToMany()
    await call.write(open_many(on_session(name), output=options(OUTPUT_FORM_TOKENS)))
    assert (await call.read()).opened.position == 0
    await call.write(chunk(text("Stop"), emit=EMIT_NONE))
    await call.write(generate(generation(1_000_000)))
    await call.write(generate(generation(1_000_000)))
    made: list[int] = []
    while len(made) < 20:
        made += (await call.read()).output.values.tokens.ids
    await call.write(STOP)
    completions = []
    while not (answer := await call.read()).HasField("stopped"):
        made += answer.output.values.tokens.ids
        completions += [answer.completion] if answer.HasField("completion") else []
    stopped = answer.stopped.position
    assert [(completion.reason, completion.position) for completion in completions] == [(FINISH_REASON_STOP_DIRECTIVE, stopped)] * 2
    assert len(made) == completions[0].generated_steps == stopped - 4
    await call.write(generate(generation(5)))
    await call.done_writing()
    while (answer := await call.read()) is not grpc.aio.EOF:
        made += answer.output.values.tokens.ids
    session = oracle.session(seed=3)
    session.consume(oracle.encode("Stop"))
    assert made[:40] == session.generate(40, Sampling())[: len(made)]
    assert (await server.get(name)).position == stopped + 5 == len(made) + 4


async def test_stop_without_generation_answers_in_its_turn(server: Served) -> None:
    sent = [open_many(on_model("gru-series")), STOP, chunk(values(NUMBERS[:3])), STOP]
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter(sent)))
    assert answers[0].stopped.position == 0
    assert answers[-1].stopped.position == 3


async def test_half_close_finishes_what_was_asked(server: Served) -> None:
    sent = [open_many(on_model("rnn_tanh-series"), emit=EMIT_NONE), *(chunk(values([number])) for number in NUMBERS), generate(generation(500))]
    _, *answers = await responses(server.stubs.inference.ManyToMany(iter(sent)))
    assert answers[-1].completion.position == 525
    assert sum(len(array(answer.output)) for answer in answers if answer.output.HasField("values")) == 500
    assert [answer.output.position for answer in answers[:25]] == list(range(1, 26))


async def test_a_stream_that_only_opens_ends_ok(server: Served) -> None:
    answers = await responses(server.stubs.inference.ManyToMany(iter([open_many(on_model("gru-series"))])))
    assert len(answers) == 1
