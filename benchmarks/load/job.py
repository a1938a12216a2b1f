"""What a caller process is told to do."""

from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from benchmarks.load.wires import Wire, make_wire


@dataclass(frozen=True, slots=True)
class Job:
    """A load to make.

    Attributes:
        kind: A key of `load.__main__.KINDS`.
        wire: `cellstate` or `step`.
        address: Of the server.
        server: Process id of the server.
        model: The model's name.
        logits: How many outputs it has.
        size: Streams or sessions at once.
        warm_s: Before measuring.
        measure_s: Measured.
        options: What only this kind of job needs.
    """

    kind: str
    wire: str
    address: str
    server: int
    model: str
    logits: int
    size: int
    warm_s: float
    measure_s: float
    options: dict[str, Any] = field(default_factory=dict)

    def make_wire(self) -> Wire:
        """Return the contract that its server speaks."""
        return make_wire(self.wire, self.model, self.logits)

    def channels(self) -> list[grpc.aio.Channel]:
        """Return connections for the streams, which are dealt to them in turn; one unless `options.channels` says otherwise."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        return [grpc.aio.insecure_channel(self.address, options=options) for _ in range(min(self.size, int(self.options.get("channels", 1))))]
