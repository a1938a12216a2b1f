"""Who a caller is: bearer tokens, of which the server holds only hashes."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellstate_service.errors import Unauthenticated

#: The owner of everything where no tokens file is set.
ANONYMOUS = "anonymous"

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class TokensFileError(ValueError):
    """The tokens file cannot be used; the message names the file and, where one is at fault, the line."""


@dataclass(frozen=True, slots=True)
class TokenHash:
    """One line of the tokens file: an owner, and the SHA-256 of a token that proves it."""

    owner: str
    sha256: bytes


class Authenticator:
    """Tells a call's principal from its metadata.

    Args:
        tokens: Hashes of the tokens that are accepted. None: no authentication; every caller is `anonymous`.
    """

    def __init__(self, tokens: Sequence[TokenHash] | None) -> None:
        self._tokens = None if tokens is None else tuple(tokens)

    @classmethod
    def from_file(cls, path: Path | None) -> "Authenticator":
        """Make one from a tokens file, or one without authentication where there is none.

        Raises:
            TokensFileError: The file cannot be read, or a line is malformed.
        """
        return cls(None if path is None else load_tokens(path))

    def principal(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
        """Return the owner whose token the call carries in `authorization: Bearer TOKEN`.

        The presented token is hashed and compared with every hash in constant time, so the time taken tells nothing of them.

        Raises:
            Unauthenticated: There is no token, more than one, or an unknown one. The message never repeats it.
        """
        if self._tokens is None:
            return ANONYMOUS
        presented = hashlib.sha256(_bearer_token(metadata or ())).digest()
        owner: str | None = None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, presented):
                owner = token.owner
        if owner is None:
            raise Unauthenticated("the bearer token is not known to this server")
        return owner


def load_tokens(path: Path) -> tuple[TokenHash, ...]:
    """Read a tokens file: lines `owner:sha256-hex`; empty lines and lines that begin with # say nothing. An owner may have several tokens.

    Raises:
        TokensFileError: The file cannot be read, holds no token, or a line is malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokensFileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    tokens = [_parse(path, number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip() and not line.lstrip().startswith("#")]
    owners: dict[bytes, str] = {}
    for token in tokens:
        if owners.setdefault(token.sha256, token.owner) != token.owner:
            raise TokensFileError(f"{path}: the owners {owners[token.sha256]} and {token.owner} share a token; make one for each with `cellstate token`")
    if not tokens:
        raise TokensFileError(f"{path}: holds no token; make a line with `cellstate token OWNER`")
    return tuple(tokens)


def _parse(path: Path, number: int, line: str) -> TokenHash:
    owner, colon, digest = (part.strip() for part in line.rpartition(":"))
    if not colon:
        raise TokensFileError(f"{path}:{number}: not of the form owner:sha256-hex")
    if not _OWNER.fullmatch(owner):
        raise TokensFileError(f"{path}:{number}: the owner must be 1 to 128 characters of A-Z a-z 0-9 . _ @ - and begin with a letter or digit")
    if not _SHA256_HEX.fullmatch(digest.lower()):
        raise TokensFileError(f"{path}:{number}: the hash of {owner} is not 64 hexadecimal digits; it must be the SHA-256 of the token, never the token itself")
    return TokenHash(owner, bytes.fromhex(digest))


def _bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    values = [value for key, value in metadata if key.lower() == "authorization"]
    if not values:
        raise Unauthenticated("this server asks for a token: send the metadata `authorization: Bearer TOKEN`")
    if len(values) > 1:
        raise Unauthenticated("send the metadata `authorization` once")
    value = values[0].encode() if isinstance(values[0], str) else values[0]
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer" or not token.strip():
        raise Unauthenticated("the metadata `authorization` must read `Bearer TOKEN`")
    return token.strip()
