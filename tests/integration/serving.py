"""A server that the tests of a module share, and what its metrics say."""

import asyncio
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToManyResponse, Target
from cellstate.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, Session
from cellstate.v1.types_pb2 import OUTPUT_FORM_TOKENS, Output
from cellstate_service.app import App, start
from cellstate_service.settings import Settings
from tests.integration.stubs import Refusal, Stubs, generate, generation, on_session, open_many, options, read_refusal
from tests.oracle import Oracle, Sampling


@dataclass
class Served:
    """A running server, stubs of a channel to it, and the oracles of its models."""

    app: App
    stubs: Stubs
    models: Path

    def oracle(self, model: str) -> Oracle:
        return Oracle(self.models / model)

    async def create(self, model: str, name: str, **parts: Any) -> Session:
        request = CreateSessionRequest(session=Session(model=model, name=name, **parts))
        session: Session = (await self.stubs.sessions.CreateSession(request)).session
        return session

    async def get(self, name: str) -> Session:
        session: Session = (await self.stubs.sessions.GetSession(GetSessionRequest(name=name))).session
        return session

    async def metric(self, name: str, **labels: str) -> float:
        """One sample of the metrics endpoint."""
        url = f"http://127.0.0.1:{self.app.metrics_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        raise AssertionError(f"no sample {name} {labels}")


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something that nobody announces holds."""
    async with asyncio.timeout(20):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(models: Path, **settings: Any) -> AsyncIterator[Served]:
    """Serve a folder of models on free ports."""
    engine = {"warm_rows": 0} | settings.pop("engine", {})
    limits = {"max_wait_s": 60.0} | settings.pop("limits", {})  # a test machine may be busy with other things
    with tempfile.TemporaryDirectory() as folder:
        store = {"path": Path(folder) / "sessions.db", "checkpoint_s": 0.2} | settings.pop("store", {})
        values: dict[str, Any] = {"port": 0, "metrics_port": 0, "models": models, "grace_s": 0.5, "engine": engine, "limits": limits, "store": store}
        app = await start(Settings(**values | settings))
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
                yield Served(app, Stubs(channel), models)
        finally:
            await app.stop()


def link_models(source: Path, folder: Path, *names: str) -> Path:
    """Put links to models into another folder: those named, or all."""
    for model in source.iterdir():
        if not names or model.name in names:
            (folder / model.name).symlink_to(model)
    return folder


def drawn_with(sampling: Sampling, seed: int) -> dict[str, Any]:
    return {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "seed": seed}


def ids(outputs: Iterable[Output]) -> list[int]:
    return [token for output in outputs for token in output.values.tokens.ids]


async def one_to_many(server: Served, target: Target, **parts: Any) -> list[OneToManyResponse]:
    return [response async for response in server.stubs.inference.OneToMany(OneToManyRequest(target=target, **parts))]


async def stands_still(server: Served, name: str) -> int:
    """Wait until a session does not move any more and return its position."""
    async with asyncio.timeout(20):
        before = -1
        while (position := (await server.get(name)).position) != before:
            before = position
            await asyncio.sleep(0.15)
    return position


async def moves(server: Served, name: str, beyond: int = 0) -> None:
    async def moved() -> bool:
        return (await server.get(name)).position > beyond

    await eventually(moved)


async def is_free(server: Served, name: str) -> None:
    async def free() -> bool:
        return not (await server.get(name)).busy

    await eventually(free)


async def ending(call: Any) -> tuple[list[Any], Refusal]:
    """Read a stream that must fail to its end."""
    answers = []
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer)
    except grpc.aio.AioRpcError as error:
        return answers, read_refusal(error)
    raise AssertionError("the stream did not fail")


async def generating_without_end(server: Served, name: str, **opening: Any) -> Any:
    """Return a stream on a session that generates without end."""
    call = server.stubs.inference.ManyToMany()
    await call.write(open_many(on_session(name), output=options(OUTPUT_FORM_TOKENS), **opening))
    call.opened = (await call.read()).opened
    await call.write(generate(generation(1_000_000)))
    await moves(server, name, 5)
    return call
