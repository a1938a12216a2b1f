"""The benchmarks' callers, compiled and in Python, against servers that answer wrongly: what they measure must not hold lost, doubled or empty answers."""

import dataclasses
import json
import os
import subprocess
from concurrent import futures

import grpc
import pytest

from benchmarks.callers import NATIVE_KINDS, caller_command
from benchmarks.load.job import Job
from benchmarks.peers import wire
from benchmarks.places import NATIVE_CALLER, PYTHON, ROOT
from cellstate.v1 import inference_pb2, types_pb2

LOGITS = 4
STEPS = 8
COMMANDS = {"compiled": caller_command("generate"), "Python": [PYTHON, "-m", "benchmarks.load"]}


@pytest.fixture(params=list(COMMANDS))
def command(request):
    if request.param == "compiled" and not NATIVE_CALLER.exists():
        pytest.skip("the compiled caller is not built: scripts/build_native_caller.sh builds it")
    return COMMANDS[request.param]


@pytest.fixture
def serve():
    """Serve one method whose handler takes and returns bytes; return the address."""
    servers = []

    def start(service, method, handler):
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


def _call(command, kind, wire_kind, address):
    job = Job(kind, wire_kind, address, os.getpid(), "m", LOGITS, 2, 0.1, 0.3, {"steps": STEPS})
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))}
    words = [str(part) for part in command]
    return subprocess.run(words, input=json.dumps(dataclasses.asdict(job)) + "\n", capture_output=True, text=True, timeout=30, env=environment, check=False)


def _generating(positions):
    """Answer one token for each position, whatever was asked for."""

    def answer(request, context):
        for position in positions:
            output = types_pb2.Output(values=types_pb2.Sequence(tokens=types_pb2.TokenIds(ids=[1])), first_position=position, position=position + 1)
            yield inference_pb2.OneToManyResponse(output=output).SerializeToString()

    return grpc.unary_stream_rpc_method_handler(answer)


def _echoing(logits):
    return grpc.stream_stream_rpc_method_handler(
        lambda requests, context: (wire.StepReply(logits=bytes(4 * logits)).SerializeToString() for _ in requests),
    )


@pytest.mark.parametrize("positions", [[1, 2, 4], [1, 2, 2], [1, 2, 3]], ids=["lost", "doubled", "cut short"])
def test_wrong_generation_ends_the_measurement(serve, command, positions):
    address = serve("cellstate.v1.InferenceService", "OneToMany", _generating(positions))
    ended = _call(command, "generate", "cellstate", address)
    assert ended.returncode == 1, ended.stdout
    assert "came after position" in ended.stderr or "a call ended after" in ended.stderr


def test_output_of_another_size_ends_the_measurement(serve, command):
    ended = _call(command, "step-streams", "step", serve(wire.SERVICE, "Stream", _echoing(LOGITS - 1)))
    assert ended.returncode == 1, ended.stdout
    assert "the output of step 0" in ended.stderr


def _refusing(requests, context):
    """Fail a call of any kind once its first message is there: of one that fails before, grpc may tell an error of its own instead of the reason."""
    next(requests)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "refused here")


@pytest.mark.parametrize("kind", NATIVE_KINDS)
def test_failing_calls_end_the_measurement(serve, command, kind):
    method = {"generate": "Generate", "step-streams": "Stream", "step-unary": "Step"}[kind]
    ended = _call(command, kind, "step", serve(wire.SERVICE, method, grpc.stream_stream_rpc_method_handler(_refusing)))
    assert ended.returncode == 1, ended.stdout
    assert "refused here" in ended.stderr


def test_both_callers_write_the_same_figures(serve, command):
    ended = _call(command, "step-streams", "step", serve(wire.SERVICE, "Stream", _echoing(LOGITS)))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert set(found) == {"rate", "p50_ms", "p99_ms", "seconds", "tokens", "cpu_client_s", "cpu_loop_s", "cpu_engine_s", "cpu_other_s"}
    assert found["tokens"] > 0
    assert found["rate"] == pytest.approx(found["tokens"] / found["seconds"])
    assert 0 < found["p50_ms"] <= found["p99_ms"]
