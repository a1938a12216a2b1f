import socket
import urllib.request

import pytest

from cellstate_service.observability.exposition import Exposition
from cellstate_service.observability.metrics import Metrics


def test_endpoint_serves_the_metrics_until_closed() -> None:
    metrics = Metrics()
    metrics.models_loaded.set(2)
    exposition = Exposition(metrics.registry, "127.0.0.1", 0)
    try:
        assert exposition.port > 0
        with urllib.request.urlopen(exposition.url) as answer:  # noqa: S310
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert b"cellstate_models_loaded 2.0" in answer.read()
    finally:
        exposition.close()

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", exposition.port)) != 0


def test_close_twice_is_harmless() -> None:
    exposition = Exposition(Metrics().registry, "127.0.0.1", 0)
    exposition.close()
    exposition.close()


def test_port_in_use_names_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"metrics cannot listen on 127\.0\.0\.1:{port}: "):
            Exposition(Metrics().registry, "127.0.0.1", port)
