"""Stubs that present a bearer token, and tokens files."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import grpc.aio

from tests.integration.stubs import Stubs


class _WithToken:
    """A service's stub whose calls carry a token."""

    def __init__(self, stub: Any, token: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __getattr__(self, method: str) -> Any:
        return functools.partial(getattr(self._stub, method), metadata=self._metadata)


class OwnersStubs(Stubs):
    """The three services of a channel, called by the owner of a token."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        super().__init__(channel)
        self.inference = _WithToken(self.inference, token)
        self.sessions = _WithToken(self.sessions, token)
        self.models = _WithToken(self.models, token)


def write_tokens(path: Path, **tokens: str) -> Path:
    """Write a tokens file of owners and their tokens."""
    path.write_text("".join(f"{owner}:{hashlib.sha256(token.encode()).hexdigest()}\n" for owner, token in tokens.items()))
    return path
