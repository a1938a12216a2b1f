"""A Redis server that is reached by TLS: its certificate is checked, and its pubsub and scripts work as without."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from cellstate_service.sessions.stores.redis import RedisStore
from cellstate_service.sessions.stores.store import Key, Record, StoreAwayError, StoreError, Write
from tests.redis_server import RedisServer, free_port
from tests.unit.sessions.stores.conftest import LEASE_S

KEY = Key("ada", "talk")
RECORD = Record("u", 1, 4e9, b"state")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address of a server by TLS, and the certificate of the authority that it is known by."""
    folder = tmp_path_factory.mktemp("redis-tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(folder / "key.pem")
    made.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    port = free_port()
    files = {f"tls-{kind}-file": str(folder / f"{name}.pem") for kind, name in (("cert", "certificate"), ("key", "key"), ("ca-cert", "ca"))}
    server = RedisServer(folder / "redis", {"tls-port": str(port), "tls-auth-clients": "no", **files})
    server.start()
    yield f"rediss://127.0.0.1:{port}/0", folder / "ca.pem"
    server.kill()


async def test_who_knows_its_authority_stores_and_asks_by_tls(place: tuple[str, Path]) -> None:
    url, authority = place
    one, two = (RedisStore(name, f"{url}?ssl_ca_certs={authority}") for name in ("one", "two"))
    for store in (one, two):
        await store.open(LEASE_S)

    async def answer(question: bytes) -> bytes:
        return question[::-1]

    one.answer(answer)
    claim = await one.claim(KEY)
    assert await one.save([Write(KEY, claim.epoch, RECORD)], durable=True) == set()
    assert await two.find(KEY) == RECORD
    assert await two.ask("one", b"abc", 5.0) == b"cba"
    assert await one.secures()
    for store in (one, two):
        await store.close()


async def test_a_certificate_of_another_authority_is_refused_and_told(place: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = place
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    store = RedisStore("one", f"{url}?ssl_ca_certs={tmp_path / 'other.pem'}")
    with pytest.raises(StoreError, match=r"is not trusted: name the authority's by \?ssl_ca_certs=FILE .*certificate verify failed") as caught:
        await store.open(LEASE_S)
    assert not isinstance(caught.value, StoreAwayError), "a server that starts does not wait for that to pass"
    await store.close()
