"""A Hugging Face `tokenizer.json`, by the `tokenizers` library, and the text of its tokens as they come."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from cellstate_service.models.errors import ModelError, TextNotEncodable
from cellstate_service.models.tokenizers import REPLACEMENT, Ids, Snapshot, TextDecoder, utf8

CONTEXT_IDS = 8
"""Ids before a token that its text may depend on (a leading space, for one)."""

HELD_IDS = 4
"""Ids that can be part of an incomplete character: UTF-8 takes at most four bytes, and a token is at least one."""


class HuggingFaceTokenizer:
    """The tokenizer that a `tokenizer.json` describes, without the special tokens, truncation and padding that it may add.

    Args:
        data: Content of the file.
        path: Where it came from; only named in errors.

    Raises:
        ModelError: The library cannot read it.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(path, "", f"no tokenizer.json that can be read ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocabulary_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> Ids:
        """Return the ids [T] of a text; see `Tokenizer.encode`."""
        encoding = self._tokenizer.encode(utf8(text).decode(), add_special_tokens=False)
        if self._tokenizer.normalizer is None or not encoding.ids:
            self._check_covered(text, encoding.offsets)
        return np.array(encoding.ids, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens have none."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def decoder(self) -> TextDecoder:
        """Return a decoder for one session."""
        return HuggingFaceDecoder(self)

    def _check_covered(self, text: str, offsets: Sequence[tuple[int, int]]) -> None:
        """Raise for the first character that no token covers: some models drop what they do not know. White space may go."""
        edges = np.zeros(len(text) + 1, dtype=np.int64)
        starts_ends = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        np.add.at(edges, starts_ends[:, 0], 1)
        np.add.at(edges, starts_ends[:, 1], -1)
        for index in np.flatnonzero(edges[:-1].cumsum() == 0):
            if not text[index].isspace():
                raise TextNotEncodable(text[index], int(index))


class HuggingFaceDecoder:
    """Decodes each token behind those before it, and holds back what is not yet a whole character."""

    __slots__ = ("_context", "_pending", "_tokenizer")

    def __init__(self, tokenizer: HuggingFaceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """Return the text that is complete with this token, or ""."""
        self._pending.append(token)
        before = self._tokenizer.decode(self._context)
        text = self._tokenizer.decode(self._context + self._pending)
        if not text.endswith(REPLACEMENT):
            return self._take(len(self._pending), text[len(before) :])
        # Still incomplete, or bytes that are no character: those before the last few can be completed by nothing.
        settled = len(self._pending) - HELD_IDS
        head = self._tokenizer.decode(self._context + self._pending[:settled]) if settled > 0 else ""
        return self._take(settled, head[len(before) :]) if settled > 0 and text.startswith(head) else ""

    def context(self, ids: Sequence[int]) -> None:
        """Drop what is pending and continue behind `ids`."""
        self._context = [int(token) for token in ids[-CONTEXT_IDS:]]
        self._pending = []

    def snapshot(self) -> Snapshot:
        """Return (context ids, pending ids)."""
        return list(self._context), list(self._pending)

    def restore(self, context: Sequence[int], pending: Sequence[int]) -> None:
        """Go back to a snapshot."""
        self._context, self._pending = list(context), list(pending)

    def reset(self) -> None:
        """Forget everything."""
        self._context, self._pending = [], []

    def _take(self, count: int, text: str) -> str:
        """Move the first `count` pending ids to the context and return their text."""
        taken, self._pending = self._pending[:count], self._pending[count:]
        self._context = taken if text else (self._context + taken)[-CONTEXT_IDS:]
        return text
