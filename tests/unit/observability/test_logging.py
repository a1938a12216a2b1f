import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from cellstate_service.observability.logging import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_lines_are_json_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    structlog.get_logger("cellstate_service.app").info("session expired", model="reader", idle_s=3600)

    line = json.loads(stream.getvalue())
    assert line["message"] == "session expired"
    assert (line["level"], line["logger"], line["model"], line["idle_s"]) == ("info", "cellstate_service.app", "reader", 3600)
    assert line["timestamp"].endswith("Z")


def test_lines_are_for_people_at_a_terminal() -> None:
    stream = Terminal()
    configure_logging("info", stream=stream)
    structlog.get_logger("x").info("session expired", model="reader")

    assert "session expired" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_a_choice_wins_over_the_terminal() -> None:
    stream = Terminal()
    configure_logging("info", json=True, stream=stream)
    structlog.get_logger("x").info("hello")

    assert json.loads(stream.getvalue())["message"] == "hello"


def test_lower_levels_are_left_out() -> None:
    stream = io.StringIO()
    configure_logging("warning", stream=stream)
    structlog.get_logger("x").info("quiet")
    logging.getLogger("library").info("quiet")

    assert stream.getvalue() == ""


def test_lines_of_libraries_look_the_same() -> None:
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    logging.getLogger("library").warning("slow: %d ms", 7)

    line = json.loads(stream.getvalue())
    assert (line["message"], line["level"], line["logger"]) == ("slow: 7 ms", "warning", "library")


@pytest.mark.parametrize("key", ["token", "authorization", "stream_token", "Password", "client_secret"])
@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_are_replaced(key: str, as_json: bool) -> None:
    stream = io.StringIO()
    configure_logging("info", json=as_json, stream=stream)
    structlog.get_logger("x").info("called", **{key: "hunter2"})

    assert "hunter2" not in stream.getvalue()
    assert "[redacted]" in stream.getvalue()


@pytest.mark.parametrize("as_json", [True, False])
def test_exceptions_are_told_without_local_variables(as_json: bool) -> None:
    stream = io.StringIO()
    configure_logging("info", json=as_json, stream=stream)
    try:
        token = "hunter" + "2"
        raise RuntimeError("it broke")
    except RuntimeError:
        structlog.get_logger("x").exception("call failed")

    assert token not in stream.getvalue()
    assert "it broke" in stream.getvalue()


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="log level 'loud' is none of debug, info, warning, error"):
        configure_logging("loud")
