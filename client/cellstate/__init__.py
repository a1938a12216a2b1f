"""Client of cellstate, a gRPC server for recurrent networks: `Client` for threads, `AsyncClient` for asyncio, with the same names.

Numbers go in and come out as numpy arrays, text as str; errors are those of `cellstate.errors`. No protobuf or grpc type appears, but behind `Client.raw`.

    import cellstate

    with cellstate.Client("localhost:50051") as client:
        for output in client.one_to_many("shakespeare", "ROMEO:", max_steps=200):
            print(output.text, end="", flush=True)
"""

from cellstate._aio.client import AsyncClient
from cellstate._aio.gateway import AsyncChannel, AsyncGateway
from cellstate._aio.outputs import AsyncOutputs
from cellstate._aio.session import AsyncSession
from cellstate._aio.streams import AsyncStream
from cellstate._sync.client import Client
from cellstate._sync.gateway import Channel, Gateway
from cellstate._sync.outputs import Outputs
from cellstate._sync.session import Session
from cellstate._sync.streams import Stream
from cellstate._version import __version__
from cellstate.connection import TLS, ConnectionOptions
from cellstate.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    CellstateError,
    DeadlineExceeded,
    ErrorDetails,
    InvalidInput,
    NotFound,
    NotOffered,
    Overloaded,
    PermissionDenied,
    PositionError,
    Precondition,
    QuotaExceeded,
    ServerError,
    SessionBusy,
    SessionGone,
    SessionReplaced,
    SessionRolledBack,
    SnapshotCorrupt,
    SnapshotRefused,
    StepFailed,
    Superseded,
    Unauthenticated,
    Unavailable,
)
from cellstate.info import CellKind, Durability, GenerationDefaults, Mode, ModelInfo, SessionInfo, StateSignature, ValueKind, ValueSignature
from cellstate.inputs import AsyncChunks, Chunks, Input, Tokens, Values, tokens, values
from cellstate.outputs import Completion, Emit, FinishReason, Form, Output, Result
from cellstate.programs import (
    CallOptions,
    ChannelOptions,
    DirectiveOptions,
    DrawOptions,
    Generation,
    GenerationOptions,
    Program,
    Sampling,
    SessionChanges,
    SessionOptions,
    StreamOptions,
)

__all__ = [
    "TLS",
    "Aborted",
    "AlreadyExists",
    "AsyncChannel",
    "AsyncChunks",
    "AsyncClient",
    "AsyncGateway",
    "AsyncOutputs",
    "AsyncSession",
    "AsyncStream",
    "CallOptions",
    "Cancelled",
    "CellKind",
    "CellstateError",
    "Channel",
    "ChannelOptions",
    "Chunks",
    "Client",
    "Completion",
    "ConnectionOptions",
    "DeadlineExceeded",
    "DirectiveOptions",
    "DrawOptions",
    "Durability",
    "Emit",
    "ErrorDetails",
    "FinishReason",
    "Form",
    "Gateway",
    "Generation",
    "GenerationDefaults",
    "GenerationOptions",
    "Input",
    "InvalidInput",
    "Mode",
    "ModelInfo",
    "NotFound",
    "NotOffered",
    "Output",
    "Outputs",
    "Overloaded",
    "PermissionDenied",
    "PositionError",
    "Precondition",
    "Program",
    "QuotaExceeded",
    "Result",
    "Sampling",
    "ServerError",
    "Session",
    "SessionBusy",
    "SessionChanges",
    "SessionGone",
    "SessionInfo",
    "SessionOptions",
    "SessionReplaced",
    "SessionRolledBack",
    "SnapshotCorrupt",
    "SnapshotRefused",
    "StateSignature",
    "StepFailed",
    "Stream",
    "StreamOptions",
    "Superseded",
    "Tokens",
    "Unauthenticated",
    "Unavailable",
    "ValueKind",
    "ValueSignature",
    "Values",
    "__version__",
    "tokens",
    "values",
]
