"""Batched equals alone: whoever shares the batch, a session's bytes are those of a run by itself."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest, Program, RunRequest
from cellstate.v1.types_pb2 import EMIT_ALL, EMIT_LAST, OUTPUT_FORM_LOGITS, OUTPUT_FORM_TOKENS, OUTPUT_FORM_VALUES, Output
from cellstate.v1.types_pb2 import Sampling as SamplingMessage
from cellstate_service.engine.core import EngineCore
from tests.integration.serving import Served, eventually, link_models, serving
from tests.integration.stubs import (
    chunk,
    generate,
    generation,
    many_to_one,
    on_session,
    open_many,
    options,
    responses,
    text,
    tokens,
    values,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSIONS = 64
MODELS = ("lstm-text", "gru-text", "pairs", "ids")
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 1.2, "top_k": 9},
    {"top_p": 0.7},
    {"top_k": 20, "top_p": 0.9},
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(link_models(models, tmp_path_factory.mktemp("batching"), *MODELS)) as served:
        yield served


def content(*outputs: Output) -> bytes:
    """The bytes of what outputs carry, without how they were cut into messages."""
    texts = "".join(output.values.text for output in outputs).encode()
    ids = np.array([token for output in outputs for token in output.values.tokens.ids], dtype="<u4").tobytes()
    logs = np.array([log for output in outputs for log in output.log_probabilities], dtype="<f4").tobytes()
    return b"|".join([texts, ids, b"".join(output.values.tensor.data for output in outputs), logs])


class Job:
    """One session's calls: their kinds, lengths and seeds are a function of its number."""

    def __init__(self, server: Served, number: int) -> None:
        self._stubs = server.stubs.inference
        self._server = server
        self._number = number
        self._random = random.Random(number)  # noqa: S311
        self.model = MODELS[number % len(MODELS)]

    @property
    def numeric(self) -> bool:
        return self.model == "pairs"

    def inputs(self, most: int) -> Any:
        steps = self._random.randint(1, most)
        if self.numeric:
            return values(np.random.default_rng(self._random.randrange(1 << 30)).normal(size=(steps, 2)))
        if self.model == "ids":
            return tokens(self._random.choices(range(50), k=steps))
        return text("".join(self._random.choices("abcdefgh THE\n", k=steps)))

    def generation(self, most: int) -> Any:
        sampling = {} if self.numeric else {**self._random.choice(SAMPLINGS), "seed": self._random.randrange(1 << 63)}
        return generation(self._random.randint(most // 2, most), **sampling)

    def form(self, *, generates: bool) -> Any:
        if self.numeric:
            return options(OUTPUT_FORM_VALUES)
        drawn = options(OUTPUT_FORM_TOKENS, log_probabilities=True)
        return drawn if generates else self._random.choice([drawn, options(OUTPUT_FORM_LOGITS)])

    async def begin(self, name: str) -> None:
        """Create the session and choose its calls."""
        self._name = name
        await self._server.create(self.model, name, seed=self._number)
        self._kinds = self._random.choices(KINDS, k=ROUNDS)
        self._found: list[bytes] = []

    async def call(self, number: int) -> None:
        """Make one of its calls."""
        self._found.append(await getattr(self, f"_{self._kinds[number]}")(on_session(self._name)))

    async def end(self) -> bytes:
        """Return all that its calls answered, and the digest of its state."""
        return b"|".join([*self._found, str((await self._server.get(self._name)).state_digest).encode()])

    async def run(self, name: str) -> bytes:
        """Make all its calls, one after the other."""
        await self.begin(name)
        for number in range(ROUNDS):
            await self.call(number)
        return await self.end()

    async def _one_to_one(self, target: Any) -> bytes:
        sampling = None if self.numeric else SamplingMessage(temperature=0.9)
        request = OneToOneRequest(target=target, input=self.inputs(1), output=self.form(generates=False), sampling=sampling)
        return content((await self._stubs.OneToOne(request)).output)

    async def _many_to_one(self, target: Any) -> bytes:
        chunks = [self.inputs(15) for _ in range(3)]
        return content((await self._stubs.ManyToOne(iter(many_to_one(target, *chunks, output=self.form(generates=False))))).output)

    async def _one_to_many(self, target: Any) -> bytes:
        request = OneToManyRequest(target=target, input=self.inputs(9), output=self.form(generates=True), generation=self.generation(50))
        return content(*[response.output async for response in self._stubs.OneToMany(request)])

    async def _many_to_many(self, target: Any) -> bytes:
        opening = open_many(target, output=self.form(generates=True), emit=self._random.choice([EMIT_ALL, EMIT_LAST]))
        sent = [opening, chunk(self.inputs(20)), generate(self.generation(30)), chunk(self.inputs(20)), generate(self.generation(20))]
        return content(*(response.output for response in await responses(self._stubs.ManyToMany(iter(sent)))))

    async def _run(self, target: Any) -> bytes:
        program = Program(target=target, input=self.inputs(20), emit=EMIT_ALL, output=self.form(generates=True), generation=self.generation(25))
        (result,) = (await self._stubs.Run(RunRequest(programs=[program]))).results
        return content(result.emitted, result.generated)


ROUNDS = 3
KINDS = ("one_to_one", "many_to_one", "one_to_many", "many_to_many", "run")


async def mean_rows(server: Served, model: str, before: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Rows and batches that a model's engine has run since."""
    rows = await server.metric("cellstate_batch_rows_sum", model=model)
    batches = await server.metric("cellstate_batch_rows_count", model=model)
    return rows - before[0], batches - before[1]


async def steps_taken(server: Served, model: str) -> float:
    return sum([await server.metric("cellstate_steps_total", model=model, kind=kind) for kind in ("consumed", "generated")])


async def run_together(server: Served, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Make the calls of all jobs in rounds. The engines are held at the start of each until every call of it is there, however slow the machine is."""
    engines = server.app.fleet.engines.values()
    held = threading.Event()
    monkeypatch.setattr(EngineCore, "has_work", property(lambda core: not held.is_set() and len(core._scheduler) > 0))
    jobs = [Job(server, number) for number in range(SESSIONS)]
    for number, job in enumerate(jobs):
        await job.begin(f"together-{number}")

    async def all_there() -> bool:
        return sum(len(engine._core._working) for engine in engines) == SESSIONS

    for number in range(ROUNDS):
        held.set()
        calls = asyncio.gather(*(job.call(number) for job in jobs))
        await eventually(all_there)
        held.clear()
        for engine in engines:
            engine._commands.put([])  # wakes it
        await calls
    monkeypatch.undo()
    return [await job.end() for job in jobs]


async def test_64_mixed_sessions_together_give_the_bytes_of_each_alone(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [await mean_rows(server, model) for model in MODELS]
    began = [await steps_taken(server, model) for model in MODELS]
    together = await run_together(server, monkeypatch)
    shared = [await mean_rows(server, model, start) for model, start in zip(MODELS, before, strict=True)]
    between = [await steps_taken(server, model) for model in MODELS]
    for number in range(SESSIONS):
        assert await Job(server, number).run(f"alone-{number}") == together[number], f"session {number} on {Job(server, number).model}"
    alone = [await mean_rows(server, model, start) for model, start in zip(MODELS, before, strict=True)]
    for model, (rows, batches), (all_rows, all_batches) in zip(MODELS, shared, alone, strict=True):
        assert rows / batches > 2, f"{model}: sessions did not share batches"
        assert all_rows - rows == all_batches - batches, f"{model}: the second run was not one by one"
    ended = [await steps_taken(server, model) for model in MODELS]
    assert [half - start for start, half in zip(began, between, strict=True)] == [end - half for half, end in zip(between, ended, strict=True)]


async def test_one_run_of_many_programs_shares_batches(server: Served) -> None:
    jobs = [Job(server, 4 * number) for number in range(30)]
    names = [f"program-{number}" for number in range(len(jobs))]
    for name in names:
        await server.create("lstm-text", name)
    programs = [
        Program(target=on_session(name), input=text("To be"), output=options(OUTPUT_FORM_TOKENS), generation=job.generation(60))
        for name, job in zip(names, jobs, strict=True)
    ]
    before, steps = await mean_rows(server, "lstm-text"), await steps_taken(server, "lstm-text")
    results = (await server.stubs.inference.Run(RunRequest(programs=programs))).results
    rows, batches = await mean_rows(server, "lstm-text", before)
    assert await steps_taken(server, "lstm-text") - steps == sum(5 + program.generation.max_steps for program in programs)
    assert rows / batches > 10
    for number, (program, result) in enumerate(zip(programs, results, strict=True)):
        await server.create("lstm-text", f"again-{number}")
        program.target.session.name = f"again-{number}"
        (alone,) = (await server.stubs.inference.Run(RunRequest(programs=[program]))).results
        assert alone.generated.values == result.generated.values


async def test_more_sessions_than_rows_take_turns(models: Path, tmp_path: Path, server: Served) -> None:
    """With 4 rows at most, 24 sessions of one model get the bytes that a server with room gives, and none waits for another's end."""
    names = [f"turn-{number}" for number in range(24)]
    async with serving(link_models(models, tmp_path, "lstm-text"), engine={"max_batch_rows": 4}) as small:
        answers = [await _programs(served, names) for served in (small, server)]
        assert await small.metric("cellstate_batch_rows_bucket", model="lstm-text", le="4.0") == await small.metric(
            "cellstate_batch_rows_count", model="lstm-text"
        )
        assert [result.generated.values for result in answers[0]] == [result.generated.values for result in answers[1]]
        ended_s = [result.completion.queue_wait_s + result.completion.run_s for result in answers[0]]
        assert min(ended_s) > max(ended_s) / 2, "some sessions ran to their end before others began"


async def _programs(served: Served, names: list[str]) -> Any:
    for name in names:
        await served.create("lstm-text", name, seed=len(name))
    form = options(OUTPUT_FORM_TOKENS)
    programs = [Program(target=on_session(name), input=text(name[:4]), output=form, generation=generation(60)) for name in names]
    return (await served.stubs.inference.Run(RunRequest(programs=programs))).results
