import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from cellstate import ModelInfo, ValueKind, Values, ValueSignature
from cellstate.cli.app import app

COMMANDS = ["serve", "models", "generate", "forecast", "sessions", "healthcheck", "token", "demo"]
SESSION_COMMANDS = ["list", "show", "delete", "reset", "fork", "export", "import"]


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})


def test_help_names_every_command(cli: CliRunner) -> None:
    result = cli.invoke(app, ["--help"])

    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.output


@pytest.mark.parametrize("arguments", [[name] for name in COMMANDS] + [["sessions", name] for name in SESSION_COMMANDS])
def test_every_command_and_every_option_is_explained(cli: CliRunner, arguments: list[str]) -> None:
    result = cli.invoke(app, [*arguments, "--help"])

    assert result.exit_code == 0
    assert "Usage: " in result.output
    described = [line for line in result.output.splitlines() if line.strip("│ ").startswith("--")]
    assert described
    for line in described:
        assert len(line.strip("│ ").split("  ")) > 1, f"no help: {line}"


@pytest.mark.parametrize("flag", ["--host", "--port", "--metrics-port", "--models"])
def test_serve_takes_the_flags_of_a_server(cli: CliRunner, flag: str) -> None:
    assert flag in cli.invoke(app, ["serve", "--help"]).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["forecast", "sunspots"], "give the history as numbers or by --file"),
        (["generate", "m", "--top-p", "2"], "top-p"),
        (["models", "--tls-ca", "/absent.pem"], "cannot read /absent.pem"),
        (["models", "--address", "example.org:1", "--token-file", "/absent"], "cannot read /absent"),
        (["generate"], "Missing argument"),
    ],
)
def test_what_was_typed_wrong_is_told_with_exit_code_2(cli: CliRunner, arguments: list[str], said: str) -> None:
    result = cli.invoke(app, arguments)

    assert result.exit_code == 2
    assert said in result.output


def test_token_is_not_sent_in_plain_text_to_another_machine(cli: CliRunner) -> None:
    result = cli.invoke(app, ["models", "--address", "example.org:1"], env={"CELLSTATE_TOKEN": "hunter2"})

    assert result.exit_code == 2
    assert "plain text" in result.output
    assert "hunter2" not in result.output


def test_token_prints_a_token_and_the_hash_of_it(cli: CliRunner) -> None:
    first, second = (cli.invoke(app, ["token", "ada"]).stdout.split() for _ in range(2))

    assert first[0] != second[0]
    assert first[1] == f"ada:{hashlib.sha256(first[0].encode()).hexdigest()}"


@pytest.mark.parametrize("content", ["", "one\ntwo\n"])
def test_a_token_file_holds_one_token(cli: CliRunner, tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    result = cli.invoke(app, ["models", "--token-file", str(tmp_path / "token")])

    assert result.exit_code == 2
    assert "one token is needed" in result.output
    assert "two" not in result.output


class FakeClient:
    """Knows three models, and forecasts how many steps it was given."""

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def model(self, name: str) -> ModelInfo:
        signature = ValueSignature(ValueKind.TOKENS if name == "text" else ValueKind.NUMERIC, 1)
        made = mock.Mock(spec=ModelInfo, input=signature, generates=name != "classes")
        made.name = name
        return made

    def one_to_many(self, model: str, history: Values, **_: object) -> list[object]:
        return [mock.Mock(values=history.array[:1] * 0 + history.array.sum())]


@pytest.fixture
def fake_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellstate.cli.forecast.connect", lambda *_: FakeClient())


@pytest.mark.usefixtures("fake_client")
@pytest.mark.parametrize(("model", "said"), [("text", "takes tokens"), ("classes", "cannot be its next input")])
def test_forecast_of_a_model_that_cannot_says_why(cli: CliRunner, model: str, said: str) -> None:
    result = cli.invoke(app, ["forecast", model, "1", "2"])

    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.usefixtures("fake_client")
def test_forecast_takes_negative_numbers_and_a_file_by_itself(cli: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("year,value\n1,2\n2,3\n")

    assert json.loads(cli.invoke(app, ["forecast", "m", "1", "-3.5", "--json", "-n", "1"]).output)["values"] == [[-2.5]]
    assert json.loads(cli.invoke(app, ["forecast", "m", str(tmp_path / "history.csv"), "--json"]).output)["values"] == [[5.0]]


@pytest.mark.usefixtures("fake_client")
def test_a_file_of_only_a_heading_is_refused(cli: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("year,value\n")
    result = cli.invoke(app, ["forecast", "m", "--file", str(tmp_path / "history.csv")])

    assert result.exit_code == 2
    assert "no values" in result.output


def test_healthcheck_of_nobody_fails(cli: CliRunner) -> None:
    result = cli.invoke(app, ["healthcheck", "--address", "127.0.0.1:1", "--timeout-s", "0.5"])

    assert result.exit_code == 1
    assert "127.0.0.1:1: " in result.output


def test_healthcheck_sends_no_token(cli: CliRunner) -> None:
    seen: list[tuple[str, str]] = []

    class Health(health_pb2_grpc.HealthServicer):
        def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:  # noqa: N802
            seen.extend(context.invocation_metadata())
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    result = cli.invoke(app, ["healthcheck", "--address", f"localhost:{port}"], env={"CELLSTATE_TOKEN": "hunter2"})
    server.stop(None).wait()

    assert result.output == "SERVING\n"
    assert "user-agent" in dict(seen)
    assert "authorization" not in dict(seen)


def test_unreachable_server_is_one_line_and_exit_code_1() -> None:
    result = subprocess.run([sys.executable, "-m", "cellstate.cli", "models", "--address", "127.0.0.1:1"], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert result.stderr.startswith("cellstate: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("missing", ["typer", "rich", "grpc_health"])
def test_missing_libraries_are_told_in_one_line(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom cellstate.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", program, "models"], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert result.stderr == f"cellstate: the command needs {missing}: pip install '.[cli]' in a checkout of cellstate\n"


def test_missing_server_is_told_in_one_line() -> None:
    program = "import sys; sys.modules['torch'] = None\nfrom cellstate.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", program, "serve"], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert result.stderr == "cellstate: the server is not installed (torch is missing): pip install '.[service]' in a checkout of cellstate\n"


def test_no_command_but_serve_loads_the_server() -> None:
    program = "import sys; import cellstate.cli.app; print([name for name in sys.modules if name.split('.')[0] in {'torch', 'cellstate_service'}])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"
