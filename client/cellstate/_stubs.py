"""The generated stubs of one channel: the lower of the library's two levels, for callers who need a message as it is."""

from typing import Any

from cellstate.v1 import inference_pb2_grpc, model_pb2_grpc, session_pb2_grpc


class Raw:
    """Generated stubs on a client's channel. Calls made with them take and give messages of `cellstate.v1`, and raise grpc's errors.

    Attributes:
        inference: Stub of `InferenceService`.
        sessions: Stub of `SessionService`.
        models: Stub of `ModelService`.
        channel: The channel that they share.
    """

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(channel)
        self.models: Any = model_pb2_grpc.ModelServiceStub(channel)
