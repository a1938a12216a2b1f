"""A server that the tests of a module share, and what its metrics say."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from cellstate.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, Session
from cellstate_service.app import App, start
from cellstate_service.settings import Settings
from tests.integration.stubs import Stubs
from tests.oracle import Oracle


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


@asynccontextmanager
async def serving(models: Path, **settings: Any) -> AsyncIterator[Served]:
    """Serve a folder of models on free ports."""
    values: dict[str, Any] = {"port": 0, "metrics_port": 0, "models": models, "grace_s": 0.5} | settings
    app = await start(Settings(**values))
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
