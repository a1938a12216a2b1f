"""The errors of this package. They know no request: whoever handles one names the field that it came from."""

from pathlib import Path


class ModelError(ValueError):
    """A model folder fails its checks.

    Attributes:
        path: The file or folder at fault.
        key: Dotted key of the manifest or name of the tensor at fault, or "".
        detail: What is wrong, without path and key.
    """

    def __init__(self, path: Path, key: str, detail: str) -> None:
        super().__init__(": ".join(part for part in (str(path), key, detail) if part))
        self.path = path
        self.key = key
        self.detail = detail


class TextNotEncodable(ValueError):  # noqa: N818 (reads as the reason does)
    """A tokenizer cannot encode a character.

    Attributes:
        character: The character.
        index: Its index in the text, from 0.
    """

    def __init__(self, character: str, index: int) -> None:
        super().__init__(f"the tokenizer has no token for {character!r} at index {index}")
        self.character = character
        self.index = index
