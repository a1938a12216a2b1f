"""Tokens, TLS and channel options."""

import json

import pytest

import cellstate
from cellstate.connection import TLS, Connection, is_local


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:50051", True),
        ("localhost", True),
        ("127.0.0.1:1", True),
        ("127.8.9.10:1", True),
        ("[::1]:50051", True),
        ("::1", True),
        ("dns:///localhost:1", True),
        ("dns:localhost:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("unix:/tmp/socket", True),
        ("unix-abstract:name", True),
        ("example.com:50051", False),
        ("10.0.0.1:50051", False),
        ("[2001:db8::1]:50051", False),
        ("dns://1.1.1.1/example.com:1", False),
        ("localhost.example.com:1", False),
        ("127.0.0.1.example.com:1", False),
        ("ipv4:127.0.0.1:1,8.8.8.8:1", False),
        ("ipv6:[::1]:1", True),
        ("dns://1.1.1.1/localhost:1", False),
        ("xds:///localhost:1", False),
        ("http://localhost:1", False),
        ("example.com/localhost", False),
        ("localhost:1/x", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_local(address, local):
    assert is_local(address) is local


def test_a_token_does_not_travel_in_plain_text():
    with pytest.raises(ValueError, match="plain text"):
        cellstate.Client("example.com:50051", token="secret")
    with pytest.raises(ValueError, match="plain text"):
        cellstate.AsyncClient("example.com:50051", token="secret")


@pytest.mark.parametrize("settings", [{"tls": TLS()}, {"insecure_token": True}])
def test_a_token_travels_where_that_is_safe_or_asked_for(settings):
    assert Connection("example.com:50051", token="secret", **settings).metadata() == (("authorization", "Bearer secret"),)


def test_secrets_are_not_shown():
    assert "secret" not in repr(Connection(token="secret", tls=TLS(certificate=b"c", private_key=b"secret")))


@pytest.mark.parametrize("token", ["", " a", "a\n", "a\nb", "ä", "a\x00"])
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(ValueError, match="printable ASCII") as raised:
        Connection(token=token)
    assert "ä" not in str(raised.value)


def test_no_proxy_stands_between_a_client_and_its_own_machine():
    assert ("grpc.enable_http_proxy", 0) in Connection("localhost:1").options()
    assert "grpc.enable_http_proxy" not in dict(Connection("example.com:1").options())


def test_a_certificate_needs_its_key():
    with pytest.raises(ValueError, match="together"):
        TLS(certificate=b"x")


def test_a_deadline_of_nothing_is_refused():
    with pytest.raises(ValueError, match="timeout_s"):
        Connection(timeout_s=0)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="keepalive"):
        cellstate.Client(keepalive=3)


def test_channel_options_carry_the_service_config():
    options = dict(Connection(tls=TLS(server_name="name"), keepalive_s=5, max_message_bytes=7).options())
    assert "methodConfig" in json.loads(options["grpc.service_config"])
    assert options["grpc.ssl_target_name_override"] == "name"
    assert (options["grpc.keepalive_time_ms"], options["grpc.max_receive_message_length"]) == (5000, 7)
    assert "grpc.keepalive_time_ms" not in dict(Connection(keepalive_s=None).options())
