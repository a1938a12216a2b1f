"""Generation over a real server: what is drawn, where it begins and ends, and how directives and stops take their turn in a stream."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from cellstate.v1.inference_pb2 import OneToOneRequest
from cellstate.v1.types_pb2 import (
    EMIT_NONE,
    FINISH_REASON_END_TOKEN,
    FINISH_REASON_STOP_DIRECTIVE,
    FINISH_REASON_STOP_SEQUENCE,
    OUTPUT_FORM_TEXT,
    OUTPUT_FORM_TOKENS,
    Generation,
    TokenIds,
)
from cellstate.v1.types_pb2 import Sampling as SamplingMessage
from tests.integration.serving import Served, drawn_with, ids, link_models, one_to_many, serving
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
from tests.models_on_disk import write_recurrent
from tests.oracle import GREEDY, Sampling

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "To be, or not to be: that"
NUMBERS = np.linspace(-2.0, 3.0, 25, dtype=np.float32) ** 2
TOLERANCE = 1e-4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = link_models(models, tmp_path_factory.mktemp("generation"), "lstm-text", "gru-text", "gru-series", "rnn_tanh-series", "ids", "pairs")
    write_recurrent(folder / "begins", input_kind="numeric", features=2, seed=40, start=[0.25, -1.0])
    write_recurrent(folder / "ends", vocabulary_size=12, hidden_size=16, seed=41, end_token=3)
    write_recurrent(folder / "bytes", vocabulary_size=256, hidden_size=16, seed=42, tokenizer={"kind": "bytes"})
    async with serving(folder) as served:
        yield served


names = (f"session-{number}" for number in itertools.count())


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


# -- sessions


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
