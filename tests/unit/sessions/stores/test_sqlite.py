"""What only the SQLite store does: it outlives the process, and says what is wrong with its file."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellstate_service.errors import Reason
from cellstate_service.sessions.stores import sqlite_file
from cellstate_service.sessions.stores.sqlite import SqliteStore
from cellstate_service.sessions.stores.sqlite_file import CHECKPOINT_PAGES, LOG_BYTES, SCHEMA_VERSION
from cellstate_service.sessions.stores.store import Grave, Key, Record, StoreError, Write
from tests.fake_clock import FakeClock

KEY = Key("ada", "talk")
LEASE_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


async def opened(path: Path, holder: str = "one") -> SqliteStore:
    store = SqliteStore(holder, path, FakeClock())
    try:
        await store.open(LEASE_S)
    except StoreError:
        await store.close()
        raise
    return store


async def saved(path: Path, count: int = 1) -> None:
    store = await opened(path)
    for number in range(count):
        key = Key("ada", f"s{number}")
        claim = await store.claim(key)
        await store.save([Write(key, claim.epoch, Record("u", number, 1e12, bytes(8000)))], durable=True)
    await store.close()


def size(path: Path) -> int:
    return path.stat().st_size


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def asked(store: SqliteStore, pragma: str) -> int:
    return await store._run(lambda: int(store._file.database.execute(f"PRAGMA {pragma}").fetchone()[0]))


# -- through restarts


async def test_what_was_saved_is_there_after_a_restart_and_nobody_holds_it(path: Path) -> None:
    first = SqliteStore("one", path, FakeClock())
    incarnation = await first.open(LEASE_S)
    claim = await first.claim(KEY)
    await first.save([Write(KEY, claim.epoch, Record("u", 5, 1e12, b"state"))], durable=True)
    gone = await first.claim(Key("ada", "gone"))
    await first.remove(Key("ada", "gone"), gone.epoch, Grave(Reason.SESSION_CLOSED, 2))
    await first.claim(Key("ada", "never saved"))
    await first.close()
    second = SqliteStore("two", path, FakeClock())
    assert await second.open(LEASE_S) == incarnation
    assert await second.save([Write(KEY, claim.epoch, Record("u", 6, 1e12, b""))], durable=False) == {KEY}
    again = await second.claim(KEY)
    assert again.epoch > claim.epoch
    assert again.record == Record("u", 5, 1e12, b"state")
    assert await second.grave(Key("ada", "gone")) == Grave(Reason.SESSION_CLOSED, 2)
    assert await second.names("ada") == ["talk"]
    fresh = await second.claim(Key("ada", "never saved"))
    assert await second.grave(Key("ada", "never saved")) == Grave(Reason.SESSION_LOST, 0)
    assert (fresh.record, fresh.clean) == (None, True)
    await second.close()


async def test_only_what_was_given_back_is_clean_after_a_restart(path: Path) -> None:
    await saved(path, 2)
    first = await opened(path)
    claim = await first.claim(Key("ada", "s0"))
    assert not claim.clean, "whoever saved it did not give it back"
    await first.release(Key("ada", "s0"), claim.epoch)
    await first.claim(Key("ada", "s1"))
    await first.close()
    second = await opened(path, "two")
    assert (await second.claim(Key("ada", "s0"))).clean
    assert not (await second.claim(Key("ada", "s1"))).clean
    await second.close()


@pytest.mark.parametrize("orderly", [True, False])
async def test_nothing_is_known_to_be_newest_when_the_machine_went_down_with_the_file_open(path: Path, monkeypatch: pytest.MonkeyPatch, orderly: bool) -> None:
    first = await opened(path)
    claim = await first.claim(KEY)
    await first.save([Write(KEY, claim.epoch, Record("u", 5, 1e12, b"state"))], durable=True)
    await first.release(KEY, claim.epoch)
    if not orderly:
        await first._run(first._file.database.close)
    await first.close()
    boot = path.with_name("boot_id")
    boot.write_text("another start of the machine")
    monkeypatch.setattr(sqlite_file, "BOOT_ID", boot)
    second = await opened(path)
    assert (await second.claim(KEY)).clean == orderly
    await second.close()


async def test_two_servers_cannot_share_a_file(path: Path) -> None:
    first = await opened(path)
    with pytest.raises(StoreError, match="another server has it open"):
        await opened(path, "two")
    await first.close()
    await (await opened(path, "two")).close()


async def test_what_failed_to_open_can_be_opened_later(path: Path) -> None:
    first = await opened(path)
    second = SqliteStore("two", path, FakeClock())
    with pytest.raises(StoreError, match="another server"):
        await second.open(LEASE_S)
    with pytest.raises(StoreError, match="is not open"):
        await second.claim(KEY)
    await first.close()
    assert await second.open(LEASE_S)
    assert await second.claim(KEY)
    await second.close()
    with pytest.raises(StoreError, match="closed"):
        await second.claim(KEY)


# -- what waits for the disk, and how much of it is taken


async def test_commits_wait_for_the_disk_where_that_is_asked_for(path: Path) -> None:
    store = await opened(path)
    claim = await store.claim(KEY)
    for durable, level in ((True, 2), (False, 1), (True, 2)):
        await store.save([Write(KEY, claim.epoch, Record("u", 1, 1e12, b""))], durable=durable)
        assert await asked(store, "synchronous") == level
    await store.close()


async def test_the_log_and_the_file_stay_small_however_much_is_saved(path: Path) -> None:
    store = await opened(path)
    keys = [Key("ada", f"s{number}") for number in range(32)]
    epochs = [(await store.claim(key)).epoch for key in keys]
    for position in range(60):
        writes = [Write(key, epoch, Record("u", position, 1e12, os.urandom(64_000))) for key, epoch in zip(keys, epochs, strict=True)]
        await store.save(writes, durable=False)
        await store.names("ada")
    log = path.with_name("sessions.db-wal")
    assert size(log) <= max(LOG_BYTES, 4096 * CHECKPOINT_PAGES + (4 << 20))
    assert size(path) < 3 * 32 * 64_000
    await store.close()
    assert not log.exists()


async def test_statements_run_beside_the_event_loop(path: Path) -> None:
    store = await opened(path)
    release = asyncio.Event()
    loop = asyncio.get_running_loop()
    blocked = asyncio.ensure_future(store._run(lambda: asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10.0)))
    finding = asyncio.ensure_future(store.find(KEY))
    await asyncio.sleep(0)
    assert not finding.done()
    release.set()
    assert await blocked
    assert await finding is None
    await store.close()


# -- what is wrong with a file


async def test_the_file_of_another_program_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE notes (text)")
    with pytest.raises(StoreError, match="another program"):
        await opened(path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        assert database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


async def test_a_newer_schema_is_refused(path: Path) -> None:
    await saved(path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}"):
        await opened(path)


async def test_what_is_no_database_is_told(path: Path) -> None:
    write(path, b"something else " * 1000)
    with pytest.raises(StoreError, match="no SQLite database"):
        await opened(path)
    assert read(path).startswith(b"something else"), "it is left as it was"


async def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="its folder is to exist"):
        await opened(tmp_path / "nowhere" / "sessions.db")


async def test_a_folder_in_the_files_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        await opened(tmp_path)


async def test_a_damaged_file_is_told(path: Path) -> None:
    await saved(path, 50)
    data = bytearray(read(path))
    data[4096:40960] = os.urandom(40960 - 4096)
    write(path, data)

    async def read_all() -> None:
        store = await opened(path)
        try:
            await store.names("ada")
            for number in range(50):
                await store.find(Key("ada", f"s{number}"))
        finally:
            await store.close()

    with pytest.raises(StoreError, match="damaged"):
        await read_all()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount file systems")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


async def test_a_full_disk_is_told_and_saving_goes_on_when_there_is_room(disk: Path) -> None:
    path = disk / "sessions.db"
    store = await opened(path)
    claim = await store.claim(KEY)
    first, second = Record("u", 1, 1e12, b"first"), Record("u", 2, 1e12, bytes(100_000))
    await store.save([Write(KEY, claim.epoch, first)], durable=True)
    (disk / "other").write_bytes(bytes(max(0, os.statvfs(disk).f_bavail - 4) * os.statvfs(disk).f_frsize))
    for durable in (True, False):
        with pytest.raises(StoreError, match="the disk is full"):
            await store.save([Write(KEY, claim.epoch, second)], durable=durable)
    assert await store.find(KEY) == first
    assert await store.lost({KEY: claim.epoch}) == set()
    (disk / "other").unlink()
    assert await store.save([Write(KEY, claim.epoch, second)], durable=True) == set()
    await store.close()
    again = await opened(path)
    assert await again.find(KEY) == second
    await again.close()


async def test_a_limit_of_the_file_is_told_as_a_full_disk(path: Path) -> None:
    store = await opened(path)
    claim = await store.claim(KEY)
    await store.save([Write(KEY, claim.epoch, Record("u", 1, 1e12, b"first"))], durable=True)
    await asked(store, f"max_page_count = {await asked(store, 'page_count')}")
    with pytest.raises(StoreError, match="the disk is full"):
        await store.save([Write(KEY, claim.epoch, Record("u", 2, 1e12, bytes(1 << 20)))], durable=True)
    assert (await store.find(KEY)) == Record("u", 1, 1e12, b"first")
    await asked(store, "max_page_count = 1000000")
    assert await store.save([Write(KEY, claim.epoch, Record("u", 2, 1e12, bytes(1 << 20)))], durable=True) == set()
    await store.close()


async def test_a_read_only_file_system_is_told(disk: Path) -> None:
    await saved(disk / "sessions.db")
    remount(disk, "ro")
    with pytest.raises(StoreError, match="read-only"):
        await opened(disk / "sessions.db")
    with pytest.raises(StoreError, match="read-only"):
        await opened(disk / "new.db")
    remount(disk, "rw")
    await (await opened(disk / "sessions.db")).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("which", ["folder", "file"])
async def test_what_may_not_be_written_is_told(tmp_path: Path, which: str) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    await saved(folder / "sessions.db")
    target = folder if which == "folder" else folder / "sessions.db"
    target.chmod(0o500 if which == "folder" else 0o400)
    try:
        with pytest.raises(StoreError, match="read-only"):
            await opened(folder / "sessions.db")
    finally:
        target.chmod(0o700)


# -- the process killed


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from cellstate_service.clock import SystemClock
    from cellstate_service.sessions.stores.sqlite import SqliteStore
    from cellstate_service.sessions.stores.store import Key, Record, Write

    async def main():
        store = SqliteStore("child", Path(sys.argv[1]), SystemClock())
        await store.open(10.0)
        keys = [Key("ada", f"s{number}") for number in range(20)]
        epochs = [(await store.claim(key)).epoch for key in keys]
        position = 0
        while True:
            position += 1
            writes = [Write(key, epoch, Record("u", position, 1e12, bytes(4000))) for key, epoch in zip(keys, epochs)]
            await store.save(writes, durable=False)
            print(position, flush=True)

    asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 5, 25, 80])
async def test_a_kill_loses_nothing_that_was_acknowledged_and_tears_no_batch(path: Path, lines: int) -> None:
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), path], stdout=subprocess.PIPE, text=True) as child:  # noqa: ASYNC220
        assert child.stdout is not None
        for _ in range(lines):
            told = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        told = max([told, *map(int, child.stdout.read().split())])
    store = await opened(path)
    found = [await store.find(Key("ada", f"s{number}")) for number in range(20)]
    positions = {record.position for record in found if record is not None}
    assert len(positions) == 1, "a batch is stored as a whole or not at all"
    assert told <= positions.pop() <= told + 1
    await store.close()
