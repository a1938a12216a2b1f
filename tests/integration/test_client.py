"""The client library, both faces, against a real server; values are those of the oracle."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

import cellstate
from tests.integration.serving import Served, link_models, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
HISTORY = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(models: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(link_models(models, tmp_path_factory.mktemp("client"))) as served:
        yield served


@pytest.fixture
def address(server: Served) -> str:
    return f"127.0.0.1:{server.app.port}"


def wanted(server: Served, inputs: list[float] = HISTORY, model: str = "lstm-series") -> np.ndarray[Any, np.dtype[np.float32]]:
    """The oracle's outputs of a numeric model, [T, 1]."""
    return np.asarray(server.oracle(model).session(0).consume(np.array(inputs, dtype=np.float32)[:, None]))


def modes(address: str) -> dict[str, Any]:
    """Call all modes by the sync face."""
    with cellstate.Client(address) as client:
        client.wait_until_ready(10)
        got: dict[str, Any] = {
            "models": [model.name for model in client.models()],
            "one_to_one": client.one_to_one("flowers", [0.1, 0.2, 0.3, 0.4]),
            "many_to_one": client.many_to_one("lstm-series", iter([HISTORY[:3], HISTORY[3:]])),
            "many_to_many": client.many_to_many("lstm-series", iter([HISTORY[:5], HISTORY[5:]])).collect(),
            "text": client.one_to_many("lstm-text", "Hello", max_steps=30, seed=7).text(),
        }
        with client.stream("lstm-series") as stream:
            stream.send(HISTORY)
            stream.generate(max_steps=1_000_000)
            got["stopped"] = stream.stop()
        with client.session("lstm-series", seed=1) as session:
            for value in HISTORY:
                got["stepped"] = session.step(value)
            with session.fork() as fork, client.import_session(session.export()) as restored:
                got["digests"] = {session.info().state_digest, fork.info().state_digest, restored.info().state_digest}
            name = session.info().name
        with pytest.raises(cellstate.NotFound) as caught:
            client.open_session(name)
        got["gone"] = caught.value.reason
        return got


async def test_the_sync_face(server: Served, address: str) -> None:
    got = await asyncio.to_thread(modes, address)
    expected = wanted(server)
    assert "lstm-text" in got["models"]
    assert got["one_to_one"].output.labels[0] in {"a", "b", "c"}
    np.testing.assert_allclose(got["many_to_one"].output.values, expected[-1:], atol=1e-4)
    np.testing.assert_allclose(got["many_to_many"].values, expected, atol=1e-4)
    np.testing.assert_allclose(got["stepped"].output.values, expected[-1:], atol=1e-4)
    assert len(got["text"]) == 30
    assert got["stopped"] >= len(HISTORY)
    assert len(got["digests"]) == 1
    assert got["gone"] == "SESSION_CLOSED"


async def test_the_asyncio_face(server: Served, address: str) -> None:
    expected = wanted(server)
    async with cellstate.AsyncClient(address) as client:
        await client.wait_until_ready(10)
        result = await client.many_to_one("lstm-series", iter([HISTORY[:3], HISTORY[3:]]))
        np.testing.assert_allclose(result.output.values, expected[-1:], atol=1e-4)
        texts = await asyncio.gather(*(client.one_to_many("lstm-text", "Hello", max_steps=30, seed=7).text() for _ in range(8)))
        assert len(set(texts)) == 1
        async with client.stream("lstm-series") as stream:
            await stream.send(HISTORY)
            await stream.generate(max_steps=1_000_000)
            assert await stream.stop() >= len(HISTORY)
        async with client.session("lstm-series", seed=1) as session:
            for value in HISTORY:
                result = await session.step(value)
            np.testing.assert_allclose(result.output.values, expected[-1:], atol=1e-4)
            assert session.position == len(HISTORY)


async def test_errors_tell_what_they_are(address: str) -> None:
    async with cellstate.AsyncClient(address) as client:
        with pytest.raises(cellstate.NotFound, match="no model 'none' is loaded"):
            await client.one_to_one("none", [1.0])
        with pytest.raises(cellstate.InvalidInput) as caught:
            await client.many_to_one("pairs", [[1.0, 2.0, 3.0]])
        assert caught.value.field.startswith("input")
        async with client.session("lstm-series") as session, session.stream() as stream:
            await stream.send([1.0])
            await stream.receive()
            other = await client.open_session((await session.info()).name)
            with pytest.raises(cellstate.SessionBusy):
                await other.step(1.0)
        failed, well = await client.run([cellstate.Program(model="none", input=[1.0]), cellstate.Program(model="lstm-series", input=HISTORY)])
        assert isinstance(failed, cellstate.NotFound)
        assert isinstance(well, cellstate.Result)
