"""A store in one SQLite file: what one server keeps through its restarts, without anything else to run.

The file is in write-ahead mode and belongs to one server at a time, so that its claims last until it gives them back. All statements run on a thread of the
store's own, so that no fsync holds the event loop up, and everything that is saved together is one transaction.
"""

import asyncio
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from cellstate_service.clock import Clock
from cellstate_service.errors import Reason
from cellstate_service.sessions.stores.sqlite_file import SqliteFile
from cellstate_service.sessions.stores.store import Answering, Claim, Grave, Key, Record, Store, StoreError, Write

Result = TypeVar("Result")
Row = tuple[str | int | float | bytes, ...]
CLAIM = """
INSERT INTO sessions (owner, name, epoch, held, clean) VALUES (?, ?, ?, 1, 0)
ON CONFLICT (owner, name) DO UPDATE SET epoch = excluded.epoch, held = 1, clean = 0
"""
HELD = "SELECT 1 FROM sessions WHERE owner = ? AND name = ? AND epoch = ? AND held"
SAVED_AT_ONCE = (32, 16, 8, 4, 2, 1)
"""Records that one statement saves. Each statement gives up the interpreter's lock and waits to get it back: so few of them, with few texts to compile."""
SAVE = """
WITH new (uid, position, expires_s, data, owner, name, epoch) AS (VALUES {rows})
UPDATE sessions SET uid = new.uid, position = new.position, expires_s = new.expires_s, data = new.data
FROM new WHERE sessions.owner = new.owner AND sessions.name = new.name AND sessions.epoch = new.epoch AND held
"""
SAVES = {count: SAVE.format(rows=", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * count)) for count in SAVED_AT_ONCE}
RELEASE = "UPDATE sessions SET held = 0, clean = ? WHERE owner = ? AND name = ? AND epoch = ? AND held"
REMOVE = "DELETE FROM sessions WHERE owner = ? AND name = ? AND epoch = ? AND held"
REMOVE_UNSAVED = "DELETE FROM sessions WHERE owner = ? AND name = ? AND epoch = ? AND held AND data IS NULL"


class SqliteStore(Store):
    """Keeps sessions in a file.

    Args:
        holder: Name of this server, of this start of it.
        path: The file; made where it is missing, in a folder that exists.
        clock: Tells when sessions end.
        graves: Sessions that are gone and remembered, at most.
    """

    def __init__(self, holder: str, path: Path, clock: Clock, graves: int = 10_000) -> None:
        super().__init__(holder)
        self._file = SqliteFile(path)
        self._clock = clock
        self._most_graves = graves
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._closed = False

    async def open(self, lease_s: float) -> str:
        """Open the file, or make it. It is this server's until it is closed, whatever the lease.

        Raises:
            StoreError: It is no database, is damaged, belongs to a newer version, or to another server that runs.
        """
        return await self._run(self._file.open)

    async def close(self) -> None:
        """Finish what was begun and close the file."""
        with suppress(StoreError):
            await self._run(self._file.close)
        self._closed = True
        self._thread.shutdown(wait=False)

    async def renew(self, lease_s: float) -> bool:
        """See Store: nobody else can have taken anything."""
        return True

    async def lost(self, epochs: Mapping[Key, int]) -> set[Key]:
        """See Store."""
        return await self._run(lambda: self._unheld(self._file.database, epochs.items()))

    async def claim(self, key: Key) -> Claim:
        """See Store; the session is never another server's."""
        return await self._run(lambda: self._claim(key))

    async def release(self, key: Key, epoch: int, *, clean: bool = True) -> None:
        """See Store."""
        await self._run(lambda: self._release(key, epoch, clean=clean))

    async def save(self, writes: Sequence[Write], *, durable: bool) -> set[Key]:
        """See Store; all of it is one transaction."""
        return await self._run(lambda: self._save(writes, durable=durable))

    async def remove(self, key: Key, epoch: int, grave: Grave | None) -> bool:
        """See Store."""
        return await self._run(lambda: self._remove(key, epoch, grave))

    async def find(self, key: Key) -> Record | None:
        """See Store."""
        return await self._run(lambda: self._find(key))

    async def names(self, owner: str) -> list[str]:
        """See Store."""
        return await self._run(lambda: self._names(owner))

    async def grave(self, key: Key) -> Grave | None:
        """See Store."""
        return await self._run(lambda: self._grave(key))

    async def expire(self) -> int:
        """See Store."""
        return await self._run(self._expire)

    async def ask(self, holder: str, question: bytes, timeout_s: float) -> bytes | None:
        """See Store: no other server shares the file."""
        return None

    def answer(self, answering: Answering) -> None:
        """See Store: nobody asks."""

    async def _run(self, work: Callable[[], Result]) -> Result:
        if self._closed:
            raise StoreError("the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StoreError(self._file.explained(error)) from error

    # -- on the store's thread

    def _claim(self, key: Key) -> Claim:
        with self._file.transaction() as database:
            row = database.execute("SELECT clean, uid, position, expires_s, data FROM sessions WHERE owner = ? AND name = ?", key).fetchone()
            epoch = int(self._file.fact("epoch")) + 1
            self._file.set_fact("epoch", str(epoch))
            database.execute(CLAIM, (*key, epoch))
        record = None if row is None or row[4] is None else Record(*row[1:])
        return Claim(epoch, record, clean=row is None or bool(row[0]))

    def _release(self, key: Key, epoch: int, *, clean: bool) -> None:
        with self._file.transaction() as database:
            database.execute(REMOVE_UNSAVED, (*key, epoch))
            database.execute(RELEASE, (clean, *key, epoch))

    def _save(self, writes: Sequence[Write], *, durable: bool) -> set[Key]:
        rows = [(write.record.uid, write.record.position, write.record.expires_s, write.record.data, *write.key, write.epoch) for write in writes]
        with self._file.transaction(durable=durable) as database:
            if sum(database.execute(SAVES[len(part)], list(itertools.chain(*part))).rowcount for part in _parts(rows)) == len(rows):
                return set()
            return self._unheld(database, ((write.key, write.epoch) for write in writes))

    def _unheld(self, database: sqlite3.Connection, claims: Iterable[tuple[Key, int]]) -> set[Key]:
        return {key for key, epoch in claims if database.execute(HELD, (*key, epoch)).fetchone() is None}

    def _remove(self, key: Key, epoch: int, grave: Grave | None) -> bool:
        with self._file.transaction() as database:
            removed = database.execute(REMOVE, (*key, epoch)).rowcount > 0
            if removed and grave is None:
                database.execute("DELETE FROM graves WHERE owner = ? AND name = ?", key)
            elif removed and grave is not None:
                self._bury(database, [(*key, grave.reason.value, grave.position)])
        return removed

    def _bury(self, database: sqlite3.Connection, rows: Sequence[tuple[str, str, str, int]]) -> None:
        database.executemany("INSERT OR REPLACE INTO graves (owner, name, reason, position) VALUES (?, ?, ?, ?)", rows)
        database.execute("DELETE FROM graves WHERE number <= (SELECT max(number) FROM graves) - ?", (self._most_graves,))

    def _find(self, key: Key) -> Record | None:
        command = "SELECT uid, position, expires_s, data FROM sessions WHERE owner = ? AND name = ? AND data IS NOT NULL"
        row = self._file.database.execute(command, key).fetchone()
        return None if row is None else Record(*row)

    def _names(self, owner: str) -> list[str]:
        return sorted(row[0] for row in self._file.database.execute("SELECT name FROM sessions WHERE owner = ? AND data IS NOT NULL", (owner,)))

    def _grave(self, key: Key) -> Grave | None:
        if self._find(key) is not None:
            return None
        row = self._file.database.execute("SELECT reason, position FROM graves WHERE owner = ? AND name = ?", key).fetchone()
        return None if row is None else Grave(Reason(row[0]), row[1])

    def _expire(self) -> int:
        now_s = self._clock.now()
        with self._file.transaction() as database:
            due = database.execute(
                "SELECT owner, name, ?, position FROM sessions WHERE expires_s <= ? AND NOT held", (Reason.SESSION_EXPIRED.value, now_s)
            ).fetchall()
            if due:
                self._bury(database, due)
                database.execute("DELETE FROM sessions WHERE expires_s <= ? AND NOT held", (now_s,))
        return len(due)


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Divide rows into as many as statements save at once."""
    first = 0
    for count in SAVED_AT_ONCE:
        while len(rows) - first >= count:
            yield rows[first : first + count]
            first += count
