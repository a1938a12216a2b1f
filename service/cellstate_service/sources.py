"""Reading settings from flags, environment and file, and saying exactly what is wrong with them. What can be set stands in `settings.py`."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings import SettingsError as UnreadableVariable

S = TypeVar("S", bound=BaseSettings)

#: Groups whose settings have flags of their own; those of others are given by `--set`.
_FLAG_PREFIXES = {"tls": "--tls-", "logging": "--log-"}
#: Variables of the command and the client; the server reads only the first.
_OTHER_VARIABLES = frozenset({"CELLSTATE_CONFIG", "CELLSTATE_ADDRESS", "CELLSTATE_TOKEN", "CELLSTATE_TOKEN_FILE", "CELLSTATE_TLS_CA"})
_TEST_PREFIX = "CELLSTATE_TEST_"
#: What Kubernetes sets in every container when a Service is called `cellstate`.
_SERVICE_LINK = re.compile(r"CELLSTATE_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP|SCTP).*)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


class SettingsError(ValueError):
    """Settings that cannot be used.

    Attributes:
        problems: One line each, beginning with the key and where it was given.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Sources:
    """Values by where they were given, the weakest first, as nested mappings."""

    file: Mapping[str, Any]
    file_name: str
    environment: Mapping[str, Any]
    flags: Mapping[str, Any]
    prefix: str

    def merged(self) -> dict[str, Any]:
        """Return the values that count."""
        return _merge(_merge(dict(self.file), self.environment), self.flags)

    def origin(self, path: tuple[str, ...]) -> str | None:
        """Name the key at `path` as it was given where its value comes from; None for a group, and where nobody gave it."""
        if _given(self.flags, path):
            return _flag(path)
        if _given(self.environment, path):
            return self.prefix + "__".join(path).upper()
        only_in_file = not any(_given(values, path[:1], group=True) for values in (self.flags, self.environment))
        if _given(self.file, path, group=only_in_file):
            return f"{self.file_name}: {'.'.join(path)}"
        return None


def read_sources(settings: type[BaseSettings], config: Path | None, flags: Mapping[str, Any]) -> Sources:
    """Read file and environment.

    Raises:
        SettingsError: The file cannot be read, or a variable with our prefix is not one that is known.
    """
    prefix = settings.model_config.get("env_prefix", "")
    _refuse_unknown_variables(settings, prefix)
    path = config or (Path(os.environ["CELLSTATE_CONFIG"]) if os.environ.get("CELLSTATE_CONFIG") else None)
    file = _read_file(path) if path else {}
    return Sources(file=file, file_name=str(path or ""), environment=_read_environment(settings), flags=flags, prefix=prefix)


def validate(settings: type[S], sources: Sources) -> S:
    """Make the settings.

    Raises:
        SettingsError: A key is unknown or a value does not fit.
    """
    try:
        return settings(**sources.merged())
    except ValidationError as error:
        raise SettingsError([_problem(settings, sources, dict(detail)) for detail in error.errors(include_url=False)]) from error


def variables(settings: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the name of every environment variable that sets one of `settings`."""
    for name, field in settings.model_fields.items():
        variable = f"{prefix}{name.upper()}"
        yield variable
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from variables(field.annotation, f"{variable}__")


def _refuse_unknown_variables(settings: type[BaseSettings], prefix: str) -> None:
    known = {*variables(settings, prefix), *_OTHER_VARIABLES}
    given = [name for name in os.environ if name.upper().startswith(prefix)]
    unknown = [name for name in given if name.upper() not in known and not name.startswith(_TEST_PREFIX) and not _SERVICE_LINK.fullmatch(name)]
    if unknown:
        raise SettingsError([f"{name}: no such setting{_suggestion(name, sorted(known))}" for name in sorted(unknown)])


def _read_environment(settings: type[BaseSettings]) -> dict[str, Any]:
    source = EnvSettingsSource(settings)
    # `env_vars` holds lower-case names. A Service's link under the name of a setting is no setting.
    source.env_vars = {name: value for name, value in source.env_vars.items() if not _SERVICE_LINK_VALUE.fullmatch(value or "")}
    try:
        return dict(source())
    except UnreadableVariable as error:
        name = re.search(r'"(\w+)"', str(error))
        variable = f"{settings.model_config.get('env_prefix', '')}{name.group(1).upper()}" if name else "environment"
        raise SettingsError([f"{variable}: not readable: {error.__cause__ or error}"]) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror or error}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError([f"{path}: must hold a mapping of settings, not {type(content).__name__}"])
    return {str(key): value for key, value in content.items()}


def _problem(settings: type[BaseSettings], sources: Sources, detail: Mapping[str, Any]) -> str:
    path = tuple(str(part) for part in detail["loc"])
    key = sources.origin(path) or ".".join(path)
    if detail["type"] == "extra_forbidden":
        key = f"--set {'.'.join(path)}" if key.startswith("--") else key  # only --set can name what does not exist
        return f"{key}: no such setting{_suggestion(path[-1], list(_fields_at(settings, path[:-1])))}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    given = detail.get("input")
    return f"{key}: {message}" if isinstance(given, BaseModel | dict) else f"{key}: {message}, not {given!r}"


def _fields_at(settings: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    model: type[BaseModel] = settings
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return
        model = annotation
    yield from model.model_fields


def _flag(path: tuple[str, ...]) -> str:
    if len(path) == 1:
        return f"--{path[0]}".replace("_", "-")
    prefix = _FLAG_PREFIXES.get(path[0])
    return f"{prefix}{path[1]}".replace("_", "-") if prefix else f"--set {'.'.join(path)}"


def _suggestion(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def _merge(weak: dict[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(weak)
    for key, value in strong.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _given(values: Mapping[str, Any], path: tuple[str, ...], *, group: bool = False) -> bool:
    """Tell whether a value stands at `path`; a group of values counts only where asked for."""
    at: Any = values
    for part in path:
        if not isinstance(at, Mapping) or part not in at:
            return False
        at = at[part]
    return group or not isinstance(at, Mapping)
