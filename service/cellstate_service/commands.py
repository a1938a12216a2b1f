"""What the `cellstate` command gains where the server is installed."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
import torch
import uvloop

from cellstate_service.app import App, run
from cellstate_service.observability.logging import configure_logging
from cellstate_service.settings import SettingsError, load_settings

#: Exit code of a server that was not set up right, as of a command that was not typed right.
EXIT_USAGE = 2
#: Threads that compute parts of batches, of all models together.
PART_THREADS = 32


def serve(config: Path | None, flags: Mapping[str, object], assignments: Sequence[str] = ()) -> int:
    """Run the server until it is told to stop.

    Args:
        config: YAML file of settings, or None.
        flags: Values of flags by the dotted path of their setting: `{"port": 0, "tls.key": Path("key.pem")}`.
        assignments: Further settings, each `path=value`.

    Returns:
        The exit code: 0 after an orderly stop, 1 where the server could not start or run, 2 where a setting is wrong. What is wrong is told on standard error.
    """
    try:
        settings = load_settings(config, overrides(flags, assignments))
    except SettingsError as error:
        for problem in error.problems:
            _tell(problem)
        return EXIT_USAGE
    configure_logging(settings.logging.level, json=settings.log_json)
    try:
        torch.set_num_interop_threads(PART_THREADS)  # asleep while no batch is divided; it can be said once in a process
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run(settings, _tell_ready))
    except (OSError, RuntimeError, ValueError) as error:
        structlog.get_logger(__name__).debug("the server could not run", exc_info=True)
        _tell(str(error))
        return 1


def overrides(flags: Mapping[str, object], assignments: Sequence[str]) -> dict[str, object]:
    """Return nested mappings from dotted paths; the value `none` of an assignment is no value.

    Raises:
        SettingsError: An assignment is not of the form path=value.
    """
    values = dict(flags)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise SettingsError([f"--set {assignment}: not of the form key=value"])
        values[key.strip()] = None if text == "none" else text
    nested: dict[str, object] = {}
    for path, value in values.items():
        *groups, name = path.split(".")
        at = nested
        for group in groups:
            below = at.setdefault(group, {})
            if not isinstance(below, dict):
                raise SettingsError([f"--set {path}: {group} is a value, not a group of settings"])
            at = below
        at[name] = value
    return nested


def _tell_ready(app: App) -> None:
    host = app.settings.listen_host
    metrics = "off" if app.exposition is None else f"on {app.exposition.url}"
    models = ", ".join(app.fleet.registry.names()) or "none"
    sys.stdout.write(f"cellstate is ready: gRPC on {_in_url(host)}:{app.port}, metrics {metrics}, models: {models}\n")
    sys.stdout.flush()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _tell(problem: str) -> None:
    sys.stderr.write(f"cellstate: {problem}\n")
