"""Reading the files of a model folder: whole, bounded, and YAML without its surprises (tags, aliases, duplicate keys)."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from cellstate_service.models.errors import ModelError


def read_model_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Return the content of `path`.

    Raises:
        ModelError: It cannot be read, or holds more than `max_bytes`.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(path, "", "not a plain file")
        if max_bytes is not None and size > max_bytes:
            raise ModelError(path, "", f"{size} bytes, at most {max_bytes} are read")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(path, "", f"cannot be read ({error.strerror})") from None


def parse_yaml(data: bytes, path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML document holds; `path` is only named in errors.

    Raises:
        ModelError: It is no YAML, no mapping, or uses tags, aliases or a key twice.
    """
    try:
        values = yaml.load(data, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ModelError(path, "", f"{line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ModelError(path, "", f"not YAML in UTF-8 ({' '.join(str(error).split())})") from None
    except (RecursionError, ValueError) as error:
        raise ModelError(path, "", f"cannot be read as YAML ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise ModelError(path, "", f"a mapping is needed, not {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` without aliases, which can grow without bound, and without a key given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not taken", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        values: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in values:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            values[key] = self.construct_object(value_node, deep=True)
        return values
