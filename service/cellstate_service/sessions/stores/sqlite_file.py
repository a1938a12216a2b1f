"""The file of the SQLite store: how it is opened, made, given to one server alone, and what its errors mean. What is stored in it is `sqlite.py`'s.

Everything in here is called on the store's thread.
"""

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellstate_service.errors import Reason
from cellstate_service.sessions.stores.store import StoreError

SCHEMA_VERSION = 1
CACHE_KIB = 8192
CHECKPOINT_PAGES = 4096
"""The log is written back into the file when it has so many pages of 4 KiB; a commit larger than that makes it larger, once."""
LOG_BYTES = 32 << 20
"""What is left of a larger log when it has been written back."""
FULL, NORMAL = 2, 1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE sessions (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        held INTEGER NOT NULL,
        clean INTEGER NOT NULL,
        uid TEXT,
        position INTEGER,
        expires_s REAL,
        data BLOB,
        UNIQUE (owner, name)
    )""",
    "CREATE INDEX sessions_by_end ON sessions (expires_s)",
    """CREATE TABLE graves (
        number INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        reason TEXT NOT NULL,
        position INTEGER NOT NULL,
        UNIQUE (owner, name)
    )""",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class SqliteFile:
    """A database file that belongs to this process while it is open.

    Args:
        path: The file; made where it is missing, in a folder that exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    @property
    def database(self) -> sqlite3.Connection:
        """The connection.

        Raises:
            StoreError: The file is not open.
        """
        if self._connection is None:
            raise StoreError(f"{self._path}: is not open")
        return self._connection

    def open(self) -> str:
        """Open the file, or make it, give back what nobody holds any more, and return the file's incarnation.

        Raises:
            StoreError: It belongs to another program or to a newer version, or takes no write-ahead log.
            sqlite3.Error: Anything else; `explained` says what.
        """
        self.close()
        connection = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StoreError(f"{self._path}: takes no write-ahead log (it says {mode!r}); put it on a local file system")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            self._connection = connection
            with self.transaction(durable=True):
                self._make_or_check()
                self._take_over()
                return self.fact("incarnation")
        except BaseException:
            self._connection = None
            connection.close()
            raise

    def close(self) -> None:
        """Close the file, having noted that it was closed."""
        if self._connection is None:
            return
        try:
            with self.transaction(durable=True):
                self.set_fact("boot", "")
        finally:
            connection, self._connection = self._connection, None
            connection.close()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """All of the statements within, or none; with `durable` the commit waits for the disk, otherwise for the system only."""
        database = self.database
        self._synchronize(FULL if durable else NORMAL)
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")

    def fact(self, name: str) -> str:
        """Return what was noted under a name."""
        return str(self.database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0])

    def set_fact(self, name: str, value: str) -> None:
        """Note something under a name."""
        self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def explained(self, error: sqlite3.Error) -> str:
        """Say what an error means and what to do."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and not self._writable():
            code = sqlite3.SQLITE_READONLY
        text = None if code is None else _EXPLANATIONS.get(code & 0xFF)
        return f"{self._path}: {text} ({error})" if text else f"{self._path}: {error}"

    def _writable(self) -> bool:
        """Tell whether this process may write the file, where it is, and its folder, where that is."""
        return all(os.access(path, os.W_OK) for path in (self._path, self._path.parent) if path.exists())

    def _synchronize(self, wanted: int) -> None:
        """Set when commits return. Kill -9 cannot tell the one from the other, so it is read back."""
        database = self.database
        if database.execute("PRAGMA synchronous").fetchone()[0] != wanted:
            database.execute(f"PRAGMA synchronous = {wanted}")
            if database.execute("PRAGMA synchronous").fetchone()[0] != wanted:
                raise StoreError(f"{self._path}: commits cannot be made to wait for the disk")

    def _make_or_check(self) -> None:
        version = self.database.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA_VERSION:
            return
        if version != 0:
            advice = "start the version that wrote it, or name another file"
            raise StoreError(f"{self._path}: has schema version {version}, this server reads {SCHEMA_VERSION}; {advice}")
        if self.database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"{self._path}: is the database of another program; name a file of its own")
        for statement in SCHEMA:
            self.database.execute(statement)
        for name, value in (("incarnation", uuid.uuid4().hex), ("epoch", "0"), ("boot", "")):
            self.set_fact(name, value)

    def _take_over(self) -> None:
        """The file is this server's alone: whoever held sessions in it is gone, with those it never saved, of which that is remembered.

        Where the machine went down under it, commits that did not wait for the disk may be missing, claims among them: none is known to be the newest then.
        """
        boot, before = _boot(), self.fact("boot")
        lost = "INSERT OR REPLACE INTO graves (owner, name, reason, position) SELECT owner, name, ?, 0 FROM sessions WHERE data IS NULL"
        self.database.execute(lost, (Reason.SESSION_LOST.value,))
        self.database.execute("DELETE FROM sessions WHERE data IS NULL")
        self.database.execute("UPDATE sessions SET held = 0 WHERE held")
        if before not in ("", boot):
            self.database.execute("UPDATE sessions SET clean = 0")
        self.set_fact("boot", boot)


def _boot() -> str:
    """Return what differs between two starts of this machine; where it does not tell, something that never differs."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


_EXPLANATIONS = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space; saving goes on by itself then",
    sqlite3.SQLITE_READONLY: "is on a read-only file system, or read-only for this server's user: it is to be able to write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: its folder is to exist and to be writable for this server's user",
    sqlite3.SQLITE_PERM: "may not be used: give this server's user the right to write the file and its folder",
    sqlite3.SQLITE_BUSY: "another server has it open: one file belongs to one server",
    sqlite3.SQLITE_CORRUPT: "is damaged: restore it from a backup, or move it away to begin with an empty one",
    sqlite3.SQLITE_NOTADB: "is no SQLite database: name another file, or move it away",
    sqlite3.SQLITE_IOERR: "cannot be read or written: see the system's log for errors of the disk",
}
