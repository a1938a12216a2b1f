"""One stream of many sessions, without its sockets."""

from cellstate._gateway_core import GatewayCore
from cellstate._status import error_from_status


def test_a_stream_that_breaks_once_all_was_answered_has_come_to_its_end() -> None:
    core, error = GatewayCore(None, 10.0), error_from_status(14, "Socket closed")
    core.half_closed = True
    assert core.wait_s(error) is None
    core.finish(error)
    assert core.ended
    assert core.error is None


def test_a_stream_that_breaks_before_has_failed() -> None:
    core, error = GatewayCore(None, 10.0), error_from_status(14, "Socket closed")
    core.finish(error)
    assert core.error is error
