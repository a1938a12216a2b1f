from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key

from cellstate_service.rpc.tls import TLSError, server_credentials
from cellstate_service.settings import TLSSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("one", "two"):
        made = authority.issue_cert("localhost")
        made.private_key_pem.write_to_path(folder / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    key = load_pem_private_key((folder / "one.key").read_bytes(), None)
    (folder / "locked.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    (folder / "text").write_text("no PEM")
    return folder


def settings(folder: Path, certificate: str = "one.pem", key: str = "one.key", client_ca: str | None = None) -> TLSSettings:
    return TLSSettings(certificate=folder / certificate, key=folder / key, client_ca=folder / client_ca if client_ca else None)


def test_without_a_certificate_the_port_is_plaintext() -> None:
    assert server_credentials(TLSSettings()) is None


@pytest.mark.parametrize("client_ca", [None, "ca.pem"])
def test_certificate_and_key_make_credentials(folder: Path, client_ca: str | None) -> None:
    assert isinstance(server_credentials(settings(folder, client_ca=client_ca)), grpc.ServerCredentials)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"certificate": "absent"}, r"tls\.certificate: cannot read .*absent: No such file"),
        ({"key": "absent"}, r"tls\.key: cannot read .*absent: No such file"),
        ({"client_ca": "absent"}, r"tls\.client_ca: cannot read .*absent: No such file"),
        ({"key": "two.key"}, r"tls\.key: .*two\.key is not the private key of the certificate .*one\.pem"),
        ({"key": "locked.key"}, r"tls\.key: .*locked\.key is encrypted"),
        ({"certificate": "text"}, r"tls\.certificate: .*text and .*one\.key are not a certificate and its key in PEM form"),
        ({"client_ca": "text"}, r"tls\.client_ca: .*text holds no certificate in PEM form"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(TLSError, match=said):
        server_credentials(settings(folder, **files))
