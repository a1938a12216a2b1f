import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from cellstate_service.settings import Settings, SettingsError, TLSSettings, load_settings

EVERY_ADDRESS = "0.0.0.0"  # noqa: S104


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("CELLSTATE_"):
            monkeypatch.delenv(name)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)


def problems(config: Path | None = None, overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(config, overrides)
    return caught.value.problems


def write(text: str) -> Path:
    path = Path("server.yaml")
    path.write_text(text)
    return path


def groups() -> list[type[BaseModel]]:
    return [
        Settings,
        *(field.annotation for field in Settings.model_fields.values() if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)),
    ]


def test_defaults() -> None:
    settings = load_settings()

    assert (settings.listen_host, settings.port, settings.metrics_listen_host, settings.metrics_port) == ("127.0.0.1", 50051, "127.0.0.1", 9464)


@pytest.mark.parametrize("group", groups())
def test_every_setting_is_described_and_frozen(group: type[BaseModel]) -> None:
    assert group.model_config["frozen"]
    assert group.model_config["extra"] == "forbid"
    for name, field in group.model_fields.items():
        assert field.description, name
        assert field.description.endswith(".")


def test_flags_override_environment_overrides_file_overrides_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    config = write("port: 1\nmetrics_port: 1\nengine: {max_batch_rows: 1, max_calls: 1, output_window_steps: 1}\n")
    monkeypatch.setenv("CELLSTATE_METRICS_PORT", "2")
    monkeypatch.setenv("CELLSTATE_PORT", "2")
    monkeypatch.setenv("CELLSTATE_ENGINE__MAX_CALLS", "2")
    monkeypatch.setenv("CELLSTATE_ENGINE__MAX_BATCH_ROWS", "2")
    settings = load_settings(config, {"port": 3, "engine": {"max_batch_rows": 3}})

    assert (settings.port, settings.metrics_port) == (3, 2)
    engine = settings.engine
    assert (engine.max_batch_rows, engine.max_calls, engine.output_window_steps, engine.torch_threads) == (3, 2, 1, 1)


def test_file_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSTATE_CONFIG", str(write("port: 7")))

    assert load_settings().port == 7


def test_empty_variables_count_as_unset_and_none_as_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSTATE_HOST", "")
    monkeypatch.setenv("CELLSTATE_METRICS_PORT", "none")

    assert load_settings().host is None
    assert load_settings().metrics_port is None


def test_variables_of_the_client_and_of_kubernetes_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELLSTATE_ADDRESS", "CELLSTATE_TOKEN", "CELLSTATE_TOKEN_FILE", "CELLSTATE_TLS_CA", "CELLSTATE_SERVICE_HOST", "CELLSTATE_PORT_50051_TCP_ADDR"):
        monkeypatch.setenv(name, "something")
    monkeypatch.setenv("CELLSTATE_PORT", "tcp://10.0.0.1:50051")

    assert load_settings().port == 50051


def test_constructor_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSTATE_PORT", "7")

    assert Settings().port == 50051


def test_unknown_variable_is_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSTATE_PROT", "1")
    monkeypatch.setenv("CELLSTATE_ENGINE__MAX_BATCH_ROW", "1")

    assert problems() == [
        "CELLSTATE_ENGINE__MAX_BATCH_ROW: no such setting; did you mean CELLSTATE_ENGINE__MAX_BATCH_ROWS?",
        "CELLSTATE_PROT: no such setting; did you mean CELLSTATE_PORT?",
    ]


def test_unreadable_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSTATE_PORT", "high")
    monkeypatch.setenv("CELLSTATE_SESSIONS__IDLE_TTL_S", "nan")
    found = problems()

    assert [line.partition(": ")[0] for line in found] == ["CELLSTATE_PORT", "CELLSTATE_SESSIONS__IDLE_TTL_S"]
    assert found[0].endswith("not 'high'")


def test_group_variable_that_is_not_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSTATE_ENGINE", "fast")

    assert problems()[0].startswith("CELLSTATE_ENGINE: not readable: ")


def test_unknown_and_unreadable_keys_of_the_file_are_named() -> None:
    config = write("engin: {}\nport: 70000\nengine: {max_batch_row: 1}\n")

    assert problems(config) == [
        "server.yaml: port: Input should be less than or equal to 65535, not 70000",
        "server.yaml: engine.max_batch_row: no such setting; did you mean max_batch_rows?",
        "server.yaml: engin: no such setting; did you mean engine?",
    ]


@pytest.mark.parametrize(
    ("path", "key"), [("port", "--port"), ("engine.max_calls", "--set engine.max_calls"), ("logging.level", "--log-level"), ("tls.key", "--tls-key")]
)
def test_bad_flag_is_named_as_it_is_typed(path: str, key: str) -> None:
    overrides: dict[str, object] = {}
    group, _, name = path.rpartition(".")
    overrides = {group: {name: object()}} if group else {name: object()}

    assert problems(None, overrides)[0].startswith(f"{key}: ")


@pytest.mark.parametrize(("text", "said"), [("a: [", "not YAML"), ("- 1", "must hold a mapping of settings, not list"), ("port: 1\0", "not YAML")])
def test_malformed_file_is_named(text: str, said: str) -> None:
    (problem,) = problems(write(text))

    assert problem.startswith(f"server.yaml: {said}")


def test_missing_file_is_named() -> None:
    assert problems(Path("absent.yaml")) == ["absent.yaml: cannot be read: No such file or directory"]


def test_empty_file_gives_the_defaults() -> None:
    assert load_settings(write("")).port == 50051


def test_missing_folder_of_models_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSTATE_MODELS", "/absent")

    assert problems() == ["CELLSTATE_MODELS: no folder /absent; name the folder that holds models by --models DIR or CELLSTATE_MODELS"]


def test_halves_of_tls_are_refused() -> None:
    assert problems(None, {"tls": {"certificate": "a.pem"}}) == ["tls: certificate and key go together: set both or none"]
    assert problems(None, {"tls": {"client_ca": "a.pem"}}) == ["tls: client_ca needs certificate and key"]


def test_idle_time_above_the_longest_is_refused() -> None:
    assert problems(None, {"sessions": {"idle_ttl_s": 20, "max_ttl_s": 10}}) == ["sessions: idle_ttl_s (20) is above max_ttl_s (10)"]


def test_every_address_is_listened_on_only_with_tls_and_tokens() -> None:
    tls = TLSSettings(certificate=Path("a"), key=Path("b"))

    assert Settings(tls=tls).listen_host == "127.0.0.1"
    assert Settings(tokens_file=Path("t")).listen_host == "127.0.0.1"
    assert Settings(tls=tls, tokens_file=Path("t")).listen_host == EVERY_ADDRESS
    assert Settings(tls=tls, tokens_file=Path("t"), host="10.0.0.1").listen_host == "10.0.0.1"
    assert Settings(tls=tls, tokens_file=Path("t")).metrics_listen_host == "127.0.0.1"


def test_open_doors_are_cautioned_of() -> None:
    assert Settings().cautions() == []
    assert Settings(host="localhost").cautions() == []
    assert len(Settings(host=EVERY_ADDRESS).cautions()) == 2
    assert "tokens travel in clear text" in Settings(host=EVERY_ADDRESS, tokens_file=Path("t")).cautions()[0]
