"""The command against a real server, with TLS and a token."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trustme
from click.testing import Result
from typer.testing import CliRunner

from cellstate.cli.app import app as command
from cellstate_service.settings import TLSSettings
from tests.integration.conftest import StartServer

Cli = Callable[..., Awaitable[Result]]


@pytest.fixture
async def cli(start_server: StartServer, tmp_path: Path) -> Cli:
    """Run the command as the owner ada."""
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "token").write_text("open sesame\n")
    (tmp_path / "tokens").write_text(f"ada:{hashlib.sha256(b'open sesame').hexdigest()}\n")
    tls = TLSSettings(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    server = await start_server(tls=tls, tokens_file=tmp_path / "tokens", host="127.0.0.1")
    environment = {
        "CELLSTATE_ADDRESS": f"localhost:{server.port}",
        "CELLSTATE_TLS_CA": str(tmp_path / "ca.pem"),
        "CELLSTATE_TOKEN_FILE": str(tmp_path / "token"),
    }

    async def run(*arguments: str, **given: str) -> Result:
        return await asyncio.to_thread(CliRunner(env=environment).invoke, command, arguments, **given)

    return run


async def test_healthcheck(cli: Cli) -> None:
    assert (await cli("healthcheck")).exit_code == 0
    unknown = await cli("healthcheck", "--service", "nobody")
    assert (unknown.exit_code, "NOT_FOUND" in unknown.output) == (1, True)


async def test_models(cli: Cli) -> None:
    table = (await cli("models")).output
    assert [line.split()[0] for line in table.splitlines()[1:]] == sorted(line.split()[0] for line in table.splitlines()[1:])
    assert "lstm-text" in table

    told = json.loads((await cli("models", "lstm-text", "--json")).output)
    assert (told["cell"], told["num_layers"], told["hidden_size"]) == ("lstm", 2, 24)
    assert "same bits in any batch" in (await cli("models", "lstm-text")).output


async def test_generate_goes_on_in_a_session(cli: Cli) -> None:
    whole = (await cli("generate", "lstm-text", "To be", "-n", "20", "--seed", "7", "-q")).stdout
    again = (await cli("generate", "lstm-text", "-", "-n", "20", "--seed", "7", "-q", input="To be")).stdout
    first = (await cli("generate", "lstm-text", "To be", "-n", "8", "--seed", "7", "-q", "-s", "chat")).stdout
    second = (await cli("generate", "lstm-text", "-n", "12", "--seed", "7", "-q", "-s", "chat")).stdout

    assert whole == again == first.removesuffix("\n") + second
    assert len(whole) == 21


async def test_generate_tells_speed_on_standard_error(cli: Cli) -> None:
    result = await cli("generate", "lstm-text", "To be", "-n", "8", "--seed", "7")

    assert "8 tokens in " in result.stderr
    assert "seed 7, position 13, max_steps" in result.stderr


async def test_forecast_draws_and_counts(cli: Cli, tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    history.write_text("".join(f"{year},{year % 11}\n" for year in range(1900, 1960)))

    from_file = json.loads((await cli("forecast", "lstm-series", "--file", str(history), "-n", "5", "--json")).output)["values"]
    from_arguments = json.loads((await cli("forecast", "lstm-series", *(str(year % 11) for year in range(1900, 1960)), "-n", "5", "--json")).output)["values"]
    assert from_file == from_arguments
    assert len(from_file) == 5
    assert "+5" in (await cli("forecast", "lstm-series", "1", "2", "3", "-n", "5")).output


async def test_sessions_from_birth_to_end(cli: Cli, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    await cli("generate", "lstm-text", "To be", "-n", "5", "-s", "a")
    assert (await cli("sessions", "fork", "a", "b")).stdout == "b\n"
    assert (await cli("sessions", "export", "a", "-o", str(snapshot))).exit_code == 0
    assert (await cli("sessions", "import", str(snapshot), "--name", "c")).stdout == "c\n"

    told = {name: json.loads((await cli("sessions", "show", name, "--json")).output) for name in "abc"}
    assert {session["position"] for session in told.values()} == {10}
    assert told["a"]["state_digest"] == told["c"]["state_digest"]

    assert (await cli("sessions", "reset", "b")).exit_code == 0
    assert (await cli("sessions", "delete", "a")).exit_code == 0
    left = json.loads((await cli("sessions", "list", "--model", "lstm-text", "--json")).output)
    assert {session["name"]: session["position"] for session in left} == {"b": 0, "c": 10}
    assert json.loads((await cli("sessions", "list", "--model", "gru-text", "--json")).output) == []
