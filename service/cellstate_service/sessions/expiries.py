"""When sessions expire: a heap with one live entry for each session, however often it is renewed."""

import heapq

from cellstate_service.sessions.session import Session

SLACK = 1024


class Expiries:
    """Sessions by the time at which one has to look at them again.

    A session's live entry is the one at `session.watched_s`, at or before its expiry; a renewal needs no new one. Entries that are not live any more are
    dropped when they come up, or all at once when there are too many.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Session]] = []
        self._pushed = 0
        self._live = 0

    def __len__(self) -> int:
        """Return the number of entries, live or not."""
        return len(self._heap)

    def watch(self, session: Session) -> None:
        """See to it that there is a live entry at or before the session's expiry."""
        if session.watched_s is not None and session.watched_s <= session.expires_s:
            return
        self._live += session.watched_s is None
        session.watched_s = session.expires_s
        self._pushed += 1
        heapq.heappush(self._heap, (session.expires_s, self._pushed, session))
        if len(self._heap) > 2 * self._live + SLACK:
            self._heap = [entry for entry in self._heap if entry[2].watched_s == entry[0]]
            heapq.heapify(self._heap)

    def forget(self, session: Session) -> None:
        """Watch a session no more: it is gone."""
        self._live -= session.watched_s is not None
        session.watched_s = None

    def due(self, now_s: float) -> list[Session]:
        """Return the sessions whose time has run out, which are watched no more. Those that were renewed are watched again."""
        found = []
        while self._heap and self._heap[0][0] <= now_s:
            at_s, _, session = heapq.heappop(self._heap)
            if session.watched_s != at_s:
                continue
            self.forget(session)
            if session.expires_s > now_s:
                self.watch(session)
            else:
                found.append(session)
        return found
