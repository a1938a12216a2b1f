"""Server credentials from PEM files, checked here because gRPC itself only fails at the first handshake, without saying why."""

import ssl
from pathlib import Path

import grpc

from cellstate_service.settings import TLSSettings


class TLSError(ValueError):
    """Certificate, key or authorities cannot be used; the message names the setting and the file."""


def server_credentials(tls: TLSSettings) -> grpc.ServerCredentials | None:
    """Return the credentials of the gRPC port, or None where it is plaintext.

    Raises:
        TLSError: A file cannot be read or is not PEM, the key is encrypted, or it is not the certificate's.
    """
    if tls.certificate is None or tls.key is None:
        return None
    certificate = _read("tls.certificate", tls.certificate)
    key = _read("tls.key", tls.key)
    client_ca = _read("tls.client_ca", tls.client_ca) if tls.client_ca else None
    _check_pair(tls.certificate, tls.key)
    if tls.client_ca:
        _check_authorities(tls.client_ca)
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=client_ca, require_client_auth=client_ca is not None)


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TLSError(f"{setting}: cannot read {path}: {error.strerror or error}") from error


def _check_pair(certificate: Path, key: Path) -> None:
    def refuse_password() -> str:
        raise TLSError(f"tls.key: {key} is encrypted; give a key without a password")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TLSError(f"tls.key: {key} is not the private key of the certificate {certificate}") from error
        raise TLSError(f"tls.certificate: {certificate} and {key} are not a certificate and its key in PEM form ({error.reason or error})") from error


def _check_authorities(client_ca: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise TLSError(f"tls.client_ca: {client_ca} holds no certificate in PEM form ({error.reason or error})") from error
