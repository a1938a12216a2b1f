"""The HTTP endpoint that Prometheus scrapes. It runs on threads of its own, so that a scrape never waits for the event loop, nor the loop for a scrape."""

from prometheus_client import CollectorRegistry, start_http_server


class Exposition:
    """The endpoint; it serves from its construction until `close`.

    Args:
        registry: What is served.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Attributes:
        host: Address it listens on.
        port: Port it listens on, also where 0 asked for a free one.

    Raises:
        OSError: The address cannot be listened on; the message names it.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise OSError(f"metrics cannot listen on {host}:{port}: {error.strerror or error}") from error
        self.host = host
        self.port: int = self._server.server_port

    @property
    def url(self) -> str:
        """Address to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening and wait for the thread. A second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
