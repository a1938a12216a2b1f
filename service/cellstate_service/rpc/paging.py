"""Page sizes and page tokens, shared by the calls that list."""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cellstate_service.errors import InvalidInput

DEFAULT_SIZE = 100
MAX_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Up to `size` entries behind the one named `after`."""

    size: int
    after: str


def encode_token(last: str, query: str) -> str:
    """Return the token that goes on behind the entry named `last` of the same query."""
    return base64.urlsafe_b64encode(f"{_mark(query)}.{last}".encode()).decode()


def decode_page(size: int, token: str, query: str = "") -> Page:
    """Return the page asked for.

    Raises:
        InvalidInput: A size out of bounds, or a token of another query or of nowhere.
    """
    if not 0 <= size <= MAX_SIZE:
        raise InvalidInput(f"page_size: {size} is not 0 to {MAX_SIZE}", field="page_size")
    after = ""
    if token:
        try:
            mark, after = base64.urlsafe_b64decode(token.encode()).decode().split(".", 1)
        except (ValueError, binascii.Error) as error:
            raise InvalidInput("page_token: is not one that this server gave", field="page_token") from error
        if mark != _mark(query):
            raise InvalidInput("page_token: it belongs to another filter", field="page_token")
    return Page(size or DEFAULT_SIZE, after)


def _mark(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:8]
