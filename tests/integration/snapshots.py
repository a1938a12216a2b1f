"""Export, import, and snapshots that were tampered with."""

import hashlib
from collections.abc import Callable
from typing import Any

from cellstate.v1.session_pb2 import ExportSessionRequest, ImportSessionOpen, ImportSessionRequest, Session
from cellstate.v1.snapshot_pb2 import Snapshot, SnapshotEnvelope
from tests.integration.stubs import Stubs


async def export(stubs: Stubs, name: str) -> bytes:
    """Export a session and check the chunks."""
    chunks = [chunk async for chunk in stubs.sessions.ExportSession(ExportSessionRequest(name=name))]
    data = b"".join(chunk.data for chunk in chunks)
    assert all(len(chunk.data) <= 256 * 1024 for chunk in chunks)
    assert [chunk.HasField("total_bytes") for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert chunks[0].total_bytes == len(data)
    return data


def import_of(data: bytes, *, chunk_bytes: int = 64 * 1024, session: Session | None = None, **opening: Any) -> list[ImportSessionRequest]:
    """The messages of an import."""
    opened = ImportSessionRequest(open=ImportSessionOpen(session=session, **opening))
    return [opened, *(ImportSessionRequest(data=data[at : at + chunk_bytes]) for at in range(0, len(data), chunk_bytes))]


def tampered(data: bytes, change: Callable[[Snapshot], None]) -> bytes:
    """A snapshot with another content and a checksum that is right."""
    envelope = SnapshotEnvelope.FromString(data)
    snapshot = Snapshot.FromString(envelope.payload)
    change(snapshot)
    payload = snapshot.SerializeToString()
    envelope.payload, envelope.sha256 = payload, hashlib.sha256(payload).digest()
    return envelope.SerializeToString()
