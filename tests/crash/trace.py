"""What the client library did on each session, noted as it does it: for whoever has to find out why something went wrong. Reaches into its inner parts."""

import asyncio
import functools
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellstate._exchange import Call
from cellstate._log import Entry
from cellstate._resume import Replay, Resumption
from cellstate._stream_core import StreamCore
from cellstate.v1 import inference_pb2
from tests.crash.lives import Life

KEPT = 600
"""Notes of one session that are kept."""


class Trace:
    """Notes what the library does, by session. One at a time: the library's classes are patched while it is installed."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._notes: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._undo: list[Callable[[], None]] = []

    def note(self, name: str, text: str) -> None:
        """Note something of a session."""
        self._notes[name].append(f"{time.monotonic() - self._began_s:9.3f} {text}")

    def write(self, folder: Path, life: Life, error: BaseException | None) -> None:
        """Write what is known of a session to a file of its name: what was done, what it asked and got, its log, the error's traceback."""
        folder.mkdir(exist_ok=True)
        name, lines = life.transcript.name, []
        for number, exchange in enumerate(life.transcript.exchanges):
            pieces = " ".join(f"{first}-{after}" for first, after, _ in exchange.pieces)
            lines.append(f"exchange {number} {exchange.kind} {[len(chunk) for chunk in exchange.chunks]} + {exchange.steps} done={exchange.done}: {pieces}")
        lines += ["-- done", *self._notes.get(name, ())]
        if life.session is not None and life.session._tracked is not None:
            lines += ["-- log", *map(shown, life.session._tracked.log._entries)]
        if error is not None:
            lines += ["-- error", *traceback.format_exception(error)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def forget(self, name: str) -> None:
        """Drop what was noted of a session."""
        self._notes.pop(name, None)

    def __enter__(self) -> "Trace":
        """Patch the library."""
        self._patch(StreamCore, "feed", lambda core, response: (core.call.tracked, f"{_of(core)} <- {_answer(response)}"))
        self._patch(StreamCore, "_sent", lambda core, message, content: (core.call.tracked, f"{_of(core)} -> {_message(message)}"))
        self._patch(StreamCore, "reopening", lambda core: (core.call.tracked, f"{_of(core)} opens again"), _messages)
        self._patch(StreamCore, "finish", lambda core, error=None: (core.call.tracked, f"{_of(core)} finishes: {error}"))
        self._patch(Resumption, "goes_on", lambda it, error: (it._tracked, f"{_of(it)} goes on after {error}?"), str)
        self._patch(Resumption, "_can_give_again", lambda it, stands: (it._tracked, f"{_of(it)} finds it at {stands}"), lambda _: "")
        self._patch(Replay, "__init__", lambda it, resumption, group: (resumption._tracked, "replays " + " | ".join(map(shown, group))))
        self._patch(Replay, "feed", lambda it, response: (it._resumption._tracked, f"replay <- {_answer(response)}"))
        self._patch(Call, "failed", lambda call, error: (call.tracked, f"{call.method} failed: {error}"))
        return self

    def __exit__(self, *_: object) -> None:
        """Undo that."""
        for undo in reversed(self._undo):
            undo()

    def _patch(self, owner: type, name: str, told: Callable[..., tuple[Any, str]], result: Callable[[Any], str] | None = None) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def noted(*values: Any, **options: Any) -> Any:
            tracked, text = told(*values, **options)
            if tracked is not None and result is None:
                self.note(tracked.info.name, text)
            made = original(*values, **options)
            if tracked is not None and result is not None:
                self.note(tracked.info.name, f"{text} {result(made)}")
            return made

        setattr(owner, name, noted)
        self._undo.append(lambda: setattr(owner, name, original))


def shown(entry: Entry) -> str:
    """Return an entry of a session's log in short."""
    kind = type(entry.content).__name__
    return f"{kind} first={entry.first} steps={entry.steps} end={entry.end} limit={entry.limit} done={entry.done} call={id(entry.call):x}"


def going_on(life: Life) -> str:
    """Return what a session is at."""
    return f"exchange {len(life.transcript.exchanges) - 1}, {life.current.kind}" if life.current is not None else "no exchange"


def where(task: asyncio.Task[Any]) -> str:
    """Return what a task waits for: the calls from the harness's down to the innermost."""
    found, waits = [], task.get_coro()
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "ag_frame", None) or getattr(waits, "gi_frame", None)
        if frame is not None:
            found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        waits = getattr(waits, "cr_await", None) or getattr(waits, "ag_await", None) or getattr(waits, "gi_yieldfrom", None)
    return " > ".join(found)


def _of(it: Any) -> str:
    log = it._log if isinstance(it, StreamCore) else it.log
    number = f" channel {it.number}" if isinstance(it, StreamCore) else ""
    return f"{id(log):x}{number}"


def _message(message: inference_pb2.ManyToManyRequest) -> str:
    kind = message.WhichOneof("message")
    part = getattr(message, kind or "input")
    if kind == "open":
        session = part.target.session
        position = session.position if session.HasField("position") else None
        return f"open at {position} acknowledged {session.acknowledged_position} token {session.stream_token}"
    position = part.position if kind in {"input", "generate"} and part.HasField("position") else None
    end = part.end_position if kind in {"input", "generate"} and part.HasField("end_position") else None
    return f"{kind} at {position} to {end}"


def _messages(messages: list[inference_pb2.ManyToManyRequest]) -> str:
    return "; ".join(map(_message, messages[:3])) + (f"; … {len(messages)} in all" if len(messages) > 3 else "")


def _answer(response: inference_pb2.ManyToManyResponse) -> str:
    told = []
    if response.HasField("opened"):
        told.append(f"opened at {response.opened.position} token {response.opened.stream_token}")
    if response.HasField("output"):
        told.append(f"output {response.output.first_position}-{response.output.position}{'' if response.output.HasField('values') else ' empty'}")
    if response.HasField("completion"):
        told.append(f"completion at {response.completion.position}")
    if response.HasField("safe_position"):
        told.append(f"safe {response.safe_position}")
    told += [f"{name} {str(getattr(response, name))!r}" for name in ("stopped", "closed", "failure") if response.HasField(name)]
    return ", ".join(told)
