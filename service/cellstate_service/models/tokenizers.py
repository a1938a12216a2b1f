"""Tokenizers: text to token ids and back, at once or token by token as it is generated."""

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cellstate_service.models.errors import TextNotEncodable

Ids = NDArray[np.int64]
Snapshot = tuple[list[int], list[int]]

REPLACEMENT = "\ufffd"


class TextDecoder(Protocol):
    """Turns one session's tokens into text as they come. Joined, what it returns is the text of all tokens, but for what is incomplete at the end."""

    def feed(self, token: int) -> str:
        """Return the text that is complete with this token; "" inside a character."""
        ...

    def context(self, ids: Sequence[int]) -> None:
        """Note that inputs were consumed: what was pending is dropped, and their last few ids are what the next token continues."""
        ...

    def snapshot(self) -> Snapshot:
        """Return (context ids, pending ids)."""
        ...

    def restore(self, context: Sequence[int], pending: Sequence[int]) -> None:
        """Go back to a snapshot."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back. Not changed by use; may be shared by threads."""

    @property
    def vocabulary_size(self) -> int:
        """Ids that have text are below this."""
        ...

    def encode(self, text: str) -> Ids:
        """Return the ids [T] of a text.

        Raises:
            TextNotEncodable: A character has no token.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        ...

    def decoder(self) -> TextDecoder:
        """Return a decoder for one session."""
        ...


class CharacterTokenizer:
    """A token for each character: its index in `characters`, which are distinct."""

    def __init__(self, characters: str) -> None:
        self.vocabulary_size = len(characters)
        self._characters = characters
        codes = _code_points(characters)
        self._ids = np.full(int(codes.max()) + 2, -1, dtype=np.int32)
        self._ids[codes] = np.arange(len(codes), dtype=np.int32)

    def encode(self, text: str) -> Ids:
        """Return the ids [T] of a text; see `Tokenizer.encode`."""
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        unknown: NDArray[np.bool_] = ids < 0
        if unknown.any():
            index = int(unknown.argmax())
            raise TextNotEncodable(text[index], index)
        return np.asarray(ids, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return "".join([self._characters[token] for token in ids])

    def decoder(self) -> TextDecoder:
        """Return a decoder for one session."""
        return CharacterDecoder(self._characters)


class CharacterDecoder:
    """Each token is complete in itself."""

    __slots__ = ("_characters",)

    def __init__(self, characters: str) -> None:
        self._characters = characters

    def feed(self, token: int) -> str:
        """Return the token's character."""
        return self._characters[token]

    def context(self, ids: Sequence[int]) -> None:
        """Do nothing: a character does not depend on those before it."""

    def snapshot(self) -> Snapshot:
        """Return what is kept: nothing."""
        return [], []

    def restore(self, context: Sequence[int], pending: Sequence[int]) -> None:
        """Do nothing."""

    def reset(self) -> None:
        """Do nothing."""


class ByteTokenizer:
    """A token for each byte of UTF-8. Ids from 256 on (an end token, say) have no text."""

    vocabulary_size = 256

    def encode(self, text: str) -> Ids:
        """Return the ids [T] of a text; see `Tokenizer.encode`."""
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD."""
        return bytes([token for token in ids if token < 256]).decode(errors="replace")

    def decoder(self) -> TextDecoder:
        """Return a decoder for one session."""
        return ByteDecoder()


class ByteDecoder:
    """Holds back the bytes of an incomplete character."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, token: int) -> str:
        """Return the character that this byte completes, or ""."""
        if token >= 256:
            return ""
        held = self._pending + bytes((token,))
        text, used = utf_8_decode(held, "replace", False)
        self._pending = held[used:]
        return text

    def context(self, ids: Sequence[int]) -> None:
        """Drop an incomplete character."""
        self._pending = b""

    def snapshot(self) -> Snapshot:
        """Return the bytes held back."""
        return [], list(self._pending)

    def restore(self, context: Sequence[int], pending: Sequence[int]) -> None:
        """Hold back the bytes of a snapshot."""
        self._pending = bytes(pending)

    def reset(self) -> None:
        """Forget an incomplete character."""
        self._pending = b""


def utf8(text: str) -> bytes:
    """Return the bytes of a text.

    Raises:
        TextNotEncodable: It holds a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TextNotEncodable(text[error.start], error.start) from None


def _code_points(text: str) -> NDArray[np.uint32]:
    """Return the code points of a text, lone surrogates too."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
