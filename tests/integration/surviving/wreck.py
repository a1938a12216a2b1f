"""What a server leaves when it dies: its store's files as they are at one moment."""

import shutil
from pathlib import Path
from typing import Any

from cellstate_service.app import App
from cellstate_service.sessions.stores.sqlite import SqliteStore
from tests.integration.serving import Served


def store_of(server: Served) -> SqliteStore:
    return _store(server.app)


def _store(app: App) -> SqliteStore:
    store: Any = app.sessions._store
    assert isinstance(store, SqliteStore)
    return store


async def wreck(server: Served, folder: Path) -> Path:
    """Copy a running server's store into a folder, and return the copy's path."""
    path = folder / server.app.settings.store.path.name
    await wreck_app(server.app, path)
    return path


async def wreck_app(app: App, path: Path) -> None:
    """Copy a running server's store as kill -9 would leave it, between two of its writes."""
    source = app.settings.store.path

    def copy() -> None:
        for suffix in ("", "-wal"):
            if Path(f"{source}{suffix}").exists():
                shutil.copy(f"{source}{suffix}", f"{path}{suffix}")

    await _store(app)._run(copy)


async def checkpointed(server: Served) -> None:
    """Save all sessions as they are, as happens from time to time."""
    await server.app.sessions._keeper.save(server.app.sessions._book.residents())
