"""Structured logs: one JSON object per line for machines, aligned and coloured lines for a person at a terminal. Both go to standard error.

Log with `structlog.get_logger(__name__)` and name what happened, then its figures: `log.info("session expired", model="shakespeare", idle_s=3600)`.
Values whose key tells of a secret are replaced, whoever logs them.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LEVELS = ("debug", "info", "warning", "error")

#: A key that holds one of these words holds a secret.
_SECRET_WORDS = ("authorization", "bearer", "credential", "password", "secret", "token")
#: Keys that hold such a word and no secret: counts and places.
_PUBLIC_KEYS = frozenset({"tokens", "token_count", "tokens_per_s", "generated_tokens", "tokens_file", "token_id", "token_ids", "stream_token_given"})
_REDACTED = "[redacted]"


def configure_logging(level: str = "info", *, json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up logging for the process: structlog and, through it, the standard library's loggers of other libraries.

    Args:
        level: The least level that is written: debug, info, warning or error.
        json: JSON lines (True) or lines for people (False). None: JSON unless `stream` is a terminal.
        stream: Where lines go. None: standard error.

    Raises:
        ValueError: The level is none of those.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    target = stream or sys.stderr
    as_json = not target.isatty() if json is None else json
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared = _shared_processors()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_renderers(as_json=as_json, colors=target.isatty())))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)


def redact_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace the values of keys that tell of a secret."""
    for key in event:
        if key.lower() not in _PUBLIC_KEYS and any(word in key.lower() for word in _SECRET_WORDS):
            event[key] = _REDACTED
    return event


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact_secrets,
    ]


def _renderers(*, as_json: bool, colors: bool) -> list[Processor]:
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if as_json:
        return [remove_meta, structlog.processors.format_exc_info, structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer()]
    # Not the default of rich tracebacks: those print local variables, and with them secrets.
    return [remove_meta, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
