"""The server around the services: health, reflection, TLS, tokens, limits and metrics."""

import asyncio
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cellstate.v1.inference_pb2 import OneToManyRequest, OneToOneRequest
from cellstate.v1.model_pb2 import ListModelsRequest
from cellstate.v1.session_pb2 import CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, ListSessionsRequest, Session
from cellstate_service.rpc.server import SERVICES
from cellstate_service.rpc.tls import TLSError
from cellstate_service.settings import TLSSettings
from tests.integration.serving import Served, link_models, serving
from tests.integration.stubs import Stubs, generation, many_to_one, on_model, on_session, open_many, refusal, text, values
from tests.integration.tokens import OwnersStubs, write_tokens

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def few_models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_models(models, tmp_path_factory.mktemp("server"), "lstm-text", "flowers")


@pytest.fixture
async def server(few_models: Path) -> AsyncIterator[Served]:
    async with serving(few_models) as served:
        yield served


# -- health and reflection


async def test_health_is_told_per_service(server: Served) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.stubs.channel)

    for service in ("", *SERVICES):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="cellstate.v1.Nope"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_turns_before_running_calls_end(few_models: Path) -> None:
    async with serving(few_models, grace_s=10) as server:
        health: Any = health_pb2_grpc.HealthStub(server.stubs.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        forgotten = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == (await forgotten.read()).status == SERVING
        stream = server.stubs.inference.ManyToMany()
        await stream.write(open_many(on_model("lstm-text")))
        await stream.read()

        stopping = asyncio.ensure_future(server.app.stop())

        assert (await watch.read()).status == NOT_SERVING
        assert not stopping.done()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        assert await watch.read() is grpc.aio.EOF
        async with asyncio.timeout(5):
            await stopping


async def test_health_answers_while_a_generation_runs(server: Served) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.stubs.channel)
    stream = server.stubs.inference.OneToMany(OneToManyRequest(target=on_model("lstm-text"), generation=generation(1_000_000)))
    await stream.read()
    steps = await server.metric("cellstate_steps_total", model="lstm-text", kind="generated")

    for _ in range(20):
        async with asyncio.timeout(2):
            await health.Check(health_pb2.HealthCheckRequest())
            await stream.read()

    assert await server.metric("cellstate_steps_total", model="lstm-text", kind="generated") > steps
    stream.cancel()


async def test_reflection_lists_the_services(server: Served) -> None:
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(server.stubs.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="cellstate.v1.InferenceService"),
    ]

    listing, file = [answer async for answer in reflection.ServerReflectionInfo(iter(requests))]

    listed = {service.name for service in listing.list_services_response.service}
    assert listed == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert file.file_descriptor_response.file_descriptor_proto


# -- encryption


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certify(folder: Path, name: str, extension: str) -> None:
    """Make a key and a certificate that the folder's authority signed."""
    (folder / f"{name}.ext").write_text(extension)
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
    openssl(folder, "req", *key, "-subj", f"/CN={name}", "-out", f"{name}.csr")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", *by, "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the authority `ca`, and `server` and `client` that it signed; `stranger` was signed by another."""
    folder = tmp_path_factory.mktemp("certificates")
    for authority in ("other", "ca"):
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "ca.key")
        openssl(folder, "req", "-x509", *key, "-subj", f"/CN={authority}", "-days", "2", "-out", "ca.pem")
        if authority == "other":
            certify(folder, "stranger", "extendedKeyUsage=clientAuth")
    certify(folder, "server", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    certify(folder, "client", "extendedKeyUsage=clientAuth")
    return folder


def tls(folder: Path, **parts: str) -> TLSSettings:
    return TLSSettings(**{name: folder / file for name, file in ({"certificate": "server.pem", "key": "server.key"} | parts).items()})


def channel(server: Served, folder: Path, client: str = "") -> grpc.aio.Channel:
    pair = {"private_key": (folder / f"{client}.key").read_bytes(), "certificate_chain": (folder / f"{client}.pem").read_bytes()} if client else {}
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), **pair)
    return grpc.aio.secure_channel(f"localhost:{server.app.port}", credentials)


async def test_tls_serves_those_who_trust_the_authority(few_models: Path, certificates: Path) -> None:
    async with serving(few_models, tls=tls(certificates), metrics_port=None) as server:
        async with channel(server, certificates) as trusted:
            assert len((await Stubs(trusted).models.ListModels(ListModelsRequest(), timeout=10)).models) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stubs.models.ListModels(ListModelsRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_asks_for_a_certificate(few_models: Path, certificates: Path) -> None:
    async with serving(few_models, tls=tls(certificates, client_ca="ca.pem"), metrics_port=None) as server:
        async with channel(server, certificates, "client") as known:
            assert await Stubs(known).models.ListModels(ListModelsRequest(), timeout=10)
        for client in ("", "stranger"):
            async with channel(server, certificates, client) as unknown:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await Stubs(unknown).models.ListModels(ListModelsRequest(), timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"certificate": "none.pem"}, "tls.certificate: cannot read"),
        ({"key": "client.key"}, "is not the private key of the certificate"),
        ({"certificate": "server.csr"}, "are not a certificate and its key"),
        ({"client_ca": "client.key"}, "holds no certificate"),
    ],
)
async def test_files_that_are_no_certificates_are_told(few_models: Path, certificates: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(TLSError, match=said):
        async with serving(few_models, tls=tls(certificates, **files)):
            pass


# -- who may call, and how much


async def test_calls_need_a_token_and_health_does_not(few_models: Path, tmp_path: Path) -> None:
    async with serving(few_models, tokens_file=write_tokens(tmp_path / "tokens", ada="right"), metrics_port=None) as server:
        call = OneToOneRequest(target=on_model("lstm-text"), input=text("a"))
        wrong = OwnersStubs(server.stubs.channel, "wrong")
        for refused in (
            server.stubs.inference.OneToOne(call),
            wrong.inference.OneToOne(call),
            wrong.inference.OneToMany(OneToManyRequest(target=on_model("lstm-text"))),
            wrong.inference.ManyToMany(iter([open_many(on_model("lstm-text"))])),
            wrong.inference.ManyToOne(iter(many_to_one(on_model("lstm-text")))),
            wrong.sessions.ListSessions(ListSessionsRequest()),
            wrong.models.ListModels(ListModelsRequest()),
        ):
            told = await refusal(refused)
            assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
            assert "wrong" not in told.message
        right = OwnersStubs(server.stubs.channel, "right")
        assert (await right.inference.OneToOne(call)).HasField("completion")
        assert (await right.sessions.CreateSession(CreateSessionRequest(session=Session(model="lstm-text")))).session.owner == "ada"
        health: Any = health_pb2_grpc.HealthStub(server.stubs.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_the_size_of_messages_is_limited(few_models: Path) -> None:
    async with serving(few_models, limits={"max_message_bytes": 2000}, metrics_port=None) as server:
        assert await server.stubs.inference.ManyToOne(iter(many_to_one(on_model("lstm-text"), text("a" * 1900), text("b" * 1900))))

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stubs.inference.ManyToOne(iter(many_to_one(on_model("lstm-text"), text("a" * 2000))))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# -- metrics


async def scrape(server: Served, path: str = "/metrics") -> str:
    return await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{server.app.metrics_port}{path}").read().decode())


async def use_everything(server: Served) -> None:
    """Move each family of metrics."""
    stubs = server.stubs
    session = (await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(name="not-a-label", model="lstm-text")))).session
    request = OneToManyRequest(target=on_session(session.name), input=text("Hello"), generation=generation(8))
    async for _ in stubs.inference.OneToMany(request):
        pass
    await stubs.inference.OneToOne(OneToOneRequest(target=on_model("flowers"), input=values([[1, 2, 3, 4]])))
    await refusal(stubs.sessions.GetSession(GetSessionRequest(name="none")))
    await stubs.sessions.DeleteSession(DeleteSessionRequest(name=session.name))


async def test_metrics_move_and_name_no_session(server: Served) -> None:
    await use_everything(server)
    page = await scrape(server)

    assert await server.metric("cellstate_calls_total", method="OneToMany", code="OK") == 1
    assert await server.metric("cellstate_calls_total", method="GetSession", code="NOT_FOUND") == 1
    assert await server.metric("cellstate_steps_total", model="lstm-text", kind="consumed") == 5
    assert await server.metric("cellstate_steps_total", model="lstm-text", kind="generated") == 8
    assert await server.metric("cellstate_generated_tokens_total", model="lstm-text") == 8
    assert await server.metric("cellstate_batch_rows_count", model="flowers") == 1
    for seconds in ("call", "time_to_first_output", "queue", "step"):
        assert f"cellstate_{seconds}_seconds_bucket" in page
    assert await server.metric("cellstate_sessions_created_total", model="lstm-text") == 1
    assert await server.metric("cellstate_sessions_ended_total", model="lstm-text", reason="closed") == 1
    assert await server.metric("cellstate_sessions", model="lstm-text") == 0
    assert await server.metric("cellstate_slots_in_use", model="lstm-text") == 0
    assert await server.metric("cellstate_state_bytes", model="lstm-text") > 0
    assert await server.metric("cellstate_refusals_total", reason="SESSION_NOT_FOUND") == 1
    assert await server.metric("cellstate_models_loaded") == 2
    assert await server.metric("cellstate_calls_in_progress", method="OneToMany") == 0
    assert "not-a-label" not in page


async def test_promtool_finds_nothing_wrong_with_the_metrics(server: Served) -> None:
    await use_everything(server)
    promtool = shutil.which("promtool") or str(Path(__file__).parents[2] / ".cache/bin/promtool")

    checked = subprocess.run([promtool, "check", "metrics"], input=await scrape(server), text=True, capture_output=True, check=False)  # noqa: ASYNC221

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
