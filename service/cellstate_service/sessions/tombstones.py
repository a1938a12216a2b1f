"""What is remembered of sessions that are gone, so that their owner, and nobody else, is told why."""

import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from cellstate_service.errors import NotFound, Reason

_SERVER_MADE = re.compile(r"s-([0-9a-f]{8})-[0-9a-f]{24}")

_TEXTS = {
    Reason.SESSION_EXPIRED: "the session expired: create it again, with a longer ttl where it pauses longer",
    Reason.SESSION_EVICTED: "the session was dropped for space: create it again",
    Reason.SESSION_CLOSED: "the session was deleted: create it again",
    Reason.SESSION_LOST: "the session lived in a server process that is gone: create it again",
    Reason.SESSION_NOT_FOUND: "you have no such session: create it, or check the name",
}


def gone(reason: Reason, field: str = "name", position: int | None = None) -> NotFound:
    """Return the error that tells an owner why a session is gone."""
    error = NotFound(_TEXTS[reason], reason, field=field)
    if position is not None:
        error.at(position)
    return error


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Why a session is gone, and its last position."""

    reason: Reason
    position: int


class Tombstones:
    """The last so many sessions that are gone, by owner and name. Names that the server makes carry the id of its boot, so that a loss with it is told."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._boot = secrets.token_hex(4)
        self._graves: OrderedDict[tuple[str, str], Tombstone] = OrderedDict()

    def new_name(self) -> str:
        """Make a session name that nobody can guess."""
        return f"s-{self._boot}-{secrets.token_hex(12)}"

    def bury(self, owner: str, name: str, tombstone: Tombstone) -> None:
        """Remember a session, forgetting the oldest one beyond the limit."""
        self._graves.pop((owner, name), None)
        self._graves[owner, name] = tombstone
        while len(self._graves) > self._limit:
            self._graves.popitem(last=False)

    def forget(self, owner: str, name: str) -> None:
        """Forget a session: another of its name exists."""
        self._graves.pop((owner, name), None)

    def missing(self, owner: str, name: str, field: str) -> NotFound:
        """Return the error for a session that is not there."""
        tombstone = self._graves.get((owner, name))
        if tombstone is not None:
            return gone(tombstone.reason, field, tombstone.position)
        made = _SERVER_MADE.fullmatch(name)
        if made is not None and made.group(1) != self._boot:
            return gone(Reason.SESSION_LOST, field)
        return gone(Reason.SESSION_NOT_FOUND, field)
