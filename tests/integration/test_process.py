"""The server as a process: it says when it is ready, stops gracefully, and tells in one line why it cannot start."""

import asyncio
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellstate.v1.inference_pb2 import OneToManyRequest
from cellstate.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, Session
from tests.integration.stubs import Stubs, chunk, generation, on_model, on_session, open_many, text
from tests.models_on_disk import write_recurrent

COMMAND = Path(sys.executable).with_name("cellstate")
READY = re.compile(r"cellstate is ready: gRPC on 127\.0\.0\.1:(\d+), metrics on (http://127\.0\.0\.1:\d+/metrics), models: tiny\n")


@dataclass
class Process:
    """A server process and what it said when it was ready."""

    process: asyncio.subprocess.Process
    port: int

    async def ends(self) -> tuple[int, str]:
        """Wait for its end and return the exit code and what was left to read on standard output."""
        async with asyncio.timeout(30):
            rest, _ = await self.process.communicate()
        return int(self.process.returncode or 0), rest.decode()


Start = Callable[..., Awaitable[Process]]


async def launch(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(str(COMMAND), "serve", "--port", "0", "--metrics-port", "0", *arguments, stdout=pipe, stderr=pipe)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("process")
    write_recurrent(folder / "tiny", hidden_size=64)
    return folder


@pytest.fixture
async def start(tiny: Path, tmp_path: Path) -> AsyncIterator[Start]:
    """Start server processes; what still runs at the end is killed."""
    started: list[asyncio.subprocess.Process] = []

    async def make(*arguments: str) -> Process:
        process = await launch("--models", str(tiny), "--set", f"store.path={tmp_path}/sessions-{len(started)}.db", *arguments)
        started.append(process)
        assert process.stdout
        line = (await process.stdout.readline()).decode()
        found = READY.fullmatch(line)
        assert found, line
        return Process(process, int(found[1]))

    yield make
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def fails(*arguments: str) -> tuple[int, str]:
    """Start a server that cannot start and return its exit code and what it said."""
    process = await launch("--set", "store.kind=memory", *arguments)
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert not output
    return int(process.returncode or 0), errors.decode()


def stubs_of(process: Process) -> tuple[grpc.aio.Channel, Stubs]:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{process.port}")
    return channel, Stubs(channel)


async def test_running_calls_finish_within_the_grace_period(start: Start) -> None:
    process = await start("--grace-s", "25")
    channel, stubs = stubs_of(process)
    async with channel:
        stream = stubs.inference.ManyToMany()
        await stream.write(open_many(on_model("tiny")))
        await stream.read()
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        process.process.send_signal(signal.SIGTERM)

        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        for index in range(3):
            await stream.write(chunk(text("a")))
            assert (await stream.read()).output.position == index + 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="tiny")), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
    assert await process.ends() == (0, "")


async def test_calls_beyond_the_grace_period_are_ended(start: Start) -> None:
    process = await start("--grace-s", "0.3")
    channel, stubs = stubs_of(process)
    async with channel:
        stream = stubs.inference.OneToMany(OneToManyRequest(target=on_model("tiny"), generation=generation(1_000_000)))
        await stream.read()

        process.process.send_signal(signal.SIGTERM)

        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 (the last of many reads)
            while await stream.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    assert await process.ends() == (0, "")


async def test_an_interrupt_stops_an_idle_server_at_once(start: Start) -> None:
    process = await start("--grace-s", "25")

    process.process.send_signal(signal.SIGINT)

    assert await process.ends() == (0, "")


VANISHING = """
import asyncio, sys, grpc.aio
from cellstate.v1.inference_pb2 import OneToManyRequest, SessionReference, Target
from cellstate.v1.inference_pb2_grpc import InferenceServiceStub
from cellstate.v1.types_pb2 import Generation

async def main():
    stub = InferenceServiceStub(grpc.aio.insecure_channel(sys.argv[1]))
    request = OneToManyRequest(target=Target(session=SessionReference(name="left")), generation=Generation(max_steps=1000000))
    async for answer in stub.OneToMany(request):
        print(answer.output.position, flush=True)

asyncio.run(main())
"""


async def test_a_client_that_is_killed_leaves_its_session_free(start: Start) -> None:
    process = await start()
    channel, stubs = stubs_of(process)
    async with channel:
        await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(name="left", model="tiny")))
        address = f"127.0.0.1:{process.port}"
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", VANISHING, address, stdout=asyncio.subprocess.PIPE)
        assert client.stdout
        assert await client.stdout.readline()
        assert (await stubs.sessions.GetSession(GetSessionRequest(name="left"))).session.busy

        client.kill()
        await client.communicate()

        async with asyncio.timeout(20):
            while (await stubs.sessions.GetSession(GetSessionRequest(name="left"))).session.busy:  # noqa: ASYNC110 (the server tells nobody)
                await asyncio.sleep(0.01)
        request = OneToManyRequest(target=on_session("left"), generation=generation(3))
        before = (await stubs.sessions.GetSession(GetSessionRequest(name="left"))).session.position
        answers = [answer async for answer in stubs.inference.OneToMany(request)]
        assert answers[-1].completion.position == before + 3


# -- servers that cannot start


async def test_a_port_in_use_is_told_in_one_line(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        code, said = await fails("--models", str(tiny), "--port", str(port))

    assert code == 1
    assert one_line(said)
    assert str(port) in said


async def test_a_metrics_port_in_use_is_told_in_one_line(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        code, said = await fails("--models", str(tiny), "--metrics-port", str(port))

    assert code == 1
    assert one_line(said)
    assert str(port) in said


def one_line(said: str) -> bool:
    """Whether the last line is ours, and nothing looks like a traceback."""
    return said.rstrip("\n").splitlines()[-1].startswith("cellstate: ") and "Traceback" not in said


async def test_a_broken_manifest_is_told_by_file_and_key(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny / "tiny", tmp_path / "broken")
    manifest = tmp_path / "broken" / "model.yaml"
    manifest.write_text(manifest.read_text().replace("hidden_size: 64", "hidden_size: wide"))

    code, said = await fails("--models", str(tmp_path))

    assert code == 1
    assert one_line(said)
    assert "broken/model.yaml: hidden_size: " in said
